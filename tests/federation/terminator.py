"""A TLS-terminating proxy before a coordinator, for one node: what that node sends is counted as plain text.

It shows the node the coordinator's own certificate, and the coordinator the node's: the test has both folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

PIECE_BYTES = 1 << 16


class Request(NamedTuple):
    """What the node has sent."""

    method: str
    path: str
    length: int
    """Bytes of the body that came."""
    sha256: str


class Terminator:
    """Listens on a port of its own; HTTP/1.1, one request after the other."""

    def __init__(self, target: int, *, server: Path, node: Path) -> None:
        """`server`: the coordinator's key and certificate. `node`: the node's, once it has joined."""
        self._target, self._node = target, node
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.minimum_version = ssl.TLSVersion.TLSv1_3
        self._near.load_cert_chain(server)
        self.requests: list[Request] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain, self._near.wrap_socket(plain, server_side=True) as near:
            far_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            far_context.check_hostname, far_context.verify_mode = False, ssl.CERT_NONE
            if self._node.exists():
                far_context.load_cert_chain(self._node)
            raw = socket.create_connection(("127.0.0.1", self._target))
            with raw, far_context.wrap_socket(raw) as far, near.makefile("rb") as ours, far.makefile("rb") as theirs:
                while self._request(ours, far) and self._answer(theirs, near):
                    pass

    def _request(self, source: IO[bytes], sink: ssl.SSLSocket) -> bool:
        head, length = _head(source)
        if not head:
            return False
        method, path, _ = head.split(b" ", 2)
        digest, got = hashlib.sha256(), 0
        try:
            sink.sendall(head)
            for piece in _body(source, length):
                digest.update(piece)
                got += len(piece)
                sink.sendall(piece)
        finally:
            self.requests.append(Request(method.decode(), path.decode(), got, digest.hexdigest()))
        return True

    def _answer(self, source: IO[bytes], sink: ssl.SSLSocket) -> bool:
        head, length = _head(source)
        if not head:
            return False
        sink.sendall(head)
        for piece in _body(source, length):
            sink.sendall(piece)
        return b"connection: close" not in head.lower()


def _head(source: IO[bytes]) -> tuple[bytes, int]:
    """The first line and the headers, as they came, and the length of the body; nothing where there is no more."""
    lines, length = [], 0
    while line := source.readline():
        lines.append(line)
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        if line == b"\r\n":
            return b"".join(lines), length
    return b"", 0


def _body(source: IO[bytes], length: int) -> Iterator[bytes]:
    while length:
        piece = source.read1(min(length, PIECE_BYTES))  # type: ignore[attr-defined]
        if not piece:
            raise ConnectionResetError("the body ended too early")
        length -= len(piece)
        yield piece
