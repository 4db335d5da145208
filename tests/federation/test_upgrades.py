"""A coordinator that is upgraded in the middle of a study: its tables are migrated, and the study goes on where it was."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from torch import Tensor

from freehold.coordinator import migrate
from freehold.coordinator.store import connect
from freehold.plan import Plan, runs_of
from tests.federation.harness import Federation, heart_plan
from tests.federation.states import in_step, server_state

NODES = ["cleveland", "hungary", "switzerland"]
ROUNDS = 4

LATER = '''
"""A migration of a release that is yet to come: it changes a table of rounds, rewrites rows, and makes another table."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "later", {before!r}, None, None


def upgrade():
    with op.batch_alter_table("rounds") as batch:
        batch.add_column(sa.Column("remark", sa.Text()))
    op.execute("update rounds set remark = 'in round ' || round")
    op.create_table("remarks", sa.Column("remark", sa.Text(), primary_key=True))
    op.execute("insert into remarks select distinct remark from rounds")
'''


@pytest.fixture
def federation(tmp_path: Path, fork: Path) -> Iterator[Federation]:
    found = Federation(tmp_path, NODES, fork=fork)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def database(federation: Federation) -> Path:
    return federation.folder / "coordinator" / "coordinator.sqlite"


def stopped_in_the_middle(federation: Federation, held: Path) -> str:
    """A study of which two of three have contributed to round 1, and the coordinator is stopped; its digest."""
    federation.nodes["hungary"].stop()
    federation.start_node("hungary", f"trainer.answering=hold:{held}@3")  # it opened the study, and trained once
    digest = federation.run(plan_named("upgraded"))
    federation.until(held.exists)
    run, others = runs_of(plan_named("upgraded"))[0].id, ("cleveland", "switzerland")
    # Their answers come with the next piece of work, for which they would have to wait.
    told = federation.coordinator.told
    federation.until(lambda: all(told("contribution.received", run=run, round=1, node=node) for node in others))
    federation.coordinator.stop()
    return digest


def plan_named(name: str) -> Plan:
    return heart_plan("scaffold-uniform", name=name, rounds=ROUNDS, nodes=len(NODES))


def goes_on(federation: Federation, held: Path) -> None:
    """The study ends, bit by bit as one that nothing disturbed."""
    federation.start_coordinator()
    held.unlink()
    states: dict[str, dict[str, Tensor]] = {}
    for name in ("upgraded", "undisturbed"):
        plan = plan_named(name)
        results = federation.finished(federation.run(plan))
        assert {r.round: r.heard for r in results.rounds if r.round < ROUNDS} == dict.fromkeys(range(ROUNDS), NODES)
        in_step(federation, runs_of(plan)[0].id, NODES)
        states[name] = server_state(federation, runs_of(plan)[0].id)
        federation.nodes["hungary"].stop()
        federation.start_node("hungary")  # a trainer that nothing holds
    assert all(states["upgraded"][key].equal(value) for key, value in states["undisturbed"].items())


def test_the_last_migration_in_the_middle_of_a_study(federation: Federation, tmp_path: Path) -> None:
    """The database is made over as the release before would have left it: its tables, with what they have room for."""
    config = Config()
    config.set_main_option("script_location", "freehold.coordinator:migrations")
    scripts = ScriptDirectory.from_config(config)
    before = scripts.get_revision(migrate.LATEST).down_revision
    if before is None:
        # Nothing to come from: then this must be the only one. The test below migrates all the same.
        assert [script.revision for script in scripts.walk_revisions()] == [migrate.LATEST]
        return
    held = tmp_path / "held"
    stopped_in_the_middle(federation, held)
    as_of(database(federation), str(before), config)
    goes_on(federation, held)
    assert version(federation) == migrate.LATEST


def test_a_migration_to_come_in_the_middle_of_a_study(federation: Federation, tmp_path: Path) -> None:
    held, migrations = tmp_path / "held", tmp_path / "migrations"
    digest = stopped_in_the_middle(federation, held)
    shutil.copytree(Path(migrate.__file__).with_name("migrations"), migrations)
    (migrations / "versions" / "later.py").write_text(LATER.format(before=migrate.LATEST))
    federation.settings["migrations"] = str(migrations)
    goes_on(federation, held)
    assert version(federation) == "later" and federation.study(digest).state == "finished"
    with sqlite3.connect(database(federation)) as connection:
        told = connection.execute("select remark from remarks order by remark").fetchall()
    connection.close()
    assert told == [("in round 0",), ("in round 1",)], "it was migrated in round 1"


def version(federation: Federation) -> str | None:
    engine = connect(f"sqlite:///{database(federation)}")
    try:
        return migrate.version(engine)
    finally:
        engine.dispose()


def as_of(path: Path, revision: str, config: Config) -> None:
    """Make a database over into the tables of an earlier revision."""
    old = path.with_name("before.sqlite")
    engine = connect(f"sqlite:///{old}")
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        seen = sa.inspect(connection)
        tables = {name: [c["name"] for c in seen.get_columns(name)] for name in seen.get_table_names()}
    engine.dispose()
    copy = sqlite3.connect(old)
    copy.execute("attach ? as new", (str(path),))
    there = {row[0] for row in copy.execute("select name from new.sqlite_master where type = 'table'")}
    for table in sorted(there & tables.keys() - {"alembic_version"}):
        kept = [row[1] for row in copy.execute(f"pragma new.table_info({table})") if row[1] in tables[table]]
        names = ", ".join(f'"{name}"' for name in kept)
        copy.execute(f'delete from main."{table}"')  # a migration may enter rows of its own
        copy.execute(f'insert into main."{table}" ({names}) select {names} from new."{table}"')
    copy.commit()
    copy.execute("detach new")
    copy.close()
    for suffix in ("-wal", "-shm"):
        for each in (path, old):
            each.with_name(each.name + suffix).unlink(missing_ok=True)
    old.replace(path)
