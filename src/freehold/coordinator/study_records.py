"""What studies write to and read from the store, a function each over a connection; whoever calls commits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from freehold.coordinator.store import Put
from freehold.coordinator.study_tables import contributions, measures, rounds, runs, schedules, studies

Row = sa.Row[Any]


def insert_study(
    connection: sa.Connection,
    *,
    digest: str,
    name: str,
    plan: str,
    signature: str | None,
    now: float,
    runs_: Sequence[tuple[str, int]],
    by: str = "operator",
) -> bool:
    """A study and its runs (id, number), all waiting; False if it is there already."""
    if connection.execute(sa.select(studies.c.digest).where(studies.c.digest == digest)).first() is not None:
        return False
    connection.execute(
        sa.insert(studies).values(digest=digest, name=name, plan=plan, signature=signature, state="running", started=now, by=by)
    )
    rows = [{"id": i, "study": digest, "number": n, "state": "waiting", "round": 0} for i, n in runs_]
    connection.execute(sa.insert(runs), rows)
    return True


def insert_schedule(connection: sa.Connection, study: str, *, every_s: float, times: int | None, now: float) -> None:
    """A study's schedule; its first cycle begins now."""
    connection.execute(sa.insert(schedules).values(study=study, every_s=every_s, times=times, cycle=0, due=now + every_s))


def schedule_of(connection: sa.Connection, study: str) -> Row | None:
    """A study's schedule, if it has one."""
    return connection.execute(sa.select(schedules).where(schedules.c.study == study)).first()


def resting(study: str) -> sa.Select[tuple[str]]:
    """Asks for the runs of a study that rest."""
    return sa.select(runs.c.id).where(runs.c.study == study, runs.c.state == "resting")


def begin_cycle(connection: sa.Connection, study: str, *, cycle: int, due: float) -> None:
    """All runs that rest wait to be opened; `due` is when the next cycle may begin."""
    connection.execute(sa.update(schedules).where(schedules.c.study == study).values(cycle=cycle, due=due))
    connection.execute(sa.update(runs).where(runs.c.study == study, runs.c.state == "resting").values(state="waiting"))


def nothing_open(connection: sa.Connection, study: str) -> bool:
    """Whether all runs of a study rest or are over."""
    going = sa.select(runs.c.id).where(runs.c.study == study, runs.c.state.in_(("waiting", "training", "measuring")))
    return connection.execute(going).first() is None


def running(connection: sa.Connection) -> Sequence[Row]:
    """Studies that are running, the oldest first."""
    return connection.execute(sa.select(studies).where(studies.c.state == "running").order_by(studies.c.started)).all()


def study_of(connection: sa.Connection, digest: str) -> tuple[Row, Sequence[Row]]:
    """A study, and its runs."""
    study = connection.execute(sa.select(studies).where(studies.c.digest == digest)).one()
    return study, connection.execute(sa.select(runs).where(runs.c.study == digest)).all()


def starter_of(connection: sa.Connection, digest: str) -> str:
    """Who started a study: a role and a name, or "operator" for the coordinator's own machine."""
    return str(connection.execute(sa.select(studies.c.by).where(studies.c.digest == digest)).scalar_one())


def is_running(connection: sa.Connection, digest: str) -> bool:
    """Whether a study is neither finished nor stopped."""
    return connection.execute(sa.select(studies.c.state).where(studies.c.digest == digest)).scalar() == "running"


def open_round(
    connection: sa.Connection,
    *,
    run: str,
    round: int,
    cohort: Sequence[str],
    population: int,
    now: float,
    deadline: float,
    state: str,
) -> None:
    """Ask a cohort."""
    connection.execute(
        sa.insert(rounds).values(
            run=run, round=round, cohort=",".join(cohort), population=population, opened=now, deadline=deadline
        )
    )
    connection.execute(sa.update(runs).where(runs.c.id == run).values(round=round, state=state))


def put_states(connection: sa.Connection, run: str, *, server: str, shared: str) -> list[str]:
    """The run's new states; the blobs that it no longer refers to."""
    old = connection.execute(sa.select(runs.c.server, runs.c.shared).where(runs.c.id == run)).one()
    connection.execute(sa.update(runs).where(runs.c.id == run).values(server=server, shared=shared))
    return [sha256 for sha256 in old if sha256 is not None]


def states_of(connection: sa.Connection, run: str) -> tuple[str, str]:
    """The blobs of a run's states: server, and what nodes see of it."""
    row = connection.execute(sa.select(runs.c.server, runs.c.shared).where(runs.c.id == run)).one()
    return str(row.server), str(row.shared)


_INSERT = sa.insert(contributions)
_BEFORE = sa.select(contributions.c.node, contributions.c.sha256).where(
    contributions.c.run == sa.bindparam("run"),
    contributions.c.round == sa.bindparam("round"),
    contributions.c.node.in_(sa.bindparam("nodes", expanding=True)),
)


