"""The coordinator's side of each route: who asks, what they may, and what becomes of it."""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from freehold.coordinator.administration import AdminAnswer, Administration, Asker
from freehold.coordinator.enrolment import Enrolment
from freehold.coordinator.presence import Presence
from freehold.coordinator.store import Store
from freehold.coordinator.studies import Studies
from freehold.coordinator.uploads import Uploads
from freehold.coordinator.witness import Witness
from freehold.errors import CertificateRefused, ProtocolVersion, UnknownRun, WireError
from freehold.events import Listener
from freehold.wire import openapi, routes
from freehold.wire.ingest import SMALL_BYTES, Ingest, read_message
from freehold.wire.local import Pieces, close
from freehold.wire.messages import (
    RUN_PATTERN,
    SHA256_PATTERN,
    VERSION,
    Declined,
    EnrollRequest,
    Leave,
    LedgerHead,
    LoginRequest,
    Measures,
    Pending,
    RenewRequest,
    WorkReply,
    WorkRequest,
)
from freehold.wire.server import Identity, Peers, cut, refusals, reply

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BULK_BYTES = 1 << 18
"""TLS keeps as much memory for a connection as its largest transfer took: after one above this, the node connects anew."""


class App:
    """Answers the routes of `wire.routes`."""

    def __init__(
        self,
        *,
        enrolment: Enrolment,
        administration: Administration,
        studies: Studies,
        store: Store,
        presence: Presence,
        witness: Witness,
        ingest: Ingest,
        peers: Peers,
        replaced: Callable[[str, str, asyncio.Transport | None], None],
        tell: Listener,
        poll_s: float = 300.0,
        strangers: bool = False,
    ) -> None:
        """`replaced(role, name, last)` is told when the certificates that a name had are over; `last` still carries an answer.

        `strangers`: others sign certificates of nodes, too, so one may come that enrolment has not seen.
        """
        self._enrolment, self._studies, self._store, self._administration = enrolment, studies, store, administration
        self._presence, self._ingest, self._peers, self._tell = presence, ingest, peers, tell
        self._witness = witness
        self._replaced, self._poll_s, self._strangers = replaced, poll_s, strangers
        self._document = openapi.document()
        self._swollen: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._uploads = Uploads()
        self._polling: dict[str, asyncio.Transport] = {}
        """Node -> over which connection it waits for an answer; the last one counts."""

    def build(self) -> web.Application:
        """The application to serve."""
        answers: dict[routes.Route, Answer] = {
            routes.CA: self._roots,
            routes.ENROLL: self._enroll,
            routes.LOGIN: self._login,
            routes.RENEW: self._renew,
            routes.WORK: self._work,
            routes.BLOB: self._blob,
            routes.CONTRIBUTE: self._contribute,
            routes.MEASURES: self._measures,
            routes.DECLINED: self._declined,
            routes.LEAVE: self._leave,
            routes.CHECKPOINT: self._checkpoint,
            routes.OPENAPI: self._openapi,
        }
        app = web.Application(middlewares=[refusals(self._tell)], client_max_size=1 << 62)
        for route in routes.ROUTES:
            app.router.add_route(route.method, route.path, answers[route])
        for route, answer in self._administration.answers().items():
            app.router.add_route(route.method, route.path, self._for_people(route, answer))
        return app

    # Enrolment.

    async def _roots(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=self._enrolment.authority.roots_pem, content_type="application/x-pem-file")

    async def _enroll(self, request: web.Request) -> web.StreamResponse:
        message = await read_message(request, EnrollRequest, pace=self._ingest.pace)
        certificate = await asyncio.to_thread(self._enrolment.enroll, message, address=request.remote or "-")
        self._replaced("node", message.node, None)
        return reply(certificate)

    async def _login(self, request: web.Request) -> web.StreamResponse:
        message = await read_message(request, LoginRequest, pace=self._ingest.pace)
        certificate = await asyncio.to_thread(self._enrolment.login, message, address=request.remote or "-")
        self._replaced(certificate.role, certificate.node, None)
        return reply(certificate)

    async def _renew(self, request: web.Request) -> web.StreamResponse:
        peer = self._peers.required(request)
        message = await read_message(request, RenewRequest, pace=self._ingest.pace)
        shown, address = _shown(request), request.remote or "-"
        return reply(await asyncio.to_thread(self._enrolment.renew, message, peer=peer, shown=shown, address=address))

    async def _leave(self, request: web.Request) -> web.StreamResponse:
        node = self._node(request)
        await read_message(request, Leave, pace=self._ingest.pace)
        await asyncio.to_thread(self._enrolment.leave, node)
        self._replaced("node", node.name, request.transport)
        self._presence.gone(node.name)
        await self._studies.gone(node.name)
        return reply(WorkReply(received=True))

    # Work.

    async def _work(self, request: web.Request) -> web.StreamResponse:
        node = self._node(request)
        message = await read_message(request, WorkRequest, pace=self._ingest.pace)
        if self._strangers:
            await asyncio.to_thread(self._enrolment.notice, node, address=request.remote or "-")
        if message.stops:
            await self._offered(node, [], stops=True)
            return reply(WorkReply())
        return await self._next(
            request,
            node,
            message.datasets,
            message.pending,
            message.wait_s,
            working=message.working,
            sandbox=message.sandbox,
        )

    async def _offered(self, node: Identity, datasets: list[str] | None, sandbox: str = "", *, stops: bool = False) -> None:
        lost = await self._presence.heard(node.name, datasets, sandbox, stops=stops)
        if lost is not None:
            await self._studies.offered(node.name, lost)

    async def _next(
        self,
        request: web.Request,
        node: Identity,
        datasets: list[str] | None,
        pending: list[Pending],
        wait_s: float,
        *,
        working: Pending | None = None,
        sandbox: str = "",
        received: bool = False,
    ) -> web.Response:
        head = _ledger(request)  # first: what is refused changes nothing
        ledger = None if head is None else await self._witness.shown(node.name, head)
        await self._offered(node, datasets, sandbox)
        swollen, transport = request.transport in self._swollen, request.transport
        if transport is not None:
            self._polling[node.name] = transport
        try:
            settled, work = await self._studies.work(node.name, pending, 0.0 if swollen else min(wait_s, self._poll_s), working)
        finally:
            if self._polling.get(node.name) is transport:
                del self._polling[node.name]
        answer = reply(WorkReply(settled=settled, work=work, received=received, ledger=ledger))
        if swollen:
            answer.force_close()
        return answer

    def lost(self, transport: asyncio.Transport) -> None:
        """A connection has ended. Of a node that waits for an answer over it, and over no other, that says: it is gone."""
        found = self._peers.behind(transport)
        if found is not None and self._polling.get(found.name) is transport:
            del self._polling[found.name]
            self._presence.stopped(found.name)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        node = self._node(request)
        sha256 = request.match_info["sha256"]
        if not re.fullmatch(SHA256_PATTERN, sha256) or not self._studies.intake.shows(node.name, sha256):
            raise UnknownRun("This node has no open work with those bytes.", hint="The round may be over; ask for work again.")
        fd = await self._store.opened(sha256)
        try:
            pieces = Pieces(fd)
            if pieces.length > _BULK_BYTES and request.transport is not None:
                self._swollen.add(request.transport)
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            response.content_length = pieces.length
            await response.prepare(request)
            # Pieces come from the page cache: a thread for each would cost more than the reading.
            for piece in pieces:
                async with asyncio.timeout(self._ingest.pace.chunk_s):
                    await response.write(piece)
            async with asyncio.timeout(self._ingest.pace.chunk_s):
                await response.write_eof()
            return response
        except TimeoutError:
            if request.transport is not None:
                cut(request.transport)  # who takes nothing holds a connection and a descriptor
            raise ConnectionResetError("the other side took nothing") from None
        finally:
            close([fd])

    async def _contribute(self, request: web.Request) -> web.StreamResponse:
        node = self._node(request)
        version = _header(request, routes.VERSION_HEADER, r"[0-9]{1,6}")
        if int(version) != VERSION:
            raise ProtocolVersion(
                f"The node speaks version {version} of the protocol, this coordinator {VERSION}.",
                hint="Install the same Freehold release on both sides.",
            )
        run, round_ = _part(request, "run", RUN_PATTERN), int(_part(request, "round", r"[0-9]{1,9}"))
        sha256 = _header(request, routes.SHA256_HEADER, SHA256_PATTERN)
        weight = float(_header(request, routes.WEIGHT_HEADER, r"[0-9]{1,17}(\.[0-9]{1,20})?(e[+-]?[0-9]{1,2})?"))
        sandbox = _header(request, routes.SANDBOX_HEADER, routes.SANDBOX_PATTERN, "")
        datasets, pending, wait_s = _along(request)
        asked = self._studies.intake.expects(node.name, run, round_)
        large = (request.content_length or 0) > SMALL_BYTES
        async with self._uploads.turn(node.name, run, request.transport, large=large) as upload:
            body = await self._ingest.receive_body(
                request, sha256=sha256, limit_bytes=asked.limit_bytes, compression=asked.run.contribution.compression
            )
            upload.arriving = False
            try:
                await self._studies.intake.contribute(
                    node.name, run, round_, weight=weight, sha256=sha256, body=body, sandbox=sandbox
                )
            finally:
                if not isinstance(body, bytes):
                    await asyncio.to_thread(body.unlink, missing_ok=True)
        if (request.content_length or 0) > _BULK_BYTES and request.transport is not None:
            self._swollen.add(request.transport)
        return await self._next(request, node, datasets, pending, wait_s, received=True)

    async def _measures(self, request: web.Request) -> web.StreamResponse:
        node = self._node(request)
        datasets, pending, wait_s = _along(request)
        await self._studies.measured(node.name, await read_message(request, Measures, pace=self._ingest.pace))
        return await self._next(request, node, datasets, pending, wait_s, received=True)

    async def _declined(self, request: web.Request) -> web.StreamResponse:
        node = self._node(request)
        message = await read_message(request, Declined, pace=self._ingest.pace)
        await self._studies.measured(node.name, message)
        return await self._next(request, node, message.datasets, message.pending, message.wait_s, received=True)

    async def _checkpoint(self, request: web.Request) -> web.StreamResponse:
        return reply(await self._witness.latest(self._node(request).name))

    async def _openapi(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=msgspec.json.encode(self._document), content_type="application/json")

    def _node(self, request: web.Request) -> Identity:
        found = self._peers.required(request)
        if found.role != "node" or found.federation != self._enrolment.authority.federation:
            raise CertificateRefused(
                f"The certificate is that of {found.role} {found.name} in {found.federation}, not of a node of this federation.",
                hint="This is for nodes, which join with a token; `freehold study` and `freehold status` are for people.",
            )
        return found

    # Administration.

    def _for_people(self, route: routes.Route, answer: AdminAnswer) -> Answer:
        async def ask(request: web.Request) -> web.StreamResponse:
            found = self._peers.required(request)
            await asyncio.to_thread(self._enrolment.admit_person, found, shown=_shown(request))
            asker = Asker(role=found.role, name=found.name)  # type: ignore[arg-type]  # as `admit_person` found it
            asker.check(route)
            return await answer(asker, request)

        return ask


