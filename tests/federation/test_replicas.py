"""Two coordinators over one PostgreSQL and one bucket: either serves nodes, one closes rounds, each may die or freeze."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy as sa
from torch import Tensor

from freehold.errors import Denied
from freehold.plan import Plan, dumps, runs_of
from freehold.testing import forkserver
from freehold.wire.admin import Admin, Done, Results, Status, StudyRequest, StudyStarted, Subject
from tests.federation.forwarder import Forwarder
from tests.federation.harness import HOSPITALS, Federation, Process, heart_plan
from tests.federation.states import server_state
from tests.ports import free_port
from tests.postgres import Postgres, postgres
from tests.s3 import S3, s3

NODES = list(HOSPITALS)
ROUNDS = 6
LEASE_S = 3.0
POINTS = [
    "coordinator.round.committing",
    "coordinator.round.committed",
    "coordinator.contribution.committed",
]
LEASE_POINTS = ["coordinator.lease.committing", "coordinator.lease.committed"]


class Pair:
    """Two coordinators and four nodes: two know one, two the other, each through a forwarder that can point elsewhere.

    The first leads.
    """

    def __init__(self, folder: Path, fork: Path, database: str, blobs: str, failpoints: str, large: bool) -> None:
        self.database, self._fork = database, fork
        self._settings: dict[str, object] = {"database": database, "blobs": blobs, "lease_s": LEASE_S}
        if large:
            self._settings |= {"inline_bytes": 0, "small_bytes": 0}
        self.federation = Federation(folder, NODES, fork=fork, settings=self._settings)
        self.objects: Path | None = None
        self.running: list[Process] = []
        self.doors: list[Forwarder] = []
        try:
            self._begin(failpoints)
        except BaseException:
            self.stop()
            raise

    def _begin(self, failpoints: str) -> None:
        folder = self.federation.folder
        self.federation.start_coordinator(failpoints, wait=False)
        self.first = self.federation.coordinator
        self.running.append(self.first)
        self.first.wait_for("coordinator.started")
        shutil.copytree(folder / "coordinator" / "authority", folder / "second" / "authority")
        self.second_port = free_port()
        self.second = self.start("second", self.second_port)
        self.second.wait_for("coordinator.started")
        self.doors += [Forwarder(port) for port in (self.federation.port, self.second_port)]

    def start_nodes(self) -> None:
        """Start them, and wait until all are connected."""
        for place, name in enumerate(NODES):
            self.federation.urls[name] = f"https://127.0.0.1:{self.doors[place % 2].port}"
            self.federation.start_node(name, wait=False)
        for name in NODES:
            self.federation.nodes[name].wait_for("coordinator.connected")

    def start(self, state: str, port: int) -> Process:
        """Start a coordinator."""
        folder = self.federation.folder
        arguments = ["coordinator", str(folder / state), str(port), json.dumps(self._settings)]
        environment = {forkserver.VARIABLE: str(self._fork), "FREEHOLD_FAILPOINTS": ""}
        self.running.append(Process(arguments, folder / f"{state}.log", environment=environment))
        return self.running[-1]

    def admin(self, state: str) -> Admin:
        """The administration of one of the two."""
        return Admin(self.federation.folder / state / "admin.sock")

    def all_to(self, port: int) -> None:
        """What a load balancer does that has noticed who is gone."""
        for door in self.doors:
            door.target = port
            door.cut()

    def run(self, plan: Plan, state: str = "second") -> str:
        """Start a study at one of the two."""
        return self.admin(state).post("/v1/studies", StudyRequest(plan=dumps(plan)), StudyStarted).digest

    def finished(self, digest: str, state: str) -> Results:
        """The study's results, once it is finished."""
        self.federation.admin = self.admin(state)
        return self.federation.finished(digest)

    def stop(self) -> None:
        for door in self.doors:
            door.close()
        for process in self.running:
            process.popen.send_signal(signal.SIGCONT)
            process.kill()
        if self.running:
            self.federation.stop()


class Servers(NamedTuple):
    """What the coordinators share."""

    database: Postgres
    bucket: S3


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with postgres() as database, s3() as bucket, pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        yield Servers(database, bucket)


