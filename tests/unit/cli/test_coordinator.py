"""`freehold coordinator start`, around the service: what is written down, and who else may run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from freehold.cli.coordinator import FILE, ServiceOptions, _settings, _started
from freehold.errors import CoordinatorError, UsageError
from freehold.settings import only_one

GIVEN = ServiceOptions(federation="cardio", port=0, names=["fl.example.org"])


class Service:
    """Stands for the coordinator's service: it starts, or fails."""

    def __init__(self, state: Path, *, fails: bool = False) -> None:
        self.settings: Any = SimpleNamespace(state=state, federation="cardio")
        self.seen: bool | None = None
        self._fails = fails

    async def start(self) -> None:
        self.seen = (self.settings.state / FILE).exists()
        if self._fails:
            raise CoordinatorError("Cannot listen.", hint="Give --port.")


def started(service: Service, options: ServiceOptions) -> None:
    asyncio.run(_started(service, options))  # type: ignore[arg-type]


def test_the_first_start_is_written_down_before_anything_is_made(tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    service = Service(tmp_path)
    started(service, ServiceOptions(federation="cardio", port=0, names=["fl.example.org"], study_keys=[key]))
    assert service.seen
    again = _settings(tmp_path, ServiceOptions())
    assert (again.federation, again.port, again.names, again.study_keys) == ("cardio", 0, ("fl.example.org",), (key,))


def test_a_later_start_changes_nothing_that_was_written(tmp_path: Path) -> None:
    started(Service(tmp_path), GIVEN)
    before = (tmp_path / FILE).read_text(encoding="utf-8")
    started(Service(tmp_path), ServiceOptions(port=9000))
    with pytest.raises(CoordinatorError):
        started(Service(tmp_path, fails=True), ServiceOptions(port=9000))
    assert (tmp_path / FILE).read_text(encoding="utf-8") == before


def test_a_first_start_that_fails_is_forgotten(tmp_path: Path) -> None:
    """Else the next one, with the slip mended, would leave the slip in the file for the one after."""
    service = Service(tmp_path, fails=True)
    with pytest.raises(CoordinatorError):
        started(service, GIVEN)
    assert service.seen and not (tmp_path / FILE).exists()


def test_a_state_folder_has_one_coordinator(tmp_path: Path) -> None:
    with only_one(tmp_path, "coordinator"), pytest.raises(UsageError, match="runs in"), only_one(tmp_path, "coordinator"):
        pass
    with only_one(tmp_path, "coordinator"):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
