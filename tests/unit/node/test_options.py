"""The node's command line and its settings file."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from freehold.errors import UsageError
from freehold.node.__main__ import _remember, _settings, main, options_of
from freehold.settings import only_one
from freehold.wire.jointoken import JoinToken, encode


def test_the_command_line_counts_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('name = "alice"\nport = 1\n[data]\nheart = "h.csv"\nlungs = "/srv/l.csv"\n')
    options = options_of(["--state", str(tmp_path), "--port", "2", "--data", "heart=/srv/h.csv"], {})
    assert (options.name, options.port) == ("alice", 2)
    assert options.data == {"heart": Path("/srv/h.csv"), "lungs": Path("/srv/l.csv")}


def test_a_path_in_the_file_starts_at_the_state_folder(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('name = "alice"\n[data]\nheart = "h.csv"\n')
    assert options_of(["--state", str(tmp_path)], {}).data == {"heart": tmp_path / "h.csv"}


def test_without_a_state_folder_the_name_says_where_it_is() -> None:
    assert options_of(["--name", "alice"], {"XDG_STATE_HOME": "/there"}).state == Path("/there/freehold/node-alice")


@pytest.mark.parametrize(
    "arguments",
    [[], ["--name", "Alice"], ["--name", "a/b"], ["--name", "a", "--data", "x"], ["--name", "a", "--port", "70000"]],
    ids=["no name", "capital", "slash", "no file", "port"],
)
def test_wrong_use_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        options_of(arguments, {"XDG_STATE_HOME": "/nowhere"})


def test_a_token_that_is_none_ends_the_program_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("nonsense\n")
    code = main(["--name", "a", "--state", str(tmp_path), "--coordinator", "https://x", "--join-file", str(tmp_path / "token")])
    assert code == 2
    assert capsys.readouterr().err.startswith("error 307: ")


def test_the_first_start_is_remembered_and_nothing_is_written_over(tmp_path: Path) -> None:
    state, table = tmp_path / "alice", tmp_path / 'a "table".csv'
    state.mkdir()
    first = options_of(["--name", "alice", "--state", str(state), "--port", "8080", "--data", f"heart={table}"], {})
    _remember(first)
    again = options_of(["--state", str(state)], {})
    assert (again.name, again.port, again.data) == ("alice", 8080, {"heart": table})
    written = (state / "node.toml").read_text(encoding="utf-8")
    _remember(options_of(["--state", str(state), "--port", "9090", "--data", "fraud=other.csv"], {}))
    assert (state / "node.toml").read_text(encoding="utf-8") == written


def test_a_node_whose_joining_failed_founds_no_federation_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "joining-00000000.key").touch()
    with ExitStack() as stack, pytest.raises(UsageError, match="has begun to join") as caught:
        _settings(options_of(["--name", "alice", "--state", str(tmp_path)], {}), stack)
    assert "--join-file" in caught.value.hint and not (tmp_path / "coordinator").exists()


def test_a_start_that_does_not_join_is_not_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its port, or its data, may have been what was wrong."""
    table = tmp_path / "h.csv"
    table.touch()
    (tmp_path / "token").write_text(JoinToken(pin="0" * 64, id="0" * 8, secret=encode(bytes(24))).format())
    join = ("--coordinator", "localhost:1", "--join-file", str(tmp_path / "token"), "--data", f"heart={table}")
    assert main(["--name", "a", "--state", str(tmp_path / "a"), *join]) == 2
    assert "Say https://localhost:1." in capsys.readouterr().err
    assert not (tmp_path / "a" / "node.toml").exists()


def test_a_node_that_has_left_founds_no_federation_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "left.json").write_text("{}")
    with ExitStack() as stack, pytest.raises(UsageError, match="has left its federation"):
        _settings(options_of(["--name", "alice", "--state", str(tmp_path)], {}), stack)


def test_a_second_node_on_the_same_folder_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_one(tmp_path, "node"):
        assert main(["--name", "alice", "--state", str(tmp_path)]) == 2
    assert "runs in" in capsys.readouterr().err
    assert not (tmp_path / "ledger").exists() and not (tmp_path / "control.json").exists()