@contextmanager
def pair_of(
    folder: Path,
    fork: Path,
    servers: Servers,
    failpoints: str = "",
    *,
    nodes: bool = True,
    large: bool = False,
    kind: type[Pair] = Pair,
) -> Iterator[Pair]:
    """A pair over a database of its own; `nodes`: whose nodes are connected; `large`: that has nothing in a row."""
    name = f"t{os.urandom(6).hex()}"
    engine = sa.create_engine(servers.database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    engine.dispose()
    url = servers.database.url.replace("/postgres?", f"/{name}?")
    found = kind(folder, fork, url, servers.bucket.url(name), failpoints, large)
    found.objects = servers.bucket.objects(name)
    try:
        if nodes:
            found.start_nodes()
        yield found
    finally:
        found.stop()


PLAN = heart_plan("scaffold-uniform", name="replicas", rounds=ROUNDS, nodes=len(NODES))
RUN = runs_of(PLAN)[0].id


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, fork: Path) -> dict[str, Tensor]:
    """The server state that one coordinator over SQLite comes to, undisturbed."""
    alone = Federation(tmp_path_factory.mktemp("alone"), NODES, fork=fork)
    alone.start()
    try:
        alone.finished(alone.run(PLAN))
        return server_state(alone, RUN)
    finally:
        alone.stop()


def assert_undisturbed(pair: Pair, results: Results, expected: dict[str, Tensor]) -> None:
    """Every contribution of every round counted, once: the server state has the bits of the undisturbed run."""
    assert [sorted(r.heard) for r in results.rounds if r.round < ROUNDS] == [sorted(NODES)] * ROUNDS
    found = server_state(pair.federation, RUN, url=pair.database, objects=pair.objects)
    assert expected.keys() == found.keys() and all(found[k].equal(v) for k, v in expected.items())


def test_a_pair_that_does_not_come_up_leaves_no_process(tmp_path: Path, fork: Path, servers: Servers) -> None:
    made: list[Process] = []

    class Halved(Pair):
        def start(self, state: str, port: int) -> Process:
            made.append(self.first)
            raise AssertionError("the second one cannot be started")

    with pytest.raises(AssertionError, match="cannot be started"), pair_of(tmp_path, fork, servers, kind=Halved):
        pass
    (first,) = made
    assert first.popen.poll() is not None


@pytest.mark.parametrize("large", [False, True])
def test_nodes_of_two_coordinators_train_together(
    tmp_path: Path, fork: Path, servers: Servers, expected: dict[str, Tensor], large: bool
) -> None:
    with pair_of(tmp_path, fork, servers, large=large) as pair:
        digest = pair.run(PLAN)  # asked of the one that follows
        assert_undisturbed(pair, pair.finished(digest, "coordinator"), expected)
        assert {n.name for n in pair.admin("second").get("/v1/status", Status).nodes} == set(NODES)


@pytest.mark.parametrize("point", POINTS)
def test_the_leader_is_killed_within_a_study(
    tmp_path: Path, fork: Path, servers: Servers, expected: dict[str, Tensor], point: str
) -> None:
    with pair_of(tmp_path, fork, servers, f"{point}=kill@3", large=True) as pair:
        digest = pair.run(PLAN)
        assert pair.first.wait_end() == -signal.SIGKILL
        pair.all_to(pair.second_port)
        pair.second.wait_for("coordinator.leading")
        assert_undisturbed(pair, pair.finished(digest, "second"), expected)


@pytest.mark.parametrize("point", LEASE_POINTS)
def test_the_leader_is_killed_while_it_renews(
    tmp_path: Path, fork: Path, servers: Servers, expected: dict[str, Tensor], point: str
) -> None:
    with pair_of(tmp_path, fork, servers, f"{point}=kill@4", nodes=False) as pair:
        assert pair.first.wait_end() == -signal.SIGKILL
        pair.second.wait_for("coordinator.leading")
        pair.all_to(pair.second_port)
        pair.federation.admin = pair.admin("second")
        pair.start_nodes()
        assert_undisturbed(pair, pair.finished(pair.run(PLAN), "second"), expected)