_ROUND = (rounds.c.run == sa.bindparam("run"), rounds.c.round == sa.bindparam("round"))
# Other coordinators may close a round in another transaction: they then wait for this one, or this one sees it closed.
_CLOSED = sa.select(rounds.c.closed).where(*_ROUND).with_for_update(read=True)
_LOCK = sa.select(rounds.c.run).where(*_ROUND).with_for_update()
_SENDERS = sa.select(contributions.c.node).where(
    contributions.c.run == sa.bindparam("run"), contributions.c.summed == sa.bindparam("round")
)


def is_closed(connection: sa.Connection, run: str, round: int) -> bool:
    """Whether a round that was opened is closed."""
    return connection.execute(_CLOSED, {"run": run, "round": round}).scalar() is not None


def senders(connection: sa.Connection, run: str, round: int) -> set[str]:
    """Whose contributions to an open round are stored; no more can be until the transaction ends."""
    key = {"run": run, "round": round}
    connection.execute(_LOCK, key)
    return set(connection.execute(_SENDERS, key).scalars())


def place_of(connection: sa.Connection, run: str) -> tuple[str, int]:
    """Where a run is: its state, and the index of its open round."""
    row = connection.execute(sa.select(runs.c.state, runs.c.round).where(runs.c.id == run)).one()
    return row.state, row.round


class Arrived(NamedTuple):
    """A contribution that is to be entered."""

    run: str
    round: int
    """That asked for it."""
    node: str
    put: Put
    weight: float
    received: float
    summed: int
    """The round in whose sum it is."""
    sandbox: str = ""
    """The level that it was trained in, by its node's word."""


def insert_contributions(connection: sa.Connection, arrived: Sequence[Arrived]) -> list[str | None]:
    """Enter contributions; for each None, or the digest of the one that its node has sent to that round before."""
    before: dict[tuple[str, int, str], str] = {}
    for run, round in {(each.run, each.round) for each in arrived}:
        nodes = [each.node for each in arrived if (each.run, each.round) == (run, round)]
        for row in connection.execute(_BEFORE, {"run": run, "round": round, "nodes": nodes}):
            before[run, round, row.node] = row.sha256
    found, fresh = [], []
    for each in arrived:
        key = each.run, each.round, each.node
        found.append(before.get(key))
        if key not in before:
            before[key] = each.put.sha256
            values = {**each._asdict(), **each.put._asdict(), "counted": None}
            del values["put"]
            fresh.append(values)
    if fresh:
        connection.execute(_INSERT, fresh)
    return found


_OPEN = (contributions.c.run == sa.bindparam("of_run"), contributions.c.summed == sa.bindparam("of_round"))
_PLACES = sa.select(contributions.c.place).where(*_OPEN, contributions.c.place.is_not(None))
_SETTLE = sa.update(contributions).where(*_OPEN).values(counted=False, body=None, place=None)
_COUNT = (
    sa.update(contributions)
    .where(*_OPEN, contributions.c.node.in_(sa.bindparam("nodes", expanding=True)))
    .values(counted=True, body=None, place=None)
)
_CLOSE = (
    sa.update(rounds)
    .where(rounds.c.run == sa.bindparam("of_run"), rounds.c.round == sa.bindparam("of_round"))
    .values(closed=sa.bindparam("now"), heard=sa.bindparam("count"), weight=sa.bindparam("sum"))
)


def close_round(
    connection: sa.Connection, *, run: str, round: int, counted: Mapping[str, str], weight: float, now: float
) -> list[str]:
    """Settle a round: whose contributions counted. Their bytes can go; the places of those that lie in files."""
    key = {"of_run": run, "of_round": round}
    places = [place for place in connection.execute(_PLACES, key).scalars() if place is not None]
    connection.execute(_SETTLE, key)
    connection.execute(_COUNT, {**key, "nodes": list(counted)})
    connection.execute(_CLOSE, {**key, "now": now, "count": len(counted), "sum": weight})
    return places


def extend(connection: sa.Connection, *, run: str, round: int, cohort: Sequence[str], population: int, deadline: float) -> None:
    """Go on waiting, perhaps for others."""
    where = (rounds.c.run == run, rounds.c.round == round)
    connection.execute(sa.update(rounds).where(*where).values(cohort=",".join(cohort), population=population, deadline=deadline))


def withdraw(connection: sa.Connection, *, run: str, round: int, node: str) -> None:
    """Ask a node no longer in a round."""
    where = (rounds.c.run == run, rounds.c.round == round)
    asked = connection.execute(sa.select(rounds.c.cohort).where(*where).with_for_update()).scalar_one()
    left = ",".join(name for name in asked.split(",") if name != node)
    connection.execute(sa.update(rounds).where(*where).values(cohort=left))


