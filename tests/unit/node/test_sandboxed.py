"""A guard whose sandbox does not hold starts no trainer, and says why."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.errors import FreeholdError, SandboxError, SandboxEscaped, SandboxMissing
from freehold.node import sandboxed
from freehold.node.errands import Hello
from freehold.node.sandboxed import Bounds, trainers_of
from freehold.sandbox import selftest
from freehold.sandbox.escapes import Outcome, layers_of, run
from freehold.sandbox.probe import Offer, probe
from freehold.sandbox.selftest import Assessment
from freehold.sandbox.trainer_user import trainer_uid


def spawn(module: str, fd: int) -> subprocess.Popen[bytes]:
    raise AssertionError("started without a jail")


def hello(folder: Path, sandbox: str = "required") -> Hello:
    return Hello(node="alice", state=str(folder), datasets={}, sandbox=sandbox)  # type: ignore[arg-type]


def offer(level: str) -> Offer:
    return Offer(
        level=level,  # type: ignore[arg-type]
        why=("bubblewrap is not installed: apt-get install bubblewrap",),
        bwrap=None,
        disable_userns=False,
        landlock_abi=7,
        seccomp=True,
        uid=None,
    )


ESCAPED = Outcome(name="dns", result="escaped", layer="", why="")


@pytest.mark.parametrize(
    ("found", "error", "said"),
    [
        (Assessment(offer=offer("none"), outcomes=[]), SandboxMissing, "apt-get install bubblewrap"),
        (Assessment(offer=offer("basic"), outcomes=[ESCAPED]), SandboxEscaped, "dns"),
        (OSError("no memory"), SandboxError, "OSError"),
    ],
)
def test_it_fails_closed(
    found: Assessment | OSError, error: type[FreeholdError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def assess(seed: str) -> Assessment:
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(sandboxed, "assess", assess)
    trainers = trainers_of(hello(tmp_path), spawn)
    assert trainers.said.startswith("refused: ") and said in trainers.said
    with pytest.raises(error, match=said):
        trainers.start("/srv/heart.csv", Bounds())


def test_only_the_owner_s_word_turns_it_off(tmp_path: Path) -> None:
    trainers = trainers_of(hello(tmp_path, "off"), spawn)
    assert trainers.said == "off" and trainers.start("/srv/heart.csv", Bounds()) == (spawn, "/srv/heart.csv")
    assert Hello(node="alice", state="/", datasets={}).sandbox == "required"


def test_a_sandbox_that_holds_starts_trainers_in_it(tmp_path: Path) -> None:
    trainers = trainers_of(hello(tmp_path), spawn)
    start, _ = trainers.start("", Bounds())
    assert trainers.said in ("strict", "standard", "basic") and start is not spawn


@pytest.mark.parametrize("name", ["fork", "read-secret", "dns", "memory"])
def test_one_attempt_that_really_succeeds_at_the_start_is_enough(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose jails lack what stops it refuses, and names it; with all layers the same node trains."""
    jail = probe(trainer_uid(str(tmp_path))).jail()
    lacking = jail.layers - set(layers_of(name, jail))
    monkeypatch.setattr(selftest, "run", lambda jail: run(replace(jail, layers=lacking), [name]))
    trainers = trainers_of(hello(tmp_path), spawn)
    assert trainers.said.startswith("refused: ") and f"does not hold here: {name} (" in trainers.said
    assert (trainers.level, trainers.bounded) == ("none", "")
    with pytest.raises(SandboxEscaped) as refused:
        trainers.start("", Bounds())
    assert refused.value.code == 651
    monkeypatch.setattr(selftest, "run", lambda jail: run(jail, [name]))
    assert trainers_of(hello(tmp_path), spawn).level == probe(trainer_uid(str(tmp_path))).level
