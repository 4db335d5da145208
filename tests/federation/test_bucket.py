"""Everything large in a bucket of a real S3 server: the same study, the same bits, whoever dies in the middle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from freehold.errors import Unreachable
from freehold.plan import Plan, runs_of
from tests.federation.harness import Federation, heart_plan
from tests.federation.states import server_state
from tests.s3 import S3, s3

NODES = ["cleveland", "switzerland"]
ROUNDS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, server: S3, fork: Path) -> Iterator[Federation]:
    settings = {"blobs": server.url("cardio"), "inline_bytes": 0, "small_bytes": 0}  # nothing lies in a row
    found = Federation(tmp_path_factory.mktemp("b"), NODES, fork=fork, settings=settings)
    found.start()
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def undisturbed(federation: Federation, server: S3) -> dict[str, Tensor]:
    """The server state after a study in which nobody died."""
    plan = plan_named("undisturbed")
    federation.finished(federation.run(plan))
    return server_state(federation, runs_of(plan)[0].id, objects=server.objects("cardio"))


def plan_named(name: str) -> Plan:
    return heart_plan("scaffold-uniform", name=name, rounds=ROUNDS, nodes=len(NODES))


def check(federation: Federation, server: S3, name: str, undisturbed: dict[str, Tensor]) -> None:
    """The study of that name, begun before or only now, ends as if nobody had died."""
    plan = plan_named(name)
    results = federation.finished(federation.run(plan))
    assert {r.round: r.heard for r in results.rounds if r.round < ROUNDS} == dict.fromkeys(range(ROUNDS), NODES)
    found = server_state(federation, runs_of(plan)[0].id, objects=server.objects("cardio"))
    assert undisturbed.keys() == found.keys() and all(found[k].equal(v) for k, v in undisturbed.items())
    assert not list((federation.folder / "coordinator" / "blobs").iterdir()), "nothing stays on the coordinator's disk"


POINTS = ["coordinator.state.writing", "coordinator.contribution.writing", "coordinator.round.committed"]


@pytest.mark.parametrize("point", POINTS)
def test_the_bucket_goes_away_in_the_middle_of_a_study(
    federation: Federation, server: S3, undisturbed: dict[str, Tensor], tmp_path: Path, point: str
) -> None:
    held = tmp_path / "held"
    federation.coordinator.stop()
    federation.start_coordinator(f"{point}=hold:{held}@3")
    name = f"away-{point.replace('.', '-')}"
    digest = federation.run(plan_named(name))
    federation.until(held.exists)
    server.kill()
    held.unlink()
    # A state is tried again by the coordinator, a contribution by its node, as is the fetching of a state.
    failed = "coordinator.error" if "state" in point else "request.refused"
    assert federation.coordinator.wait_for(failed)["code"] == 410
    assert federation.study(digest).state == "running"
    server.start()
    check(federation, server, name, undisturbed)


KILLS = ["state.writing", "state.named", "contribution.writing", "contribution.named"]
KILLS += ["contribution.committed", "round.committing", "round.committed"]


@pytest.mark.parametrize("point", KILLS)
def test_the_coordinator_dies(federation: Federation, server: S3, undisturbed: dict[str, Tensor], point: str) -> None:
    federation.coordinator.stop()
    federation.start_coordinator(f"coordinator.{point}=kill@3")
    name = point.replace(".", "-")
    with contextlib.suppress(Unreachable):  # it may die before it answers
        federation.run(plan_named(name))
    assert federation.coordinator.wait_end() == -9
    federation.start_coordinator()
    check(federation, server, name, undisturbed)


def test_both_die_and_the_bucket_comes_back_first(federation: Federation, server: S3, undisturbed: dict[str, Tensor]) -> None:
    plan = plan_named("both")
    federation.run(plan)
    federation.coordinator.wait_for("round.closed", run=runs_of(plan)[0].id, round=1)
    server.kill()
    federation.coordinator.kill()
    server.start()
    federation.start_coordinator()
    check(federation, server, "both", undisturbed)
