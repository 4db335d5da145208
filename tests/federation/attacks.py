"""Contributions and messages that are none, each with the number of its error and the status of the answer."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from freehold.plan import Contribution
from freehold.wire.routes import DECLINED, LEAVE, MEASURES, RENEW, WORK
from tests.federation.peer import good, packed

OTHER_RUN = "0123456789abcdef-0"
SECRET = "spam and eggs"
"""What the bodies quote, and no log may."""

Body = Callable[[Contribution], bytes]


def with_tensor(change: Callable[[dict[str, np.ndarray]], object]) -> Body:
    def body(spec: Contribution) -> bytes:
        tensors = good(spec)
        change(tensors)
        return packed(tensors)

    return body


def first(tensors: dict[str, np.ndarray]) -> str:
    return next(iter(tensors))


def filled(value: float) -> Body:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[first(tensors)].flat[-1] = value

    return with_tensor(change)


BODIES: dict[str, tuple[Body, int, int]] = {
    "another dtype": (with_tensor(lambda t: t.update({first(t): t[first(t)].astype("float64")})), 114, 422),
    "another shape": (with_tensor(lambda t: t.update({first(t): t[first(t)].reshape(-1, 1, 1)})), 114, 422),
    "an extra tensor": (with_tensor(lambda t: t.update({SECRET: np.zeros(3, "float32")})), 114, 422),
    "a tensor less": (with_tensor(lambda t: t.pop(first(t))), 114, 422),
    "NaN": (filled(float("nan")), 505, 400),
    "infinity": (filled(float("inf")), 505, 400),
    "minus infinity": (filled(float("-inf")), 505, 400),
    "a number too large for the sum": (filled(3e38), 505, 400),
    "no safetensors": (lambda spec: SECRET.encode() * 9, 505, 400),
    "nothing": (lambda spec: b"", 505, 400),
    "a pickle": (lambda spec: b"\x80\x04\x95" + b"cos\nsystem\n" * 30, 505, 400),
    "a header that lies about its length": (lambda spec: (1 << 62).to_bytes(8, "little") + b"{}" * 40, 505, 400),
    "deep JSON in the header": (lambda spec: (60000).to_bytes(8, "little") + b"[" * 60000, 505, 400),
    "large and no safetensors": (lambda spec: b"\xff" * 65600, 505, 400),
}


HEADERS: dict[str, tuple[dict[str, str | None], int, int]] = {
    "another digest": ({"Freehold_Sha256": "0" * 64}, 503, 400),
    "no digest": ({"Freehold_Sha256": None}, 500, 400),
    "no digest at all": ({"Freehold_Sha256": SECRET}, 500, 400),
    "packed": ({"Content_Encoding": "gzip"}, 506, 400),
    "packed as other plans have it": ({"Content_Encoding": "zstd"}, 506, 400),
    "without length": ({"Content_Length": None}, 503, 400),
    "another version": ({"Freehold_Version": "2"}, 501, 426),
    "version nonsense": ({"Freehold_Version": SECRET}, 500, 400),
    "no version": ({"Freehold_Version": None}, 500, 400),
    "no weight": ({"Freehold_Weight": None}, 500, 400),
    "a negative weight": ({"Freehold_Weight": "-1.0"}, 500, 400),
    "weight nan": ({"Freehold_Weight": "nan"}, 500, 400),
    "weight inf": ({"Freehold_Weight": "inf"}, 500, 400),
    "a weight too large for the sum": ({"Freehold_Weight": "1e99"}, 505, 400),
    "a weight of many digits": ({"Freehold_Weight": "9" * 4000}, 500, 400),
    "waiting for ever": ({"Freehold_Wait": "1e9"}, 500, 400),
    "pending nonsense": ({"Freehold_Pending": SECRET}, 500, 400),
    "pending without end": ({"Freehold_Pending": ",".join([f"{OTHER_RUN}:1"] * 201)}, 500, 400),
    "datasets that are no names": ({"Freehold_Datasets": "heart,-,"}, 500, 400),
}


def text(**fields: object) -> bytes:
    return json.dumps({"version": 1, **fields}).encode()


MESSAGES: dict[str, tuple[str, bytes, int, int]] = {
    "garbage": (WORK.path, b"\x00\xff" * 9, 500, 400),
    "nothing": (WORK.path, b"", 500, 400),
    "half a message": (WORK.path, b'{"version": 1, "wait_s"', 500, 400),
    "deep JSON": (WORK.path, b"[" * 200_000, 500, 400),
    "deep JSON in a field": (WORK.path, b'{"version": 1, "datasets": ' + b"[" * 200_000, 500, 400),
    "a list": (WORK.path, b"[1]", 500, 400),
    "an unknown field": (WORK.path, text(spam=SECRET), 500, 400),
    "a wrong type": (WORK.path, text(wait_s=SECRET), 500, 400),
    "no version": (WORK.path, b"{}", 501, 426),
    "another version": (WORK.path, text(version=2), 501, 426),
    "an endless version": (WORK.path, b'{"version": ' + b"9" * 4300 + b"}", 500, 400),
    "waiting for ever": (WORK.path, text(wait_s=1e9), 500, 400),
    "waiting for less than nothing": (WORK.path, text(wait_s=-1), 500, 400),
    "a name with a line feed": (WORK.path, text(datasets=["heart\n"]), 500, 400),
    "a name with a comma": (WORK.path, text(datasets=["heart,lung"]), 500, 400),
    "too many names": (WORK.path, text(datasets=["heart"] * 61), 500, 400),
    "a run with a line feed": (WORK.path, text(pending=[{"run": OTHER_RUN + "\n", "round": 0}]), 500, 400),
    "too much pending": (WORK.path, text(pending=[{"run": OTHER_RUN, "round": 0}] * 201), 500, 400),
    "a round below zero": (WORK.path, text(pending=[{"run": OTHER_RUN, "round": -1}]), 500, 400),
    "an endless round": (WORK.path, text(pending=[{"run": OTHER_RUN, "round": 10**40}]), 500, 400),
    "measures with NaN": (
        MEASURES.path,
        b'{"version":1,"run":"%s","round":0,"splits":{"test":{"examples":9,"sums":{"a":NaN}}}}' % OTHER_RUN.encode(),
        500,
        400,
    ),
    "measures of less than nothing": (
        MEASURES.path,
        text(run=OTHER_RUN, round=0, splits={"test": {"examples": -9, "sums": {}}}),
        500,
        400,
    ),
    "measures of no split": (MEASURES.path, text(run=OTHER_RUN, round=0, splits={SECRET: {}}), 500, 400),
    "an endless code": (DECLINED.path, text(run=OTHER_RUN, round=0, code=10**40, message=""), 500, 400),
    "an endless excuse": (DECLINED.path, text(run=OTHER_RUN, round=0, code=1, message=SECRET * 1000), 500, 400),
    "another run declined": (DECLINED.path, text(run=OTHER_RUN, round=0, code=1, message=SECRET), 406, 404),
    "a renewal without a request": (RENEW.path, text(csr=SECRET), 405, 400),
    "leaving with luggage": (LEAVE.path, text(spam=SECRET), 500, 400),
}