def _shown(request: web.Request) -> bytes:
    """The certificate that the other side has shown, in DER."""
    found: bytes = request.get_extra_info("ssl_object").getpeercert(True)
    return found


def _part(request: web.Request, name: str, pattern: str) -> str:
    found = request.match_info[name]
    if not re.fullmatch(pattern, found):
        raise WireError(f"The path has no valid {name}.", hint="See docs/reference/wire.md.")
    return found


def _header(request: web.Request, name: str, pattern: str, default: str | None = None) -> str:
    found = request.headers.get(name, default)
    if found is None or not re.fullmatch(pattern, found):
        raise WireError(f"The header {name} is missing or malformed.", hint="See docs/reference/wire.md.")
    return found


def _along(request: web.Request) -> tuple[list[str] | None, list[Pending], float]:
    """What asks for the next piece of work, beside a body: datasets, rounds that are pending, and how long to wait."""
    wait_s = float(_header(request, routes.WAIT_HEADER, r"[0-9]{1,3}(\.[0-9]{1,6})?", "0"))
    offered = _header(request, routes.DATASETS_HEADER, routes.DATASETS_PATTERN, "")
    datasets = list(filter(None, offered.split(","))) if routes.DATASETS_HEADER in request.headers else None
    return datasets, _pending(_header(request, routes.PENDING_HEADER, routes.PENDING_PATTERN, "")), wait_s


def _ledger(request: web.Request) -> LedgerHead | None:
    if routes.LEDGER_HEADER not in request.headers:
        return None
    n, hash_, key, signature = _header(request, routes.LEDGER_HEADER, routes.LEDGER_PATTERN).split(":")
    return LedgerHead(n=max(int(n), 1), hash=hash_, key=key, signature=signature)


def _pending(text: str) -> list[Pending]:
    found = []
    for entry in filter(None, text.split(",")):
        run, _, round_ = entry.partition(":")
        found.append(Pending(run=run, round=int(round_)))
    return found
