"""A real PostgreSQL, made by the tests in a folder of their own; it listens on a Unix socket in that folder alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def program(name: str) -> str:
    """A program of PostgreSQL, in the path or where Debian puts it."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    assert found is not None, f"no {name}: make setup-system installs PostgreSQL"
    return found


def _as_somebody(command: Sequence[str]) -> list[str]:
    # PostgreSQL refuses to run as root.
    return [*(["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []), *command]


class Postgres:
    """A server that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._data = folder, folder / "data"
        if os.geteuid() == 0:
            for parent in (folder, *folder.parents[:2]):
                parent.chmod(0o755)
            shutil.chown(folder, "nobody")
        subprocess.run(
            _as_somebody([program("initdb"), "-D", str(self._data), "-U", "freehold", "-A", "trust", "--no-sync"]),
            check=True,
            stdout=subprocess.DEVNULL,
        )

    @property
    def url(self) -> str:
        """For `--database`."""
        return f"postgresql+psycopg://freehold@/postgres?host={self._folder}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}' -c max_connections=50"
        self._control("start", "-w", "-l", str(self._folder / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is as if the power failed."""
        self._control("stop", "-w", "-m", mode)

    def _control(self, *arguments: str) -> None:
        command = [program("pg_ctl"), "-D", str(self._data), *arguments]
        subprocess.run(_as_somebody(command), check=True, stdout=subprocess.DEVNULL)


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A running server."""
    server = Postgres(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop("immediate")
