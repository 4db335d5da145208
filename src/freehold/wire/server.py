"""The coordinator's side of the wire: TLS 1.3 with optional client certificates, who a peer is, and refusals as messages."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import ctypes
import re
import ssl
import sys
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from freehold.errors import (
    BodyRefused,
    Busy,
    CertificateRefused,
    Conflict,
    CoordinatorError,
    CsrRefused,
    Denied,
    FreeholdError,
    Late,
    NoCertificate,
    NotAllowed,
    PlanError,
    ProtocolVersion,
    SpecMismatch,
    StoreError,
    StudyRefused,
    TokenRefused,
    TooLarge,
    UnknownName,
    UnknownRun,
    UsageError,
    WireError,
)
from freehold.events import Event, Listener
from freehold.wire.messages import Message, encode, problem

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_GOODBYE_S: Final = 2.0
"""How long TLS waits for the other side's end of a connection that is closed; a peer that has vanished never says it."""

_BUFFER_BYTES: Final = 1 << 16
_PARSED: Final = "identity"
_SPIFFE: Final = re.compile(r"spiffe://(?P<federation>[a-z0-9-]{1,63})/(?P<role>[a-z]{1,32})/(?P<name>[a-z0-9-]{1,63})")

_STATUS: Final[tuple[tuple[type[FreeholdError], int], ...]] = (
    (NoCertificate, 401),
    (TokenRefused, 403),
    (CertificateRefused, 403),
    (Denied, 403),
    (NotAllowed, 403),
    (StudyRefused, 403),
    (CsrRefused, 400),
    (UnknownRun, 404),
    (Late, 409),
    (Conflict, 409),
    (StoreError, 503),
    (Busy, 503),
    (CoordinatorError, 500),
    (ProtocolVersion, 426),
    (BodyRefused, 400),
    (TooLarge, 413),
    (SpecMismatch, 422),
    (WireError, 400),
    (PlanError, 400),
    (UsageError, 400),
    (UnknownName, 400),
    (FreeholdError, 500),
)
"""The first that fits counts."""


def server_context(certificate: Path, key: Path, client_roots: str) -> ssl.SSLContext:
    """TLS 1.3 that asks for a client certificate below these CAs (PEM), and lets in who has none, to enroll.

    `load_cert_chain` on it counts for new connections. No session tickets: a resumed session would outlive its certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(cadata=client_roots)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an issuer may be trusted without the CA above it
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    return context


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a certificate says its holder is; dates in Unix time."""

    federation: str
    role: str
    name: str
    serial: str
    not_before: float
    not_after: float


class Peers:
    """Who is connected. Not for use by two threads at once."""

    def __init__(self, *, clock: Callable[[], float] = time.time, denied: Callable[[Identity], bool] = lambda _: False) -> None:
        self._clock = clock
        self._denied = denied
        self._live: dict[tuple[str, str, str], tuple[tuple[weakref.ref[asyncio.Transport], Identity], ...]] = {}

    def identity(self, request: web.Request) -> Identity | None:
        """Who sends this request, or None without a certificate; to be asked on each request, since connections live long.

        Raises CertificateRefused outside the certificate's dates or without one name in it, and Denied.
        """
        certificate = request.get_extra_info("peercert")
        if not certificate:
            return None
        found: Identity | None = certificate.get(_PARSED)
        if found is None:
            found = _identity(certificate)
            # The connection keeps this dictionary: what is not needed again, 4 kB of it, goes.
            certificate.clear()
            certificate[_PARSED] = found
            self._enter(found, request.transport)
        if not found.not_before <= self._clock() <= found.not_after:
            raise CertificateRefused(
                f"The certificate of {found.name} is out of its dates.",
                hint="Check the clock; renew the certificate, or join again.",
            )
        if self._denied(found):
            raise Denied(f"{found.name} is on the deny list.", hint="The coordinator's operator can take it off.")
        return found

    def behind(self, transport: asyncio.Transport) -> Identity | None:
        """Who has sent a request over this connection, whether or not they may."""
        certificate = transport.get_extra_info("peercert")
        found = certificate.get(_PARSED) if certificate else None
        return found if isinstance(found, Identity) else None

    def _enter(self, identity: Identity, transport: asyncio.Transport | None) -> None:
        if transport is not None:
            live = [entry for entry in self._live.get(_key(identity), ()) if entry[0]() is not None]
            self._live[_key(identity)] = (*live, (weakref.ref(transport), identity))

    def required(self, request: web.Request) -> Identity:
        """As `identity`, but raises NoCertificate without one."""
        found = self.identity(request)
        if found is None:
            raise NoCertificate("This needs a certificate of the federation.", hint="Join with a token first.")
        return found

    def drop(self, identity: Identity) -> int:
        """Cut all connections of an identity, whichever certificate they were made with, at once; how many there were."""
        return self.drop_named(identity.federation, identity.role, identity.name)

    def drop_denied(self) -> None:
        """Cut the connections of all that are denied by now."""
        for live in self._live.values():
            for ref, identity in live:
                if self._denied(identity) and (transport := ref()) is not None:
                    cut(transport)

    def drop_named(self, federation: str, role: str, name: str, *, keep: asyncio.Transport | None = None) -> int:
        """The same by name, all but one."""
        live = [(entry, entry[0]()) for entry in self._live.pop((federation, role, name), ())]
        if kept := tuple(entry for entry, transport in live if transport is not None and transport is keep):
            self._live[federation, role, name] = kept
        gone = [transport for _, transport in live if transport is not None and transport is not keep]
        for transport in gone:
            cut(transport)
        return len(gone)


