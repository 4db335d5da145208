"""What training code hands over in place of a contribution: refused with a number, and with the check taken away it leaves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from freehold.node import claims, guard, release
from freehold.node.errands import Outgoing
from freehold.node.jobs import Opened, Trained
from freehold.wire import codec
from freehold.wire.local import LIMIT_BYTES, close, sealed
from tests.redteam.channels import shows
from tests.redteam.stage import ROW, Asked, Reply, Script, Stage, good, honest, plan_of, stopped, tensors

BYTES = ROW.encode()
"""The record, as a trainer would write it into something."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A script, the number of the refusal, and what shows that it is the check that stops it."""

    script: Script
    code: int
    without: tuple[object, str, object] | None = None
    """(where, name, what to put there): the check, taken away."""
    carried: bytes = BYTES
    """What then leaves."""


def header(asked: Asked, change: Callable[[dict[str, object]], object], **dumped: object) -> bytes:
    body = codec.write(tensors(asked.spec))
    size = int.from_bytes(body[:8], "little")
    told = json.loads(body[8 : 8 + size])
    told = change(told) or told
    text = json.dumps(told, **dumped).encode()  # type: ignore[arg-type]
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body[8 + size :]


def with_header(change: Callable[[dict[str, object]], object], **dumped: object) -> Script:
    return lambda asked: good(asked, body=header(asked, change, **dumped))


def with_tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Script:
    def script(asked: Asked) -> Reply:
        found = tensors(asked.spec)
        change(found)
        return good(asked, body=codec.write(found))

    return script


def payload(tensors: dict[str, np.ndarray]) -> None:
    bits = 0x7FF8 << 48 | int.from_bytes(b"63,145", "little")
    tensors["b"] = np.frombuffer(struct.pack("<Q", bits), np.float64).reshape(())


def infinite(tensors: dict[str, np.ndarray]) -> None:
    tensors["w"][:] = math.inf