def test_the_one_that_follows_is_killed_within_a_study(
    tmp_path: Path, fork: Path, servers: Servers, expected: dict[str, Tensor]
) -> None:
    with pair_of(tmp_path, fork, servers) as pair:
        digest = pair.run(PLAN)
        pair.second.wait_for("contribution.received", round=2)
        pair.second.kill()
        pair.all_to(pair.federation.port)
        assert_undisturbed(pair, pair.finished(digest, "coordinator"), expected)


def test_a_leader_that_was_frozen_does_no_harm_when_it_goes_on(
    tmp_path: Path, fork: Path, servers: Servers, expected: dict[str, Tensor]
) -> None:
    with pair_of(tmp_path, fork, servers) as pair:
        digest = pair.run(PLAN)
        pair.first.wait_for("round.closed", round=1)
        pair.first.popen.send_signal(signal.SIGSTOP)
        pair.all_to(pair.second_port)
        pair.second.wait_for("coordinator.leading")
        pair.second.wait_for("round.closed", round=2)
        pair.first.popen.send_signal(signal.SIGCONT)
        assert_undisturbed(pair, pair.finished(digest, "second"), expected)


def test_a_leader_that_is_stopped_is_followed_at_once(
    tmp_path: Path, fork: Path, servers: Servers, expected: dict[str, Tensor]
) -> None:
    with pair_of(tmp_path, fork, servers) as pair:
        digest = pair.run(PLAN)
        pair.first.wait_for("round.closed", round=1)
        assert pair.first.stop() == 0
        pair.all_to(pair.second_port)
        pair.second.wait_for("coordinator.leading")
        assert_undisturbed(pair, pair.finished(digest, "second"), expected)


def test_the_database_goes_away_under_both(tmp_path: Path, fork: Path, servers: Servers, expected: dict[str, Tensor]) -> None:
    with pair_of(tmp_path, fork, servers) as pair:
        digest = pair.run(PLAN)
        pair.second.wait_for("contribution.received", round=1)
        servers.database.stop("immediate")
        servers.database.start()
        assert_undisturbed(pair, pair.finished(digest, "second"), expected)


def test_who_is_denied_at_one_is_cut_off_at_the_other(tmp_path: Path, fork: Path, servers: Servers) -> None:
    with pair_of(tmp_path, fork, servers) as pair:
        away = NODES[1]  # connected to the second
        pair.admin("coordinator").post("/v1/deny", Subject(name=f"node/{away}", reason="lost"), Done)
        refused = pair.federation.nodes[away].wait_for("coordinator.refused")
        assert refused["code"] == Denied.code
        pair.federation.until(
            lambda: {n.name for n in pair.admin("second").get("/v1/status", Status).nodes} == set(NODES) - {away}
        )


def test_a_study_is_stopped_at_the_other_coordinator(tmp_path: Path, fork: Path, servers: Servers) -> None:
    with pair_of(tmp_path, fork, servers) as pair:
        digest = pair.run(heart_plan("fedavg", name="long", rounds=100_000, nodes=len(NODES)), "coordinator")
        pair.first.wait_for("round.closed", round=1)
        pair.admin("second").post("/v1/studies/stop", Subject(name=digest), Done)
        # The one that led has let go of it, and leads the next one.
        results = pair.finished(pair.run(PLAN), "coordinator")
        assert len(results.rounds) == ROUNDS + 1
        assert pair.federation.study(digest).state == "stopped"


def test_a_coordinator_of_another_federation_does_not_start(tmp_path: Path, fork: Path, servers: Servers) -> None:
    with pair_of(tmp_path, fork, servers) as pair:
        stranger = pair.start("stranger", 0)
        assert stranger.wait_end() != 0
        assert "belongs to the federation" in stranger.log.read_text()


def test_a_coordinator_whose_blobs_lie_elsewhere_does_not_start(tmp_path: Path, fork: Path, servers: Servers) -> None:
    with pair_of(tmp_path, fork, servers, nodes=False) as pair:
        shutil.copytree(tmp_path / "coordinator" / "authority", tmp_path / "third" / "authority")
        del pair._settings["blobs"]
        third = pair.start("third", 0)
        assert third.wait_end() != 0
        assert "where this one would not find them" in third.log.read_text()
