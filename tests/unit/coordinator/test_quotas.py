"""What one researcher may take of a coordinator: studies at once, and code on its disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from freehold.coordinator.blobs import Folder
from freehold.coordinator.quotas import MEGABYTE, Quotas
from freehold.coordinator.store import Store, connect, in_row
from freehold.coordinator.study_records import end_study, insert_study
from freehold.errors import StudyRefused, UsageError
from freehold.plan import Plan, TaskRef, digest, dumps
from tests.unit.policy.plans import heart

CAROL, DAN = "researcher/carol", "researcher/dan"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(connect(f"sqlite:///{tmp_path / 'db.sqlite'}"), Folder(tmp_path / "blobs"))


def entered(store: Store, plan: Plan, by: str, quotas: Quotas) -> None:
    """A study's row, as the coordinator enters it; raises StudyRefused, and it is not there then."""

    def write(connection: sa.Connection) -> None:
        put = in_row(dumps(plan).encode())
        store.insert_blob(connection, put)
        insert_study(
            connection,
            digest=digest(plan),
            name=plan.name,
            plan=put.sha256,
            signature=None,
            now=1.0,
            runs_=[(plan.name, 0)],
            by=by,
        )
        quotas.check(connection, by, plan.task.bundle)

    asyncio.run(store.write(write, "coordinator.study"))


def stored(store: Store, size: int, letter: str) -> str:
    """The digest of a bundle that lies in the store, of that size by its row."""
    put = in_row(letter.encode())._replace(length=size)

    def write(connection: sa.Connection) -> None:
        store.insert_blob(connection, put)

    asyncio.run(store.write(write, "coordinator.study"))
    return f"sha256:{put.sha256}"


def test_a_researcher_has_so_many_studies_at_once(store: Store) -> None:
    two = Quotas(studies=2)
    for name in ("one", "two"):
        entered(store, heart(name=name), CAROL, two)
    with pytest.raises(StudyRefused, match="2 studies of researcher/carol are running") as caught:
        entered(store, heart(name="three"), CAROL, two)
    assert "researcher_studies" in caught.value.hint
    entered(store, heart(name="dans"), DAN, two)
    for name in ("mine", "mine-too", "mine-also"):
        entered(store, heart(name=name), "operator", two)
    asyncio.run(store.write(lambda c: end_study(c, digest(heart(name="one")), state="stopped", now=2.0), "coordinator.study"))
    entered(store, heart(name="three"), CAROL, two)
    entered(store, heart(name="four"), CAROL, Quotas(studies=0))


def test_the_code_of_a_researcher_takes_so_much(store: Store) -> None:
    one = Quotas(bundles_mb=1)
    first, second = (stored(store, size, letter) for size, letter in ((MEGABYTE * 6 // 10, "a"), (MEGABYTE // 2, "b")))

    def plan(name: str, bundle: str) -> Plan:
        return msgspec.structs.replace(heart(name=name), task=TaskRef(name="heart", bundle=bundle))

    entered(store, plan("one", first), CAROL, one)
    entered(store, plan("one-again", first), CAROL, one)  # the same code, kept once
    with pytest.raises(StudyRefused, match="1 MB") as caught:
        entered(store, plan("two", second), CAROL, one)
    assert "researcher_bundles_mb" in caught.value.hint
    entered(store, plan("two", second), DAN, one)
    entered(store, heart(name="no code"[:2]), CAROL, one)


@pytest.mark.parametrize("line", ["researcher_studies = -1", "researcher_bundles_mb = -5"])
def test_a_limit_below_nothing_is_a_slip(tmp_path: Path, line: str, settings_of: Callable[[Path], object]) -> None:
    (tmp_path / "coordinator.toml").write_text(line + "\n")
    with pytest.raises(UsageError, match="0 or more"):
        settings_of(tmp_path)


@pytest.fixture
def settings_of() -> Callable[[Path], object]:
    from freehold.cli.coordinator import ServiceOptions, _settings

    return lambda folder: _settings(folder, ServiceOptions())
