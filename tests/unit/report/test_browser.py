"""The page in a real browser: `make setup-system` installs one."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

from freehold.report import Comparison
from freehold.report.page import page
from tests.unit.report.comparisons import hospitals

ALONE = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET = ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0"]


def rendered(comparison: Comparison, folder: Path) -> tuple[str, list[str]]:
    """The page's DOM once it is laid out, and what the browser wrote to its console."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert browser, "no Chromium or Chrome here: run `make setup-system`"
    file = folder / "page.html"
    file.write_text(page(comparison), encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    found = subprocess.run(
        [browser, *ALONE, *QUIET, profile, "--dump-dom", file.as_uri()], capture_output=True, check=True, timeout=60
    )
    log = found.stderr.decode(errors="replace").splitlines()
    return found.stdout.decode(), [line for line in log if "CONSOLE" in line]


def test_a_browser_shows_the_page_and_has_nothing_to_complain_of(tmp_path: Path) -> None:
    dom, console = rendered(hospitals(seeds=3), tmp_path)
    assert not console
    assert "Who gains and who loses against training alone" in dom and "VA Long Beach" in dom
    assert len(re.findall(r'<svg class="fh-figure"', dom)) == 5  # four rows beside training alone, and the curves


def test_a_browser_runs_nothing_that_a_name_says(tmp_path: Path) -> None:
    name = "\"'><script>document.title = 'taken'; console.error('taken')</script><img src=x onerror=console.error('taken')>"
    hostile = dataclasses.replace(hospitals(seeds=1, names=(name, "]]>", "&amp;", "<b>")), title=name, command=name)
    dom, console = rendered(hostile, tmp_path)
    assert not console
    assert "<script" not in dom and "<img" not in dom
