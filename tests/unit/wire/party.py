"""A real coordinator's server, and what it needs: an authority, certificates, a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from freehold.events import Event
from freehold.wire.ingest import Ingest, Pace, read_message
from freehold.wire.link import Address
from freehold.wire.messages import Certificate, EnrollRequest, Settled, WorkReply, WorkRequest
from freehold.wire.routes import BLOB, CA, CONTRIBUTE, ENROLL, SHA256_HEADER, WORK
from freehold.wire.server import Peers, refusals, reply, serve, server_context

HOST = "coordinator.test"
NOW = datetime.datetime.now(datetime.UTC)
BLOB_BYTES = bytes(range(256)) * 1000


class Authority:
    """A root, and what it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.root = self._builder(self._name, self._key.public_key(), None, ca=True).sign(self._key, hashes.SHA256())
        self.pem = self.root.public_bytes(serialization.Encoding.PEM).decode()
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        self.pin = hashlib.sha256(self._key.public_key().public_bytes(serialization.Encoding.DER, spki)).hexdigest()

    def _builder(self, subject: x509.Name, key: Any, names: Any, *, ca: bool) -> x509.CertificateBuilder:
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(hours=1))
            .not_valid_after(NOW + datetime.timedelta(hours=23))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        return made if names is None else made.add_extension(x509.SubjectAlternativeName(names), critical=False)

    def issue(self, *names: x509.GeneralName) -> tuple[Path, Path]:
        """A certificate's file and its key's."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._builder(x509.Name([]), key.public_key(), list(names), ca=False).sign(self._key, hashes.SHA256())
        stem = self._folder / str(made.serial_number)
        stem.with_suffix(".pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        stem.with_suffix(".key").write_bytes(key.private_bytes(*plain))
        return stem.with_suffix(".pem"), stem.with_suffix(".key")

    def server(self) -> tuple[Path, Path]:
        return self.issue(x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))

    def node(self, name: str = "alice", *, uri: str = "") -> tuple[Path, Path]:
        return self.issue(x509.UniformResourceIdentifier(uri or f"spiffe://heart/node/{name}"))


class Coordinator:
    """A server in a thread of its own: its answers are what the routes promise, and it remembers what it saw."""

    def __init__(
        self, authority: Authority, folder: Path, *, port: int = 0, pace: Pace | None = None, limit_bytes: int = 1 << 24
    ) -> None:
        self.now = NOW.timestamp()
        self.denied: set[str] = set()
        self.events: queue.Queue[Event] = queue.Queue()
        self.connections: list[object] = []
        self.bodies: list[bytes | Path] = []
        self.folder = folder
        self.peers = Peers(clock=lambda: self.now, denied=lambda who: who.name in self.denied)
        self._authority = authority
        self._limit_bytes = limit_bytes
        self._ingest = Ingest(folder, pace=pace or Pace())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.holding = threading.Event()
        self._released = asyncio.Event()
        context = server_context(*authority.server(), authority.pem)
        self._serving = self.do(serve(self._app(), "127.0.0.1", port, context))
        self.port = self._serving.port

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def call(self, work: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return work()

        return self.do(call())

    def close(self) -> None:
        self.call(self._released.set)
        self.do(self._serving.close())
        self.do(self._quiet())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()
        self._ingest.close()

    async def _quiet(self) -> None:
        """Until the loop watches nothing but itself: a client may have gone within a handshake."""
        async with asyncio.timeout(10):
            while len(self._loop._selector.get_map()) > 1 or len(asyncio.all_tasks()) > 1:  # type: ignore[attr-defined]
                await asyncio.sleep(0)

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[refusals(self.events.put)])
        handlers = {CA: self._ca, ENROLL: self._enroll, WORK: self._work, BLOB: self._blob, CONTRIBUTE: self._contribution}
        for route, handler in handlers.items():
            app.router.add_route(route.method, route.path, handler)
        app.router.add_get("/v1/broken", self._broken)
        app.router.add_get("/v1/hold", self._hold)
        return app

    async def _ca(self, request: web.Request) -> web.Response:
        return web.Response(text=self._authority.pem, content_type="application/x-pem-file")

    async def _enroll(self, request: web.Request) -> web.Response:
        asked = await read_message(request, EnrollRequest)
        return reply(
            Certificate(federation=asked.federation, node=asked.node, chain="", roots=self._authority.pem, not_after=0.0)
        )

    async def _work(self, request: web.Request) -> web.Response:
        who = self.peers.required(request)
        asked = await read_message(request, WorkRequest)
        self.connections.append(request.get_extra_info("peername"))
        assert (who.federation, who.role, who.name) == ("heart", "node", "alice")
        return reply(WorkReply(settled=[Settled(run=one.run, round=one.round, counted="ab" * 32) for one in asked.pending]))

    async def _blob(self, request: web.Request) -> web.Response:
        return web.Response(body=BLOB_BYTES)

    async def _contribution(self, request: web.Request) -> web.Response:
        self.peers.required(request)
        body = await self._ingest.receive_body(request, sha256=request.headers[SHA256_HEADER], limit_bytes=self._limit_bytes)
        self.bodies.append(body)
        return reply(WorkReply(received=True))

    async def _broken(self, request: web.Request) -> web.Response:
        raise ValueError("the secret")

    async def _hold(self, request: web.Request) -> web.Response:
        self.peers.required(request)
        self.holding.set()
        async with asyncio.timeout(60):
            await self._released.wait()
        return web.Response()


@contextlib.contextmanager
def running(authority: Authority, folder: Path, **options: Any) -> Iterator[Coordinator]:
    coordinator = Coordinator(authority, folder, **options)
    try:
        yield coordinator
    finally:
        coordinator.close()


def local(*ports: int) -> Callable[[str, int], list[Address]]:
    """A resolver to which every name is this machine, at these ports."""
    return lambda host, port: [(socket.AF_INET, ("127.0.0.1", one)) for one in ports]


class Proxy:
    """A CONNECT proxy that leads to one port, whatever it's asked for, or refuses."""

    def __init__(self, port: int, *, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self.asked: list[bytes] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._target, self._answer = port, answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._listening, self._listening.accept()[0] as client:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.asked.append(head)
            client.sendall(self._answer)
            if b" 200 " not in self._answer:
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                back = threading.Thread(target=_pump, args=(server, client))
                back.start()
                _pump(client, server)
                back.join(20)

    def close(self) -> None:
        self._thread.join(20)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
