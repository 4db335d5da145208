"""What two algorithms share is a function, not a copy."""

from __future__ import annotations

from collections import Counter

from tests.architecture.imports import SOURCE

WINDOW = 5
SHARE = 0.03


def test_algorithm_files_share_next_to_no_lines() -> None:
    """Lines in a run of five that stands in another file too, imports and all; blank lines and comments do not count."""
    files = [
        [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and line.strip()[0] != "#"]
        for path in (SOURCE / "algorithms").glob("*.py")
    ]
    windows = [[tuple(lines[i : i + WINDOW]) for i in range(len(lines) - WINDOW + 1)] for lines in files]
    homes = Counter(window for one in windows for window in set(one))
    copied = sum(len({at + k for at, window in enumerate(one) if homes[window] > 1 for k in range(WINDOW)}) for one in windows)
    assert copied < SHARE * sum(map(len, files))
