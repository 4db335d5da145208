"""Migrations and the tables in the code say the same, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from freehold.coordinator import enrolment_tables, replica_tables, study_tables, witness
from freehold.coordinator.migrate import LATEST, upgrade, version
from freehold.coordinator.schema import metadata
from freehold.coordinator.store import connect
from freehold.errors import StoreError
from tests.postgres import postgres

assert enrolment_tables and replica_tables and study_tables and witness


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    if request.param == "sqlite":
        yield connect(f"sqlite:///{tmp_path / 'coordinator.sqlite'}")
        return
    with postgres() as server:
        found = connect(server.url)
        yield found
        found.dispose()


def test_an_empty_database_gets_the_tables_that_the_code_knows(engine: sa.Engine) -> None:
    assert version(engine) is None
    upgrade(engine)
    assert version(engine) == LATEST
    with engine.connect() as connection:
        assert not compare_metadata(MigrationContext.configure(connection), metadata)
    upgrade(engine)  # nothing to do


def test_what_the_first_release_wrote_is_there_after_the_migration(engine: sa.Engine) -> None:
    """Studies were started on the machine itself, and tokens were for nodes."""
    config = Config()
    config.set_main_option("script_location", "freehold.coordinator:migrations")
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        study = "insert into studies (digest, name, plan, state, started) values ('sha256:1', 'old', '2', 'finished', 1.0)"
        connection.execute(sa.text(study))
        columns = "id, secret_digest, federation, uses, created, expires, creator"
        connection.execute(sa.text(f"insert into tokens ({columns}) values ('00000001', 'd', 'hearts', 1, 1.0, 2.0, 'operator')"))
    upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(sa.select(study_tables.studies.c.name, study_tables.studies.c.by)).all() == [
            ("old", "operator")
        ]
        tokens = enrolment_tables.tokens
        assert connection.execute(sa.select(tokens.c.id, tokens.c.role)).all() == [("00000001", "node")]


def test_a_database_of_a_later_release_is_refused(engine: sa.Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    with pytest.raises(StoreError, match="9999"):
        upgrade(engine)


def test_the_latest_version_is_that_of_the_last_migration() -> None:
    config = Config()
    config.set_main_option("script_location", "freehold.coordinator:migrations")
    folder = Path(str(ScriptDirectory.from_config(config).dir))
    assert folder.is_dir()
    assert ScriptDirectory.from_config(config).get_current_head() == LATEST


def test_contributions_from_before_asynchronous_rounds_count_where_they_were_asked_for(engine: sa.Engine) -> None:
    config = Config()
    config.set_main_option("script_location", "freehold.coordinator:migrations")
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(
            sa.text(
                "insert into contributions (run, round, node, sha256, length, weight, received, counted)"
                " values ('x-0', 3, 'a', 'f', 1, 1.0, 0.0, null)"
            )
        )
    upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(sa.text("select summed from contributions")).scalar_one() == 3
