"""Settings files and state folders. The files are strict TOML: a key that nobody reads is an error that suggests the near miss,
and so is a wrong type.
"""

from __future__ import annotations

import fcntl
import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from freehold.errors import Unreadable, UsageError, near_miss

Setting = str | int | float | bool | list[str] | dict[str, str]

_SHOWN: Mapping[type, tuple[str, str]] = {
    str: ("text", '{key} = "text"'),
    int: ("a whole number", "{key} = 8443"),
    bool: ("true or false", "{key} = true"),
    list: ("a list of texts", '{key} = ["one", "two"]'),
    dict: ("a table of texts", '[{key}]\nname = "value"'),
}


def read_settings(path: Path, known: Mapping[str, type]) -> dict[str, Setting]:
    """What a settings file says; {} if there is none. `known`: key -> str, int, bool, list (of str) or dict (of str to str)."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}.", hint="Check its owner and mode.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}.", hint="Text stands in quotes, tables in [brackets].") from None
    for key, value in raw.items():
        if key not in known:
            raise UsageError(f"{path}: nobody reads {key!r}.", hint=near_miss(key, known))
        if not _fits(value, known[key]):
            kind, example = _SHOWN[known[key]]
            raise UsageError(f"{path}: {key} should be {kind}.", hint=f"Write it like this: {example.format(key=key)}")
    return raw


def state_home(environ: Mapping[str, str]) -> Path:
    """Where Freehold keeps its state unless it is told. A relative XDG_STATE_HOME is ignored, as its specification says."""
    given = Path(environ.get("XDG_STATE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".local" / "state") / "freehold"


def config_home(environ: Mapping[str, str]) -> Path:
    """Where people's own settings and identities are; a relative XDG_CONFIG_HOME is ignored."""
    given = Path(environ.get("XDG_CONFIG_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".config") / "freehold"


def _fits(value: object, kind: type) -> bool:
    if isinstance(value, list):
        return kind is list and all(isinstance(item, str) for item in value)
    if isinstance(value, dict):
        return kind is dict and all(isinstance(item, str) for item in value.values())
    return type(value) is kind


@contextmanager
def only_one(state: Path, who: str) -> Iterator[None]:
    """Hold a state folder, made if it is not there; raises UsageError while another process does. `who`: node or coordinator."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"A {who} runs in {state} already.", hint="Stop it first, or give another --state.") from None
    else:
        yield
    finally:
        os.close(fd)
