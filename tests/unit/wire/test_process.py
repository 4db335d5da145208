"""Children: what reaches them."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from freehold.wire.local import pair
from freehold.wire.process import spawn


def blocked(pid: int | str) -> int:
    """The signals that a process has blocked, as bits."""
    found = re.search(r"^SigBlk:\s+([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1], 16)


def test_a_child_leaves_ctrl_c_to_its_parent() -> None:
    interrupt, before = 1 << (signal.SIGINT - 1), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ours, theirs = pair()
    with theirs:
        child = spawn("freehold.node.guard", theirs.fileno())
    try:
        assert blocked(child.pid) & interrupt
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before, "the parent is as it was"
    finally:
        child.kill()
        child.wait()
        ours.close()
