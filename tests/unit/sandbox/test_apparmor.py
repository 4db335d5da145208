"""The AppArmor profile that Freehold ships: what it says, where it is, and who is told of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from freehold.cli import escapes
from freehold.sandbox import apparmor
from freehold.sandbox.probe import Offer
from freehold.sandbox.selftest import Assessment

PARSER = shutil.which("apparmor_parser", path="/usr/sbin:/sbin:/usr/bin")


def said() -> str:
    """The profile without comments."""
    return re.sub(r"#.*", "", apparmor.PROFILE.read_text(encoding="utf-8"))


def test_the_profile_gives_user_namespaces_to_bubblewrap_and_to_nobody_else() -> None:
    words = said().split()
    assert words[:4] == ["abi", "<abi/4.0>,", "include", "<tunables/global>"]
    [head, body] = said().split("profile")[1].split("{")
    assert head.split() == ["freehold-sandbox", "/usr/bin/bwrap", "flags=(unconfined)"]
    rules = [line.strip() for line in body.rstrip().removesuffix("}").splitlines() if line.strip()]
    assert rules == ["userns,", "include if exists <local/freehold-sandbox>"]


def test_its_syntax_is_that_of_the_parser(tmp_path: Path) -> None:
    """A parser before version 4 knows neither the rule nor its ABI: then the rest is looked at."""
    assert PARSER is not None, "make setup-system installs apparmor"
    text = apparmor.PROFILE.read_text(encoding="utf-8")
    if not Path("/etc/apparmor.d/abi/4.0").exists():
        text = text.replace("abi <abi/4.0>,", "").replace("userns,", "")
    path = tmp_path / "profile"
    path.write_text(text)
    done = subprocess.run([PARSER, "-Q", "-K", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("text", "found"), [("1\n", True), ("0\n", False), ("", False), (None, False)])
def test_the_kernel_says_whether_it_is_needed(text: str | None, found: bool, tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    if text is not None:
        switch.write_text(text)
    assert apparmor.restricts(switch) is found


@pytest.mark.parametrize(
    ("restricted", "bwrap", "needed"), [(True, None, True), (True, "/usr/bin/bwrap", False), (False, None, False)]
)
@pytest.mark.parametrize("as_json", [True, False])
def test_the_doctor_says_when_it_is_needed_and_where_it_is(
    restricted: bool,
    bwrap: str | None,
    needed: bool,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    offer = Offer(level="basic", why=(), bwrap=bwrap, disable_userns=True, landlock_abi=7, seccomp=True, uid=None)
    monkeypatch.setattr(apparmor, "restricts", lambda: restricted)
    monkeypatch.setattr(escapes, "assess", lambda seed: Assessment(offer=offer, outcomes=[]))
    assert escapes.show(as_json=as_json) == 0
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["apparmor"] == {"needed": needed, "profile": str(apparmor.PROFILE)}
    else:
        assert (str(apparmor.PROFILE) in out) is needed
    assert apparmor.PROFILE.is_file()
