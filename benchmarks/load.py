"""Many nodes in one process: real certificates, real TLS, the protocol of the agent, and no training. For benchmarks alone.

`python -m benchmarks.load FIRST COUNT STATE PORT POLL_S DATASETS`: nodes numbered from FIRST, each with a key of its own and a
certificate that the federation's authority in STATE signs here, without the enrolment that a node would go through.

It connects when told `connect` on standard input, and answers `report` with its counters; each is one JSON line.
A node polls, fetches, contributes and measures as `freehold.node.agent` does. Contributions have the names, shapes and dtypes of
the plan, all numbers alike, so one body serves all nodes of this process.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import selectors
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from freehold.coordinator import certificates, csr
from freehold.coordinator.authority import NODE_LIFE_S, Authority
from freehold.plan import parse, runs_of
from freehold.wire import codec
from freehold.wire.messages import Measured, Measures, Pending, Train, WorkReply, WorkRequest, encode
from freehold.wire.routes import (
    BLOB,
    CONTRIBUTE,
    DATASETS_HEADER,
    MEASURES,
    PENDING_HEADER,
    SHA256_HEADER,
    VERSION_HEADER,
    WAIT_HEADER,
    WEIGHT_HEADER,
    WORK,
)

HANDSHAKES = 32
"""At once, in this process."""
SMALL_BYTES = 1 << 20
"""As in the agent: larger contributions do not wait for the next piece of work."""
NONE: Mapping[str, str] = {}


class Node:
    """One connection, and what it is in the middle of."""

    __slots__ = ("got", "name", "out", "pem", "pending", "sock", "step", "wants_write", "work")

    def __init__(self, name: str, pem: bytes) -> None:
        self.name, self.pem = name, pem
        self.sock: ssl.SSLSocket | None = None
        self.step = "new"
        self.out: memoryview | None = None
        self.got = b""
        self.wants_write = False
        self.work: Train | None = None
        self.pending: list[Pending] = []


class Load:
    """All nodes of this process, on one selector."""

    def __init__(self, nodes: list[Node], *, roots: str, port: int, poll_s: float, datasets: list[str]) -> None:
        self.nodes, self._port, self._poll_s, self._datasets = nodes, port, poll_s, datasets
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_verify_locations(cadata=roots)
        self._selector = selectors.DefaultSelector()
        self._queue: collections.deque[Node] = collections.deque()
        self._shaking = 0
        self._plans: dict[str, bytes] = {}
        self._bodies: dict[str, tuple[bytes, str]] = {}
        self._identity_fd = os.memfd_create("identity")
        self.count: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []

    def run(self) -> None:
        """Serve standard input and all nodes until it ends."""
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ, None)
        while True:
            while self._queue and self._shaking < HANDSHAKES:
                self._connect(self._queue.popleft())
            for key, _ in self._selector.select():
                if key.data is None:
                    if not self._command():
                        return
                    continue
                try:
                    self._ready(key.data)
                except (OSError, ValueError, msgspec.MsgspecError) as error:
                    self._broken(key.data, error)

    def _command(self) -> bool:
        text = os.read(0, 4096).decode()
        for word in text.split():
            if word == "connect":
                self._queue.extend(self.nodes)
            if word == "report":
                open_ = sum(node.sock is not None and node.step == "answer" for node in self.nodes)
                tell("report", open=open_, failures=self.failures[:3], **self.count)
        return bool(text)

    # One connection.

    def _connect(self, node: Node) -> None:
        self._shaking += 1
        os.ftruncate(self._identity_fd, 0)
        os.pwrite(self._identity_fd, node.pem, 0)
        # OpenSSL copies what the context holds into each connection, so one context serves all identities.
        self._context.load_cert_chain(f"/proc/self/fd/{self._identity_fd}")
        plain = socket.create_connection(("127.0.0.1", self._port))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setblocking(False)
        node.sock = self._context.wrap_socket(plain, server_hostname="127.0.0.1", do_handshake_on_connect=False)
        node.step = "handshake"
        node.wants_write = False
        self._selector.register(node.sock, selectors.EVENT_READ, node)
        self._ready(node)

    def _ready(self, node: Node) -> None:
        assert node.sock is not None
        try:
            if node.step == "handshake":
                node.sock.do_handshake()
                self._shaking -= 1
                self.count["handshakes"] += 1
                self._begin(node)
            while node.out:
                node.out = node.out[node.sock.send(node.out) :] or None
            while True:
                piece = node.sock.recv(1 << 16)
                if not piece:
                    raise ConnectionError("the coordinator hung up")
                node.got += piece
                if not self._answer(node):
                    continue
                while node.out:
                    node.out = node.out[node.sock.send(node.out) :] or None
        except ssl.SSLWantReadError:
            self._watch(node, write=False)
        except ssl.SSLWantWriteError:
            self._watch(node, write=True)

    def _watch(self, node: Node, *, write: bool) -> None:
        if node.wants_write != write and node.sock is not None:
            node.wants_write = write
            self._selector.modify(node.sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0), node)

    def _close(self, node: Node) -> None:
        assert node.sock is not None
        self._selector.unregister(node.sock)
        node.sock.close()
        node.sock, node.got = None, b""

    def _broken(self, node: Node, error: Exception) -> None:
        self.count["broken"] += 1
        self.failures.append(f"{node.name} {node.step}: {type(error).__name__} {error}")
        if node.step == "handshake":
            self._shaking -= 1
        if node.sock is not None:
            self._close(node)
        node.out, node.work = None, None
        self._queue.append(node)

    def _answer(self, node: Node) -> bool:
        """Take a whole answer, if it is there, and send what follows from it."""
        end = node.got.find(b"\r\n\r\n")
        if end < 0:
            return False
        lines = node.got[:end].decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        body = node.got[end + 4 :]
        if len(body) < int(headers["content-length"]):
            return False
        node.got = b""
        status = int(lines[0].split()[1])
        if status != 200:
            raise ValueError(f"status {status}: {body[:200]!r}")
        asked, node.step = node.step, "idle"
        if asked == "blob":
            assert node.work is not None and hashlib.sha256(body).hexdigest() == node.work.shared.sha256
            request = self._contribution(node, node.work)
        else:
            request = self._after(node, msgspec.json.decode(body, type=WorkReply))
        if headers.get("connection") == "close":
            self.count["recycled"] += 1
            self._close(node)
            node.out = memoryview(request)
            self._queue.append(node)
            raise ssl.SSLWantReadError
        node.out = memoryview(request)
        return True

    # The protocol.

    def _begin(self, node: Node) -> None:
        """The first request of a connection: the one that was made before it, or a poll that is answered at once."""
        if node.out is None:
            node.out, node.step = memoryview(self._poll(node, 0.0)), "first"
        else:
            node.step = "blob" if bytes(node.out[:4]) == b"GET " else "answer"

    def _poll(self, node: Node, wait_s: float) -> bytes:
        return self._post(WORK.path, encode(WorkRequest(wait_s=wait_s, datasets=self._datasets, pending=node.pending)))

    def _after(self, node: Node, reply: WorkReply) -> bytes:
        self.count["answers"] += 1
        self.count["received"] += reply.received
        if reply.settled:
            gone = {(s.run, s.round) for s in reply.settled}
            self.count["counted"] += sum(bool(s.counted) for s in reply.settled)
            node.pending = [p for p in node.pending if (p.run, p.round) not in gone]
        work, node.step = reply.work, "answer"
        if work is None:
            return self._poll(node, self._poll_s)
        if work.plan.body is not None:
            self._plans[work.plan.sha256] = work.plan.body
        if not isinstance(work, Train):
            self.count["measured"] += 1
            sums = Measured(examples=10, sums={"correct": 5.0})
            message = Measures(
                run=work.run,
                round=work.round,
                splits={"validation": sums, "test": sums},
            )
            return self._post(MEASURES.path, encode(message), self._along(node, self._poll_s))
        if work.shared.body is None:
            node.work, node.step = work, "blob"
            return f"GET {BLOB.at(sha256=work.shared.sha256)} HTTP/1.1\r\nHost: c\r\n\r\n".encode()
        return self._contribution(node, work)

    def _contribution(self, node: Node, work: Train) -> bytes:
        node.work, node.step = None, "answer"
        self.count["contributed"] += 1
        node.pending = [*node.pending, Pending(run=work.run, round=work.round)]
        body, sha256 = self._body(work)
        wait_s = self._poll_s if len(body) <= SMALL_BYTES else 0.0
        headers = {
            VERSION_HEADER: "1",
            SHA256_HEADER: sha256,
            WEIGHT_HEADER: "7.0",
            **self._along(node, wait_s),
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(body)),
        }
        lines = [f"PUT {CONTRIBUTE.at(run=work.run, round=work.round)} HTTP/1.1", "Host: c"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def _body(self, work: Train) -> tuple[bytes, str]:
        key = f"{work.run} {work.round}"
        if key not in self._bodies:
            plan = parse(self._plans[work.plan.sha256].decode())
            run = next(run for run in runs_of(plan) if run.id == work.run)
            value = 2.0**-10 * (1 + work.round)
            tensors = {t.name: np.full(t.shape, value).astype(t.dtype) for t in run.contribution.tensors}
            body = codec.write(tensors)
            self._bodies = {key: (body, hashlib.sha256(body).hexdigest())}
        return self._bodies[key]

    def _along(self, node: Node, wait_s: float) -> dict[str, str]:
        return {
            WAIT_HEADER: repr(wait_s),
            DATASETS_HEADER: ",".join(self._datasets),
            PENDING_HEADER: ",".join(f"{p.run}:{p.round}" for p in node.pending),
        }

    @staticmethod
    def _post(path: str, body: bytes, headers: Mapping[str, str] = NONE) -> bytes:
        told = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        return f"POST {path} HTTP/1.1\r\nHost: c\r\n{lines}\r\n".encode() + body


def identities(state: Path, first: int, count: int) -> tuple[list[Node], str]:
    """Nodes with a key and a certificate each; the roots to trust."""
    now = time.time()
    authority = Authority.open(state / "authority", federation="test", now=now, ca_dir=state / "ca")
    assert authority.issuer is not None
    above = "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in authority.chain)
    found = []
    for number in range(first, first + count):
        key = ec.generate_private_key(ec.SECP256R1())
        requested = csr.Requested(key.public_key(), "")
        issued = certificates.node(
            authority.issuer, above, requested, federation="test", role="node", name=f"n{number}", now=now, lifetime_s=NODE_LIFE_S
        )
        found.append(Node(f"n{number}", (certificates.key_pem(key) + issued.chain).encode()))
    return found, authority.roots_pem


def tell(name: str, **fields: object) -> None:
    """One line for whoever started this process."""
    print(json.dumps({"event": name, **fields}), flush=True)


if __name__ == "__main__":
    _, first, count, state, port, poll_s, datasets = sys.argv
    nodes, roots = identities(Path(state), int(first), int(count))
    tell("ready", nodes=len(nodes))
    Load(nodes, roots=roots, port=int(port), poll_s=float(poll_s), datasets=datasets.split(",")).run()