def cut(transport: asyncio.Transport) -> None:
    """End a connection at once."""
    # Of a TLS connection that was closed before, CPython 3.11.2 raises this; `_GOODBYE_S` ends what is left of it.
    with contextlib.suppress(AttributeError):
        transport.abort()


def _key(identity: Identity) -> tuple[str, str, str]:
    return identity.federation, identity.role, identity.name


def _identity(certificate: dict[str, object]) -> Identity:
    # The shape is that of ssl.SSLSocket.getpeercert(), of a certificate that was verified.
    names = certificate.get("subjectAltName", ())
    assert isinstance(names, tuple)
    found = [_SPIFFE.fullmatch(value) for kind, value in names if kind == "URI"]
    if len(found) != 1 or found[0] is None:
        raise CertificateRefused(
            "The certificate does not name one member of a federation.",
            hint="Join again with a new token; from a CA of your own it needs one URI, spiffe://FEDERATION/node/NAME.",
        )
    return Identity(
        **found[0].groupdict(),
        serial=str(certificate["serialNumber"]),
        not_before=ssl.cert_time_to_seconds(str(certificate["notBefore"])),
        not_after=ssl.cert_time_to_seconds(str(certificate["notAfter"])),
    )


def reply(message: Message) -> web.Response:
    """A message as an answer."""
    return web.Response(body=encode(message), content_type="application/json")


def refusals(listen: Listener) -> Middleware:
    """Answers each error with a Problem and its status; of one that is not Freehold's own, nothing is told.

    `listen` hears `request.refused` (code, status, route, who, address) and `request.failed` (kind, place, route), never what was
    in it. `who` is whom the certificate names, as "node/alice".
    """

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "-"
        certificate = request.get_extra_info("peercert")  # now: a connection that has ended tells nothing
        try:
            return await handler(request)
        except FreeholdError as error:
            found, status = error, next(status for kind, status in _STATUS if isinstance(error, kind))
        except web.HTTPException as error:
            if error.status < 400:
                raise
            found, status = WireError(f"{error.reason}.", hint="See docs/reference/wire.md for what can be asked."), error.status
        except Exception as error:
            if isinstance(error, ConnectionError) and request.transport is None:
                raise  # nobody is there to be told
            found, status = CoordinatorError("The coordinator failed.", hint="Its log says where."), 500
            listen(Event("request.failed", {"kind": type(error).__name__, "place": _place(error), "route": route}))
        who, address = _named(certificate), request.remote or "-"
        listen(Event("request.refused", {"code": found.code, "status": status, "route": route, "who": who, "address": address}))
        refused = reply(problem(found))
        refused.set_status(status)
        return refused

    return answer


def _named(certificate: dict[str, object] | None) -> str:
    """Whom a certificate names; "-" without one, or without one such name in it."""
    try:
        found = certificate and (certificate.get(_PARSED) or _identity(certificate))
    except CertificateRefused:
        return "-"
    return f"{found.role}/{found.name}" if isinstance(found, Identity) else "-"


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "-" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


