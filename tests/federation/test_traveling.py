"""How a plan has contributions travel: rounded, compressed, kept as they came. Real nodes, kills, and a hostile one."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from freehold.errors import Unreachable
from freehold.plan import Contribution, Plan, SentAs, runs_of
from freehold.wire.messages import Train
from freehold.wire.packing import packed as compressed
from tests.federation.harness import HOSPITALS, Federation, heart_plan
from tests.federation.peer import Answer, Peer, good, joined, packed
from tests.federation.states import server_state
from tests.federation.test_algorithms import ROUNDS, simulated

BOTH = Contribution(dtype="bfloat16", compression="zstd")
COMPANIONS = ["fedavg", "fedadam", "fedproto", "ifca", "fedbabu"]


def rounded_plan() -> Plan:
    return heart_plan("scaffold", name="rounded", rounds=ROUNDS, nodes=4, companions=COMPANIONS, contribution=BOTH)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, fork: Path) -> Iterator[Federation]:
    found = Federation(tmp_path_factory.mktemp("traveling"), list(HOSPITALS), fork=fork)
    found.start()
    try:
        found.finished(found.run(rounded_plan()))
        yield found
    finally:
        found.stop()


def differences(found: dict[str, Tensor], plan: Plan, number: int, dtype: SentAs | None) -> Tensor:
    """Of each number of a server state, in units of its largest: the federation's against the vector engine's with `dtype`."""
    other = msgspec.structs.replace(plan, contribution=msgspec.structs.replace(plan.contribution, dtype=dtype))
    server, _ = simulated(other, runs_of(plan)[number])
    assert found.keys() == server.keys()
    assert all(found[k].dtype == v.dtype for k, v in server.items())
    return torch.cat([((found[k] - v).abs() / max(1.0, float(v.abs().max()))).double().flatten() for k, v in server.items()])


def test_what_is_rounded_on_nodes_is_what_the_simulator_rounds(federation: Federation) -> None:
    """A difference of the last bit before rounding is one of bfloat16's eight after it, for the few numbers near a middle."""
    plan = rounded_plan()
    for run in runs_of(plan):
        found = server_state(federation, run.id)
        alike, apart = (differences(found, plan, run.number, dtype) for dtype in ("bfloat16", None))
        assert (alike < 1e-6).double().mean() > 0.98, run.algorithm.name
        assert alike.max() < 2e-3, run.algorithm.name
        if run.algorithm.name not in ("fedproto", "ifca"):  # statistics, all that they send, are not rounded
            assert (apart > 1e-6).double().mean() > 0.2, run.algorithm.name


def test_a_plan_lists_what_really_travels(federation: Federation) -> None:
    plan = rounded_plan()
    kinds = {tensor.name.split("/")[0]: tensor.dtype for tensor in plan.contribution.tensors}
    assert kinds == {"model": "bfloat16", "control": "float32"}
    fedavg, _, fedproto, *_ = plan.companions
    assert {tensor.dtype for tensor in fedavg.tensors} == {"bfloat16"}
    assert {tensor.dtype for tensor in fedproto.tensors} == {"float32"}


def test_what_is_counted_is_what_traveled(federation: Federation) -> None:
    """Bytes are those after compression, and fewer than the numbers alone take."""
    plan = heart_plan("fedavg", name="counted", rounds=1, nodes=4, contribution=BOTH)
    results = federation.finished(federation.run(plan))
    run = runs_of(plan)[0].id
    numbers = sum(int(np.prod(t.shape)) for t in plan.contribution.tensors)
    told = federation.nodes["hungary"].wait_for("contribution.sent", run=run)
    taken = federation.coordinator.wait_for("contribution.received", run=run, node="hungary")
    assert told["bytes"] == taken["bytes"] == results.sent_bytes["hungary"] < 2 * numbers + 300


def kill_plan(name: str) -> Plan:
    return heart_plan("scaffold-uniform", name=name, rounds=2, nodes=4, contribution=BOTH)


POINTS = ["coordinator.contribution.committing", "coordinator.contribution.committed", "coordinator.round.committed"]
FILE_POINTS = ["coordinator.contribution.named", "coordinator.contribution.committed"]
FILE_POINTS = ["coordinator.contribution.named", "coordinator.contribution.committed"]


@pytest.mark.parametrize(("point", "files"), [*((p, False) for p in POINTS), *((p, True) for p in FILE_POINTS)])
def test_a_sum_is_built_anew_from_what_traveled(federation: Federation, point: str, files: bool) -> None:
    undisturbed, name = kill_plan("undisturbed"), f"{point.replace('.', '-')}-{files}".lower()
    federation.finished(federation.run(undisturbed))
    federation.coordinator.stop()
    federation.settings |= {"inline_bytes": 0, "heavy_bytes": 0} if files else {}
    federation.start_coordinator(f"{point}=kill@3")
    with contextlib.suppress(Unreachable):
        federation.run(kill_plan(name))
    assert federation.coordinator.wait_end() == -9
    federation.start_coordinator()
    federation.finished(federation.run(kill_plan(name)))
    expected = server_state(federation, runs_of(undisturbed)[0].id)
    found = server_state(federation, runs_of(kill_plan(name))[0].id)
    assert all(found[key].equal(value) for key, value in expected.items())
    federation.settings.clear()


