"""Bringing a coordinator's database to the version that this release reads."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from freehold.errors import StoreError

LATEST = "0007"
"""The version of the tables in this release; a test holds it against the migrations."""

_FOLDER = Path(__file__).with_name("migrations")


def version(engine: sa.Engine) -> str | None:
    """The version of a database; None if it is empty."""
    if not sa.inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        found = connection.execute(sa.text("select version_num from alembic_version")).scalar()
    return None if found is None else str(found)


def upgrade(engine: sa.Engine) -> None:
    """Make or migrate the tables, in one transaction; nothing to do when they are as they should be.

    Raises StoreError for a database of a later release.
    """
    found = version(engine)
    if found == LATEST:
        return
    from alembic import command  # here: most starts have nothing to migrate
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StoreError(
            f"The database has version {found} of the tables; this release knows up to {LATEST}.",
            hint="Install the release that wrote it, or restore a backup from before the upgrade.",
        )
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