class Serving:
    """A server that runs until it is closed."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server) -> None:
        self._runner = runner
        self._server = server

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, give running requests five seconds, and cut what is left."""
        self._server.close()
        made = self._runner.server
        assert made is not None
        live = {connection.transport for connection in made.connections}
        await self._runner.cleanup()
        for transport in live | {connection.transport for connection in made.connections}:
            if transport is not None:
                cut(transport)  # TLS would wait half a minute for the other side to say goodbye


async def serve(
    app: web.Application,
    host: str,
    port: int,
    context: ssl.SSLContext,
    *,
    keepalive_s: float = 30.0,
    handshake_s: float = 10.0,
    lost: Callable[[asyncio.Transport], None] | None = None,
) -> Serving:
    """Listen; port 0 is any free one. Idle and stalling connections are cut; bodies are never unpacked by the server.

    `lost` is told of each connection that has ended, also where its request is still being answered.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=keepalive_s,
        shutdown_timeout=5.0,
        lingering_time=2.0,
        max_line_size=4096,
        max_field_size=8190,
        max_headers=64,
        auto_decompress=False,
    )
    await runner.setup()
    assert runner.server is not None
    if lost is not None:
        _tell_of_ends(runner.server, lost)
    try:
        server = await asyncio.get_running_loop().create_server(
            runner.server,
            host,
            port,
            ssl=context,
            ssl_handshake_timeout=handshake_s,
            ssl_shutdown_timeout=_GOODBYE_S,
            backlog=1024,
        )
    except BaseException:
        await runner.cleanup()
        raise
    return Serving(runner, server)


def _tell_of_ends(server: web.Server, lost: Callable[[asyncio.Transport], None]) -> None:
    # aiohttp could only cancel the handler instead, also one that is entering a contribution.
    ended = server.connection_lost

    def connection_lost(handler: web.RequestHandler, error: BaseException | None = None) -> None:
        transport = handler.transport
        ended(handler, error)
        if transport is not None:
            lost(transport)

    server.connection_lost = connection_lost  # type: ignore[method-assign, assignment]


def give_back_memory() -> None:
    """Hand memory that is free back to the kernel, which glibc does not do by itself in the middle of its heap; in a thread."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def save_connection_memory() -> Literal["shared", "small", "unknown"]:
    """Make each idle TLS connection of this process cheaper; what could be done.

    asyncio gives each connection a receive buffer of 256 kB. `shared`: one of 64 kB for each event loop, 41 kB a connection in
    all. That rests on private parts of CPython 3.11 to 3.14 and on a selector loop, which fills and empties the buffer in one
    step; where they look different, `small`: buffers of 32 kB, 74 kB a connection.
    """
    protocol = asyncio.sslproto.SSLProtocol
    if getattr(protocol, "shares_buffer", False):
        return "shared"
    if not isinstance(getattr(protocol, "max_size", None), int):
        return "unknown"
    parts = {"_ssl_buffer", "_ssl_buffer_view"}
    codes = [getattr(method, "__code__", None) for method in (protocol.__init__, protocol.get_buffer)]
    known = all(code is not None and parts <= {*code.co_names} for code in codes)
    if not ((3, 11) <= sys.version_info[:2] <= (3, 14) and known):
        protocol.max_size = _BUFFER_BYTES // 2
        return "small"
    protocol.max_size = _BUFFER_BYTES
    original = protocol.__init__
    buffers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, bytearray] = weakref.WeakKeyDictionary()

    def init(self: asyncio.sslproto.SSLProtocol, loop: asyncio.AbstractEventLoop, *rest: object, **named: object) -> None:
        original(self, loop, *rest, **named)  # type: ignore[arg-type]
        if isinstance(loop, asyncio.SelectorEventLoop):
            shared = buffers.setdefault(loop, bytearray(_BUFFER_BYTES))
            self._ssl_buffer, self._ssl_buffer_view = shared, memoryview(shared)  # type: ignore[attr-defined]

    protocol.__init__ = init  # type: ignore[method-assign]
    protocol.shares_buffer = True  # type: ignore[attr-defined]
    return "shared"
