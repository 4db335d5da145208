"""A coordinator whose disk is really full, a small one in a mount namespace of its own; all bodies and states are files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from freehold.plan import Plan, runs_of
from tests.federation.harness import Federation, heart_plan
from tests.federation.states import in_step, server_state
from tests.unit.node.test_full_disk import DISK_BYTES, PAGE, UNSHARE, fill, possible

pytestmark = pytest.mark.skipif(not possible(), reason="this user may not mount a small disk here")

NODES = ["cleveland", "hungary", "switzerland"]
ROUNDS = 4


class OnSmallDisk(Federation):
    """A federation whose coordinator has its blobs on a disk of 4 MiB."""

    @property
    def blobs(self) -> Path:
        return self.folder / "coordinator" / "blobs"

    @property
    def filler(self) -> Path:
        """A file beside the blobs, as the coordinator's process sees them."""
        return Path(f"/proc/{self.coordinator.popen.pid}/root{self.blobs}/filler")

    def around(self, name: str) -> Sequence[str]:
        if name != "coordinator":
            return ()
        self.blobs.mkdir(parents=True, exist_ok=True)
        mount = f'mount -t tmpfs -o size={DISK_BYTES} none "$0" && exec "$@"'
        return [*UNSHARE, "sh", "-c", mount, str(self.blobs)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, fork: Path) -> Iterator[OnSmallDisk]:
    settings = {"inline_bytes": 0, "small_bytes": 0}
    found = OnSmallDisk(tmp_path_factory.mktemp("full"), NODES, fork=fork, settings=settings)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def server_file(federation: OnSmallDisk, plan: Plan) -> dict[str, Tensor]:
    root = Path(f"/proc/{federation.coordinator.popen.pid}/root")
    return server_state(federation, runs_of(plan)[0].id, objects=root / str(federation.blobs).lstrip("/"))


@pytest.fixture(scope="module")
def undisturbed(federation: OnSmallDisk) -> dict[str, Tensor]:
    plan = heart_plan("scaffold-uniform", name="undisturbed", rounds=ROUNDS, nodes=len(NODES))
    federation.finished(federation.run(plan))
    return server_file(federation, plan)


@pytest.mark.parametrize("pages", range(7))
def test_a_disk_with_so_many_pages_left(
    federation: OnSmallDisk, undisturbed: dict[str, Tensor], tmp_path: Path, pages: int
) -> None:
    """What does not fit is not acknowledged, or its step is done again; with room the study ends as if nothing had happened."""
    held, hungary = tmp_path / "held", federation.nodes["hungary"]
    hungary.stop()
    federation.start_node("hungary", f"trainer.answering=hold:{held}@3")  # it opened the study, and trained once
    plan = heart_plan("scaffold-uniform", name=f"full-{pages}", rounds=ROUNDS, nodes=len(NODES))
    digest = federation.run(plan)
    federation.until(held.exists)
    hungary = federation.nodes["hungary"]
    try:
        fill(federation.filler, pages * PAGE)
        held.unlink()
        federation.until(
            lambda: (
                hungary.told("coordinator.refused", code=410)
                or federation.coordinator.told("coordinator.error", code=410)
                or federation.study(digest).state != "running"
            )
        )
        if pages == 0:
            assert hungary.told("coordinator.refused", code=410)
    finally:
        os.unlink(federation.filler)
    heard = {r.round: r.heard for r in federation.finished(digest).rounds if r.round < ROUNDS}
    assert heard == dict.fromkeys(range(ROUNDS), NODES)
    state = server_file(federation, plan)
    in_step(federation, runs_of(plan)[0].id, NODES, state)
    assert all(state[key].equal(value) for key, value in undisturbed.items())