# A hostile node.


def zstd(body: bytes) -> bytes:
    return b"".join(compressed(body))


def plan_named(name: str, compression: str) -> Plan:
    return heart_plan("fedavg", name=name, rounds=1, nodes=2, contribution=Contribution(compression=compression))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Rounds that wait for mallory and eve."""

    federation: Federation
    mallory: Peer
    eve: Peer

    def begin(self, plan: Plan) -> str:
        digest = self.federation.run(plan)
        for peer in (self.mallory, self.eve):
            assert isinstance(peer.work(wait_s=30.0).work, Train)
        return digest

    def end(self, plan: Plan, digest: str) -> dict[str, Tensor]:
        run = runs_of(plan)[0].id
        for peer in (self.mallory, self.eve):
            assert not isinstance(peer.work(wait_s=30.0).work, Train)
            assert peer.decline(run, 1).code == 0
        self.federation.finished(digest)
        return server_state(self.federation, run)


@pytest.fixture(params=["rows", "files"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, fork: Path) -> Iterator[Stage]:
    federation = Federation(tmp_path, [], fork=fork)
    federation.settings |= {"inline_bytes": 0, "heavy_bytes": 0} if request.param == "files" else {}
    federation.start()
    try:
        mallory, eve = (joined(federation, name, tmp_path) for name in ("mallory", "eve"))
        for peer in (mallory, eve):
            peer.work()
        yield Stage(federation=federation, mallory=mallory, eve=eve)
        for peer in (mallory, eve):
            peer.close()
    finally:
        federation.stop()


def large(spec: Contribution) -> bytes:
    """Above what is kept in memory, and honest but for its numbers."""
    return np.random.default_rng(0).bytes(70_000)


BODIES: dict[str, tuple[Callable[[Contribution], bytes], int, int]] = {
    "not compressed": (lambda spec: packed(good(spec)), 506, 400),
    "random bytes": (lambda spec: np.random.default_rng(1).bytes(2000), 506, 400),
    "nothing": (lambda spec: b"", 506, 400),
    "a bomb": (lambda spec: zstd(bytes(64 << 20)), 506, 400),
    "cut off": (lambda spec: zstd(packed(good(spec)))[:-1], 506, 400),
    "a byte behind it": (lambda spec: zstd(packed(good(spec))) + b"\x00", 506, 400),
    "two frames": (lambda spec: 2 * zstd(packed(good(spec))), 506, 400),
    "random bytes in a file": (large, 506, 400),
    "compressed, no tensors": (lambda spec: zstd(b"spam and eggs" * 9), 505, 400),
    "compressed in a file, no tensors": (lambda spec: zstd(large(spec)), 505, 400),
    "compressed, NaN": (lambda spec: zstd(packed(good(spec, float("nan")))), 505, 400),
    "compressed, a tensor less": (lambda spec: zstd(packed(dict(list(good(spec).items())[1:]))), 114, 422),
    "above the limit": (lambda spec: bytes(1 << 20), 504, 413),
}


def test_a_hostile_node_changes_nothing(stage: Stage) -> None:
    """Everything is refused with its number; then what is honest counts, to the same bits as without compression."""
    plain = plan_named("plain", "none")
    digest = stage.begin(plain)
    body = packed(good(runs_of(plain)[0].contribution))
    for peer in (stage.mallory, stage.eve):
        assert peer.contribute(runs_of(plain)[0].id, 0, body).code == 0
    expected = stage.end(plain, digest)

    plan = plan_named("packed", "zstd")
    digest, run = stage.begin(plan), runs_of(plan)[0]

    def refused(body: bytes, code: int, status: int, **headers: str | None) -> None:
        found = stage.mallory.contribute(run.id, 0, body, **headers)
        assert found[:2] == Answer(status, code)[:2], found

    for make, code, status in BODIES.values():
        refused(make(run.contribution), code, status, Content_Encoding="zstd")
    for encoding in (None, "gzip", "zstd, zstd", "ZSTD "):
        refused(zstd(body), 506, 400, Content_Encoding=encoding)
    refused(zstd(body), 503, 400, Content_Encoding="zstd", Freehold_Sha256=hashlib.sha256(body).hexdigest())
    assert not list((stage.federation.folder / "coordinator" / "blobs").glob(".incoming-*")), "nothing is left on the disk"

    for peer in (stage.mallory, stage.mallory, stage.eve):
        assert peer.contribute(run.id, 0, zstd(body), Content_Encoding="zstd").code == 0, "and once more changes nothing"
    found = stage.end(plan, digest)
    assert all(found[key].equal(value) for key, value in expected.items())
