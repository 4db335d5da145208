"""A TPM 2.0 made of software, swtpm, on a Unix socket in a folder of its own."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from freehold.node.tpm import Tpm


class SoftwareTpm:
    """One that can be stopped and started again with its seeds, and cleared as a real one in the firmware's menu."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "state").mkdir(parents=True)

    @property
    def tcti(self) -> str:
        """Where it is."""
        return f"swtpm:path={self._folder / 's'}"

    @property
    def tpm(self) -> Tpm:
        """As the guard asks it."""
        return Tpm(self.tcti)

    def start(self) -> None:
        """Start it; once the program that was called has ended, it takes connections."""
        program = shutil.which("swtpm")
        assert program is not None, "no swtpm: make setup-system installs it"
        state, socket, pid = self._folder / "state", self._folder / "s", self._folder / "pid"
        words = f"socket --tpm2 --tpmstate dir={state} --ctrl type=unixio,path={socket}.ctrl --server type=unixio,path={socket} "
        words += f"--flags not-need-init,startup-clear --daemon --pid file={pid}"
        subprocess.run([program, *words.split()], check=True, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        """End it, as with the machine; returns once it has ended."""
        try:
            pid = int((self._folder / "pid").read_text())
            fd = os.pidfd_open(pid)
        except (OSError, ValueError):
            return  # it is stopped
        ended = select.poll()
        ended.register(fd, select.POLLIN)
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        assert ended.poll(30_000), "swtpm does not end"
        os.close(fd)
        for path in (self._folder / "s", self._folder / "s.ctrl", self._folder / "pid"):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Give it another seed."""
        self.tpm._run("tpm2_clear")


@contextmanager
def software_tpm(folder: Path) -> Iterator[SoftwareTpm]:
    """A TPM that runs; its path must be short enough for a socket."""
    found = SoftwareTpm(folder)
    found.start()
    try:
        yield found
    finally:
        found.stop()
