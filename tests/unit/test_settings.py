"""Settings files: strict, with the near miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.errors import UsageError
from freehold.settings import read_settings, state_home

KNOWN = {"port": int, "name": str, "names": list, "data": dict, "on": bool}


def read(tmp_path: Path, text: str) -> dict[str, object]:
    path = tmp_path / "it.toml"
    path.write_text(text, encoding="utf-8")
    return dict(read_settings(path, KNOWN))


def test_a_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "none.toml", KNOWN) == {}


def test_each_kind_of_setting_is_read(tmp_path: Path) -> None:
    text = 'port = 1\nname = "a"\nnames = ["b"]\non = true\n[data]\nheart = "h.csv"\n'
    assert read(tmp_path, text) == {"port": 1, "name": "a", "names": ["b"], "on": True, "data": {"heart": "h.csv"}}


def test_a_key_that_nobody_reads_is_refused_with_the_near_miss(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prot") as caught:
        read(tmp_path, "prot = 1\n")
    assert "port" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    ['port = "1"', "port = true", "name = 1", 'names = "b"', "names = [1]", "data = []", "on = 1", "[data]\nheart = 1", "="],
)
def test_a_wrong_type_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        read(tmp_path, text)


def test_a_relative_state_home_is_ignored() -> None:
    assert state_home({"XDG_STATE_HOME": "here"}).is_absolute()
    assert state_home({"XDG_STATE_HOME": "/there"}) == Path("/there/freehold")