def round_of(connection: sa.Connection, run: str, round: int) -> Row | None:
    """A round's row, if it was opened."""
    return connection.execute(sa.select(rounds).where(rounds.c.run == run, rounds.c.round == round)).first()


def received(connection: sa.Connection, run: str, round: int, nodes: Sequence[str] | None = None) -> Sequence[Row]:
    """The contributions in a round's sum, by node; `nodes`: of no others."""
    where = [contributions.c.run == run, contributions.c.summed == round]
    if nodes is not None:
        where.append(contributions.c.node.in_(nodes))
    return connection.execute(sa.select(contributions).where(*where).order_by(contributions.c.node)).all()


def contribution_of(connection: sa.Connection, run: str, round: int, node: str) -> Row | None:
    """What a node has sent for the work that it was given in a round."""
    where = (contributions.c.run == run, contributions.c.round == round, contributions.c.node == node)
    return connection.execute(sa.select(contributions).where(*where)).first()


def last_summed(connection: sa.Connection, run: str, node: str) -> int | None:
    """The last round in whose sum this node is; None if it is in none."""
    where = (contributions.c.run == run, contributions.c.node == node)
    found: int | None = connection.execute(sa.select(sa.func.max(contributions.c.summed)).where(*where)).scalar()
    return found


def cohorts_of(connection: sa.Connection, run: str, rounds_: Iterable[int]) -> dict[int, frozenset[str]]:
    """Round -> whom it asked, of some rounds."""
    query = sa.select(rounds.c.round, rounds.c.cohort).where(rounds.c.run == run, rounds.c.round.in_(list(rounds_)))
    return {row.round: frozenset(filter(None, row.cohort.split(","))) for row in connection.execute(query)}


_COUNTED = (
    sa.select(rounds.c.closed, runs.c.state, contributions.c.sha256, contributions.c.counted)
    .select_from(
        rounds.join(runs, runs.c.id == rounds.c.run).outerjoin(
            contributions,
            sa.and_(
                contributions.c.run == rounds.c.run,
                contributions.c.round == rounds.c.round,
                contributions.c.node == sa.bindparam("node"),
            ),
        )
    )
    .where(rounds.c.run == sa.bindparam("run"), rounds.c.round == sa.bindparam("round"))
)


def counted_of(connection: sa.Connection, node: str, pending: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str | None]:
    """(run, round) -> the digest of this node's contribution if it counted, "" if it did not, None while the round is open."""
    found: dict[tuple[str, int], str | None] = {}
    for run, round_ in pending:
        row = connection.execute(_COUNTED, {"run": run, "round": round_, "node": node}).first()
        if row is not None and row.closed is None and row.state != "stopped":
            found[run, round_] = None
        else:
            found[run, round_] = row.sha256 if row is not None and row.counted else ""
    return found


class Answer(NamedTuple):
    """What a node measured, or why it did not."""

    run: str
    round: int
    node: str
    body: str


_MEASURE = sa.insert(measures)
_MEASURED = sa.select(measures.c.node).where(
    measures.c.run == sa.bindparam("run"),
    measures.c.round == sa.bindparam("round"),
    measures.c.node.in_(sa.bindparam("nodes", expanding=True)),
)


def put_measures(connection: sa.Connection, answers: Sequence[Answer]) -> None:
    """Enter what nodes measured; a second answer of one changes nothing."""
    first: dict[tuple[str, int, str], Answer] = {}
    for each in answers:
        first.setdefault((each.run, each.round, each.node), each)
    for run, round in {key[:2] for key in first}:
        nodes = [key[2] for key in first if key[:2] == (run, round)]
        for node in connection.execute(_MEASURED, {"run": run, "round": round, "nodes": nodes}).scalars():
            del first[run, round, node]
    if first:
        connection.execute(_MEASURE, [each._asdict() for each in first.values()])


def measures_of(connection: sa.Connection, run: str, round: int) -> dict[str, str]:
    """Node -> what it measured, as JSON."""
    found = connection.execute(
        sa.select(measures.c.node, measures.c.body).where(measures.c.run == run, measures.c.round == round)
    )
    return {row.node: row.body for row in found}


def set_run_state(connection: sa.Connection, run: str, state: str) -> None:
    """Finished, or stopped."""
    connection.execute(sa.update(runs).where(runs.c.id == run).values(state=state))


def end_study(connection: sa.Connection, digest: str, *, state: str, now: float, reason: str | None = None) -> None:
    """Finished, stopped or failed, with all its runs."""
    connection.execute(sa.update(studies).where(studies.c.digest == digest).values(state=state, ended=now, reason=reason))
    over = sa.and_(runs.c.study == digest, runs.c.state != "finished")
    connection.execute(sa.update(runs).where(over).values(state="stopped"))
