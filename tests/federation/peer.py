"""A node that the test itself plays, over real TLS with a real certificate: honest, or as hostile as it likes."""

from __future__ import annotations

import hashlib
import http.client
import json
import select
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from freehold.node.credentials import Credentials
from freehold.node.join import Network, join
from freehold.plan import Contribution
from freehold.wire import codec
from freehold.wire.admin import TokenMade, TokenRequest
from freehold.wire.client import trusting
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import Declined, LedgerHead, Message, WorkReply, WorkRequest, encode
from freehold.wire.routes import CONTRIBUTE, DECLINED, LEDGER_HEADER, SHA256_HEADER, VERSION_HEADER, WEIGHT_HEADER, WORK
from tests.federation.harness import PATIENCE_S, Federation


class Answer(NamedTuple):
    """A status, and the number of the error; 0 for none, -1 where there is no message."""

    status: int
    code: int
    body: bytes = b""


def joined(federation: Federation, name: str, folder: Path) -> Peer:
    """Enroll under a name of its own, by token."""
    token = JoinToken.parse(federation.admin.post("/v1/tokens", TokenRequest(node=name), TokenMade).token)
    return Peer(federation, name, join(folder / name, token, url=federation.url, node=name, network=Network()))


class Peer:
    """Sends what it is told, over one connection that is made anew when it broke."""

    def __init__(self, federation: Federation, name: str, credentials: Credentials | None, roots: str = "") -> None:
        self.federation, self.name = federation, name
        pair = None if credentials is None else (credentials.pair, credentials.pair)
        self.trust = trusting(roots or credentials.roots.read_text(encoding="ascii"), pair)  # type: ignore[union-attr]
        self._http: http.client.HTTPSConnection | None = None

    @contextmanager
    def raw(self) -> Iterator[ssl.SSLSocket]:
        """A bare TLS connection."""
        plain = socket.create_connection(("127.0.0.1", self.federation.port), timeout=PATIENCE_S)
        with plain, self.trust().wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            yield tls

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """The answer to a request whose headers are sent as they are."""
        if self._http is not None and select.select([self._http.sock], [], [], 0)[0]:
            self.close()  # it was idle for too long
        if self._http is None:
            port = self.federation.port
            self._http = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE_S, context=self.trust())
        try:
            self._http.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers.items():
                self._http.putheader(name, value)
            self._http.endheaders(body or None)
            response = self._http.getresponse()
            found = response.read()
        except BaseException:
            self.close()
            raise
        if response.will_close:
            self.close()
        return Answer(response.status, _code(response.status, found), found)

    def is_cut(self) -> bool:
        """Wait for the end of the connection that it has; False if something else comes."""
        assert self._http is not None
        try:
            return self._http.sock.recv(1) == b""
        except ConnectionError:
            return True
        finally:
            self.close()

    def close(self) -> None:
        """Hang up."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def post(self, path: str, body: bytes | Message) -> Answer:
        """Post a body as JSON, whatever it is."""
        raw = body if isinstance(body, bytes) else encode(body)
        return self.send("POST", path, {"Content-Type": "application/json", "Content-Length": str(len(raw))}, raw)

    def work(self, wait_s: float = 0.0) -> WorkReply:
        """Ask for work, as one that has data for the heart task."""
        found = self.post(WORK.path, WorkRequest(datasets=["heart"], wait_s=wait_s))
        assert found.status == 200, found
        return msgspec.json.decode(found.body, type=WorkReply)

    def show(self, head: LedgerHead) -> LedgerHead:
        """Show the head of a ledger beside a request for work; the furthest that the coordinator knows."""
        body = encode(WorkRequest())
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            LEDGER_HEADER: f"{head.n}:{head.hash}:{head.key}:{head.signature}",
        }
        found = self.send("POST", WORK.path, headers, body)
        assert found.status == 200, found
        told = msgspec.json.decode(found.body, type=WorkReply).ledger
        assert told is not None and told.node == self.name and told.head is not None
        return told.head

    def decline(self, run: str, round: int) -> Answer:
        """Decline a piece of work."""
        return self.post(DECLINED.path, Declined(run=run, round=round, code=306, message="no"))

    def contribute(self, run: str, round: int | str, body: bytes, **changed: str | None) -> Answer:
        """Send a contribution; `changed` headers have underscores for dashes, None leaves one out."""
        headers: dict[str, str | None] = {
            VERSION_HEADER: "1",
            SHA256_HEADER: hashlib.sha256(body).hexdigest(),
            WEIGHT_HEADER: "7.0",
            "Content-Length": str(len(body)),
        }
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        sent = {name: value for name, value in headers.items() if value is not None}
        return self.send("PUT", CONTRIBUTE.path.format(run=run, round=round), sent, body)


def good(spec: Contribution, value: float = 0.01) -> dict[str, np.ndarray]:
    """Tensors that the spec takes."""
    return {t.name: np.full(t.shape, value).astype(t.dtype) for t in spec.tensors}


def packed(tensors: Mapping[str, np.ndarray]) -> bytes:
    """They as safetensors."""
    return codec.write(dict(tensors))


def _code(status: int, body: bytes) -> int:
    try:
        found = json.loads(body)
    except ValueError:
        return -1
    return 0 if status == 200 else int(found.get("code", -1))