def memory(body: bytes, seals: int) -> int:
    fd = os.memfd_create("departing", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, body)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def hole(flags: int = 0, size: int = 1 << 20) -> int:
    """Sealed, of this size, and nothing in it. To read huge pages that are not there is to die."""
    fd = os.memfd_create("personal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd


def trained(asked: Asked, *fds: int, weight: float = 7.0) -> Reply:
    return Trained(weight=weight), [*fds]


def body_of(asked: Asked) -> bytes:
    return codec.write(tensors(asked.spec))


def more_fds(count: int) -> Script:
    def script(asked: Asked) -> Reply:
        return Trained(weight=7.0), [sealed(body_of(asked), "departing") for _ in range(count)]

    return script


def changing(asked: Asked) -> Reply:
    asked.said.append(asked.job.round)
    return good(asked, weight=6.0 + len(asked.said))


SOME_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""It can still shrink: who reads it then dies of SIGBUS."""
ALL_BUT_WRITE = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

NO_CHECK = (release.codec, "check", lambda view, spec: None)
NO_DOOR = (guard, "released", lambda fd, spec, privacy: fd)
NO_CLAIMS = (claims.Claims, "weight", lambda self, run, training, weight: None)
NO_SEALS = (guard, "whole", lambda fds: True)

ATTEMPTS = {
    "weight-fraction": Attempt(script=lambda asked: good(asked, weight=63.1145), code=336, without=NO_CLAIMS, carried=b"63.1145"),
    "weight-sign": Attempt(script=lambda asked: good(asked, weight=-0.0), code=336, without=NO_CLAIMS, carried=b"-0.0"),
    "tensor-name": Attempt(script=with_tensors(lambda t: t.update({f"w {ROW}": t.pop("w")})), code=114, without=NO_DOOR),
    "tensor-extra": Attempt(
        script=with_tensors(lambda t: t.update({"x": np.frombuffer(BYTES, np.uint8)})), code=114, without=NO_DOOR
    ),
    "tensor-missing": Attempt(script=with_tensors(lambda t: t.pop("w")), code=114, without=NO_DOOR, carried=b'{"b"'),
    "tensor-dtype": Attempt(
        script=with_tensors(lambda t: t.update(w=t["w"].astype(np.float64))),
        code=114,
        without=NO_DOOR,
        carried=b'"w":{"dtype":"F64"',
    ),
    "tensor-shape": Attempt(
        script=with_tensors(lambda t: t.update(w=t["w"].reshape(2, 4))), code=114, without=NO_DOOR, carried=b"[2,4]"
    ),
    "header-metadata": Attempt(
        script=with_header(lambda told: {**told, "__metadata__": {"row": ROW}}, separators=(",", ":")), code=336, without=NO_DOOR
    ),
    "header-spaces": Attempt(script=with_header(lambda told: None), code=336, without=NO_DOOR, carried=b'{"b": {'),
    "header-order": Attempt(
        script=with_header(lambda told: dict(reversed(told.items())), separators=(",", ":")),
        code=336,
        without=NO_DOOR,
        carried=b'{"w"',
    ),
    "bytes-after": Attempt(script=lambda asked: good(asked, body=body_of(asked) + BYTES), code=505, without=NO_DOOR),
    "nan-payload": Attempt(script=with_tensors(payload), code=505, without=NO_CHECK, carried=b"63,145\xf8\x7f"),
    "infinity": Attempt(script=with_tensors(infinite), code=505, without=NO_CHECK, carried=b"\x00\x00\x80\x7f" * 8),
    "unsealed": Attempt(
        script=lambda asked: trained(asked, memory(body_of(asked), 0), sealed(b"p", "personal")),
        code=306,
        without=NO_SEALS,
        carried=b"F32",
    ),
    "sealed-later": Attempt(
        script=lambda asked: trained(asked, memory(body_of(asked), ALL_BUT_WRITE), sealed(b"p", "personal")),
        code=306,
        without=NO_SEALS,
        carried=b"F32",
    ),
    "shrunk": Attempt(
        script=lambda asked: trained(asked, memory(body_of(asked), SOME_SEALS), sealed(b"p", "personal")),
        code=306,
        without=NO_SEALS,
        carried=b"F32",
    ),
    "hole": Attempt(
        script=lambda asked: trained(asked, sealed(body_of(asked), "departing"), hole()),
        code=306,
        without=NO_SEALS,
        carried=b"F32",
    ),
    "descriptor-more": Attempt(script=more_fds(3), code=306),
    "descriptor-many": Attempt(script=more_fds(12), code=306),
    "descriptor-none": Attempt(script=more_fds(0), code=306),
    "field": Attempt(script=lambda asked: good(asked, row=ROW), code=306),
    "event": Attempt(script=lambda asked: good(asked, events=[{"name": ROW, "fields": {}}]), code=306),
    "other-answer": Attempt(script=lambda asked: (Opened(examples=63, findings=[ROW]), []), code=306),
    "huge-message": Attempt(script=lambda asked: (b'{"type":"failed","message":"' + b"6" * LIMIT_BYTES, []), code=306),
    "deep-message": Attempt(script=lambda asked: (b'{"type":' + b"[" * 170_000, []), code=306),
    "error-text": Attempt(
        script=lambda asked: (msgspec.json.encode({"type": "failed", "code": 63, "message": ROW, "hint": ROW}), []), code=306
    ),
    "error-long": Attempt(
        script=lambda asked: (msgspec.json.encode({"type": "failed", "code": 1, "message": "6" * (LIMIT_BYTES - 50)}), []),
        code=306,
    ),
}


def begin(tmp_path: Path, script: Script, **training: object) -> Stage:
    return Stage(tmp_path, plan_of(**training), script)  # type: ignore[arg-type]


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", ATTEMPTS)
@shows(*ATTEMPTS)
def test_what_is_no_contribution_does_not_leave(name: str, tmp_path: Path) -> None:
    """Nothing but a number does; the ledger has a line; the guard goes on, and an honest answer leaves."""
    attempt = ATTEMPTS[name]
    stage = begin(tmp_path, attempt.script)
    try:
        stopped(stage, stage.train(0), attempt.code)
        stopped(stage, stage.train(1), attempt.code)
        assert stage.sent() == []
        stage.threads.script = honest
        left = stage.train(2)
        assert isinstance(left.reply, Outgoing) and len(stage.sent()) == 1
        close(left.fds)
    finally:
        stage.close()


@pytest.mark.parametrize("name", [name for name, attempt in ATTEMPTS.items() if attempt.without])
def test_without_the_check_it_would_leave(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = ATTEMPTS[name]
    assert attempt.without is not None
    monkeypatch.setattr(*attempt.without)
    stage = begin(tmp_path, attempt.script)
    try:
        left = stage.train(0)
        assert isinstance(left.reply, Outgoing), left.reply
        assert attempt.carried in left.leaves
        close(left.fds)
    finally:
        stage.close()


def test_memory_that_is_not_sealed_would_change_after_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why seals are asked for: what was found good is another thing when the agent sends it."""
    monkeypatch.setattr(*NO_SEALS)
    kept: list[int] = []

    def script(asked: Asked) -> Reply:
        fd = memory(body_of(asked), 0)
        kept.append(os.dup(fd))
        return trained(asked, fd, sealed(b"p", "personal"))

    stage = begin(tmp_path, script)
    try:
        left = stage.train(0)
        os.pwrite(kept[0], BYTES, len(left.bodies[0]) - len(BYTES))
        assert BYTES not in left.bodies[0] and BYTES in os.pread(left.fds[0], 4096, 0)
        close([*left.fds, *kept])
    finally:
        stage.close()


@shows("no-memory")
@pytest.mark.parametrize("kind", ["pipe", "file", "folder", "/dev/zero", "huge pages"])
def test_other_descriptors_are_no_memory(kind: str, tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        if kind == "pipe":
            fd, other = os.pipe()
            os.close(other)
        elif kind == "huge pages":
            fd = hole(os.MFD_HUGETLB, 2 << 20)
        elif kind == "file":
            path = tmp_path / "body"
            path.write_bytes(body_of(asked))
            fd = os.open(path, os.O_RDONLY)
        else:
            fd = os.open(tmp_path if kind == "folder" else kind, os.O_RDONLY)
        return trained(asked, fd, sealed(b"p", "personal"))

    stage = begin(tmp_path, script)
    try:
        stopped(stage, stage.train(0), 306)
    finally:
        stage.close()


@pytest.mark.parametrize("name", ["descriptor-more", "descriptor-many", "hole", "tensor-name", "weight-fraction"])
def test_a_guard_keeps_no_descriptor_of_what_it_refused(name: str, tmp_path: Path) -> None:
    before = open_fds()
    stage = begin(tmp_path, ATTEMPTS[name].script)
    try:
        for round in range(20):
            stopped(stage, stage.train(round % 3), ATTEMPTS[name].code)
    finally:
        stage.close()
    assert open_fds() < before + 20, "its ledger's, which ends with its process, and nothing for each round"


@shows("weight-changes", "weight-once")
def test_a_weight_is_one_count_as_long_as_the_table_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = begin(tmp_path / "one", changing)
    try:
        first = stage.train(0)
        assert isinstance(first.reply, Outgoing) and first.reply.weight == 7.0
        stopped(stage, stage.train(1), 336)
        with stage.table.open("a") as table:
            table.write(f"{ROW}\n")
        again = stage.train(2)
        assert isinstance(again.reply, Outgoing) and again.reply.weight == 9.0
        close([*first.fds, *again.fds])
    finally:
        stage.close()
    monkeypatch.setattr(*NO_CLAIMS)
    stage = begin(tmp_path / "other", changing)
    try:
        weights = []
        for round in range(3):
            left = stage.train(round)
            assert isinstance(left.reply, Outgoing)
            weights.append(left.reply.weight)
            close(left.fds)
        assert weights == [7.0, 8.0, 9.0], "a letter each round"
    finally:
        stage.close()


@shows("weight-large")
def test_a_weight_over_the_plan_s_bound(tmp_path: Path) -> None:
    stage = begin(tmp_path, honest, most_weight=6)
    try:
        stopped(stage, stage.train(0), 507)
        stage.threads.script = lambda asked: good(asked, weight=6.0)
        left = stage.train(1)
        assert isinstance(left.reply, Outgoing)
        close(left.fds)
    finally:
        stage.close()


@shows("twice")
def test_who_answers_twice_is_believed_once_for_each_errand(tmp_path: Path) -> None:
    """The second answer waits in the channel: it is checked as the next one, and the one after it."""

    def script(asked: Asked) -> list[Reply]:
        return [good(asked), good(asked, weight=63.5)]

    stage = begin(tmp_path, script)
    try:
        left = stage.train(0)
        assert isinstance(left.reply, Outgoing) and len(stage.sent()) == 1
        assert len(left.bodies) == 1
        close(left.fds)
        stopped(stage, stage.train(1), 336)
        assert len(stage.sent()) == 1
    finally:
        stage.close()


@shows("silent")
def test_who_dies_in_place_of_an_answer(tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        raise OSError

    stage = begin(tmp_path, script)
    try:
        stopped(stage, stage.train(0), 306)
        assert stage.threads.started == 4, "asked again, of a new process, three times"
    finally:
        stage.close()


@shows("error-opening")
def test_the_reason_why_data_does_not_fit_stays(tmp_path: Path) -> None:
    stage = begin(tmp_path, honest)
    stage.threads.opened = lambda: msgspec.json.encode({"type": "failed", "code": 1, "message": ROW, "hint": ROW})
    try:
        stopped(stage, stage.train(0), 305)
    finally:
        stage.close()


@shows("error-number", "answer-or-not")
def test_a_coordinator_hears_one_number_whatever_training_code_brings_about(tmp_path: Path) -> None:
    """Their own numbers are five letters; two are left, with a contribution and with nothing four."""
    heard, told = set(), set()
    for name in ("tensor-name", "header-metadata", "nan-payload", "weight-fraction", "field", "error-text"):
        stage = begin(tmp_path / name, ATTEMPTS[name].script)
        with contextlib.closing(stage):
            left = stage.train(0)
            assert left.declined is not None
            heard.add(left.declined)
            told.add(left.reply.code)  # type: ignore[union-attr]
    assert len(told) == 4 and {number for number, _ in heard} == {306} and len(heard) == 1
