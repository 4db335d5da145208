"""The coordinator's side of each route: who asks, what they may, and what becomes of it."""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from freehold.coordinator.enrolment import Enrolment
from freehold.coordinator.presence import Presence
from freehold.coordinator.store import Store
from freehold.coordinator.studies import Studies
from freehold.errors import CertificateRefused, ProtocolVersion, UnknownRun, WireError
from freehold.events import Listener
from freehold.wire import openapi, routes
from freehold.wire.ingest import Ingest, read_message
from freehold.wire.local import Pieces, close
from freehold.wire.messages import (
    RUN_PATTERN,
    SHA256_PATTERN,
    VERSION,
    Declined,
    EnrollRequest,
    Leave,
    Measures,
    Pending,
    RenewRequest,
    WorkReply,
    WorkRequest,
)
from freehold.wire.server import Identity, Peers, refusals, reply

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BULK_BYTES = 1 << 18
"""TLS keeps as much memory for a connection as its largest transfer took: after one above this, the node connects anew."""

_ROOM_BYTES = 1 << 16
"""What the header of a contribution may take beside its tensors."""


class App:
    """Answers the routes of `wire.routes`."""

    def __init__(
        self,
        *,
        enrolment: Enrolment,
        studies: Studies,
        store: Store,
        presence: Presence,
        ingest: Ingest,
        peers: Peers,
        replaced: Callable[[str, asyncio.Transport | None], None],
        tell: Listener,
        poll_s: float = 300.0,
    ) -> None:
        """`replaced(node, last)` is told when the certificates that a name had are over; `last` still carries an answer."""
        self._enrolment, self._studies, self._store = enrolment, studies, store
        self._presence, self._ingest, self._peers, self._tell = presence, ingest, peers, tell
        self._replaced, self._poll_s = replaced, poll_s
        self._document = openapi.document()
        self._swollen: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()

    def build(self) -> web.Application:
        """The application to serve."""
        answers: dict[routes.Route, Answer] = {
            routes.CA: self._roots,
            routes.ENROLL: self._enroll,
            routes.RENEW: self._renew,
            routes.WORK: self._work,
            routes.BLOB: self._blob,
            routes.CONTRIBUTE: self._contribute,
            routes.MEASURES: self._measures,
            routes.DECLINED: self._declined,
            routes.LEAVE: self._leave,
            routes.OPENAPI: self._openapi,
        }
        app = web.Application(middlewares=[refusals(self._tell)], client_max_size=1 << 62)
        for route in routes.ROUTES:
            app.router.add_route(route.method, route.path, answers[route])
        return app

    # Enrolment.

    async def _roots(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=self._enrolment.authority.roots_pem, content_type="application/x-pem-file")

    async def _enroll(self, request: web.Request) -> web.StreamResponse:
        message = await read_message(request, EnrollRequest, pace=self._ingest.pace)
        certificate = await asyncio.to_thread(self._enrolment.enroll, message, address=request.remote or "-")
        self._replaced(message.node, None)
        return reply(certificate)

    async def _renew(self, request: web.Request) -> web.StreamResponse:
        peer = self._node(request)
        message = await read_message(request, RenewRequest, pace=self._ingest.pace)
        return reply(await asyncio.to_thread(self._enrolment.renew, message, peer=peer, address=request.remote or "-"))

    async def _leave(self, request: web.Request) -> web.StreamResponse:
        node = self._node(request)
        await read_message(request, Leave, pace=self._ingest.pace)
        await asyncio.to_thread(self._enrolment.leave, node)
        self._replaced(node.name, request.transport)
        self._presence.gone(node.name)
        await self._studies.gone(node.name)
        return reply(WorkReply(received=True))

    # Work.

    async def _work(self, request: web.Request) -> web.StreamResponse:
        node = self._node(request)
        message = await read_message(request, WorkRequest, pace=self._ingest.pace)
        return await self._next(request, node, message.datasets, message.pending, message.wait_s)

    async def _next(
        self,
        request: web.Request,
        node: Identity,
        datasets: list[str] | None,
        pending: list[Pending],
        wait_s: float,
        *,
        received: bool = False,
    ) -> web.Response:
        if await self._presence.heard(node.name, datasets):
            await self._studies.advance()
        swollen = request.transport in self._swollen
        settled, work = await self._studies.work(node.name, pending, 0.0 if swollen else min(wait_s, self._poll_s))
        answer = reply(WorkReply(settled=settled, work=work, received=received))
        if swollen:
            answer.force_close()
        return answer

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        node = self._node(request)
        sha256 = request.match_info["sha256"]
        if not re.fullmatch(SHA256_PATTERN, sha256) or not self._studies.shows(node.name, sha256):
            raise UnknownRun("This node has no open work with those bytes.", hint="The round may be over; ask for work again.")
        fd = self._store.open_blob(sha256)
        try:
            pieces = Pieces(fd)
            if pieces.length > _BULK_BYTES and request.transport is not None:
                self._swollen.add(request.transport)
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            response.content_length = pieces.length
            await response.prepare(request)
            # Pieces come from the page cache: a thread for each would cost more than the reading.
            for piece in pieces:
                await response.write(piece)
            await response.write_eof()
            return response
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
        wait_s = float(_header(request, routes.WAIT_HEADER, r"[0-9]{1,3}(\.[0-9]{1,6})?", "0"))
        offered = _header(request, routes.DATASETS_HEADER, routes.DATASETS_PATTERN, "")
        datasets = list(filter(None, offered.split(","))) if routes.DATASETS_HEADER in request.headers else None
        pending = _pending(_header(request, routes.PENDING_HEADER, routes.PENDING_PATTERN, ""))
        limit = self._studies.expects(node.name, run, round_).sum_bytes + _ROOM_BYTES
        body = await self._ingest.receive_body(request, sha256=sha256, limit_bytes=limit)
        try:
            await self._studies.contribute(node.name, run, round_, weight=weight, sha256=sha256, body=body)
        finally:
            if not isinstance(body, bytes):
                await asyncio.to_thread(body.unlink, missing_ok=True)
        if (request.content_length or 0) > _BULK_BYTES and request.transport is not None:
            self._swollen.add(request.transport)
        return await self._next(request, node, datasets, pending, wait_s, received=True)

    async def _measures(self, request: web.Request) -> web.StreamResponse:
        return await self._told(request, Measures)

    async def _declined(self, request: web.Request) -> web.StreamResponse:
        return await self._told(request, Declined)

    async def _told(self, request: web.Request, kind: type[Measures] | type[Declined]) -> web.StreamResponse:
        node = self._node(request)
        message = await read_message(request, kind, pace=self._ingest.pace)
        await self._studies.measured(node.name, message)
        return await self._next(request, node, message.datasets, message.pending, message.wait_s, received=True)

    async def _openapi(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=msgspec.json.encode(self._document), content_type="application/json")

    def _node(self, request: web.Request) -> Identity:
        found = self._peers.required(request)
        if found.role != "node" or found.federation != self._enrolment.authority.federation:
            raise CertificateRefused(
                f"The certificate is that of {found.role} {found.name} in {found.federation}, not of a node of this federation.",
                hint="Join this federation with a token.",
            )
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


def _pending(text: str) -> list[Pending]:
    found = []
    for entry in filter(None, text.split(",")):
        run, _, round_ = entry.partition(":")
        found.append(Pending(run=run, round=int(round_)))
    return found
