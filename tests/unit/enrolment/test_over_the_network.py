"""The node's own client against the coordinator's own server, over loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from freehold.errors import Denied, PinMismatch, TokenRefused
from freehold.node.join import Network, join, renew
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import EnrollRequest, RenewRequest, decode
from freehold.wire.routes import CA, ENROLL, RENEW
from freehold.wire.server import Peers, refusals, reply, serve, server_context
from tests.unit.enrolment.world import World


def application(world: World) -> web.Application:
    peers = Peers(clock=world.clock, denied=world.enrolment.is_denied)

    async def roots(request: web.Request) -> web.Response:
        return web.Response(text=world.authority.roots_pem, content_type="application/x-pem-file")

    async def enroll(request: web.Request) -> web.Response:
        message = decode(await request.read(), EnrollRequest)
        return reply(await asyncio.to_thread(world.enrolment.enroll, message, address=request.remote or ""))

    async def renewal(request: web.Request) -> web.Response:
        peer, message = peers.required(request), decode(await request.read(), RenewRequest)
        shown, address = request.get_extra_info("ssl_object").getpeercert(True), request.remote or ""
        return reply(await asyncio.to_thread(world.enrolment.renew, message, peer=peer, shown=shown, address=address))

    app = web.Application(middlewares=[refusals(lambda event: None)])
    app.add_routes([web.get(CA.path, roots), web.post(ENROLL.path, enroll), web.post(RENEW.path, renewal)])
    return app


@pytest.fixture
def url(world: World) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = server_context(world.server, world.server, world.authority.roots_pem)
    serving = asyncio.run_coroutine_threadsafe(serve(application(world), "127.0.0.1", 0, context), loop).result(30)
    yield f"https://127.0.0.1:{serving.port}"
    asyncio.run_coroutine_threadsafe(serving.close(), loop).result(30)
    asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_node_joins_renews_and_is_denied(world: World, url: str, tmp_path: Path) -> None:
    token = world.enrolment.create_token(creator="root")
    first = join(tmp_path, token, url=url, node="alice", network=Network())
    first_pair = first.pair.read_text()
    second = renew(tmp_path, Network())
    assert second.pair.read_text() != first_pair
    with pytest.raises(TokenRefused):
        join(tmp_path / "other", token, url=url, node="bob", network=Network())
    world.enrolment.deny("node/alice", by="root")
    with pytest.raises(Denied):
        renew(tmp_path, Network())
    assert world.log() == [
        ("token", None, 0),
        ("enroll", "alice", 0),
        ("renew", "alice", 0),
        ("enroll", "bob", 401),
        ("deny", "node/alice", 0),
    ]


def test_a_token_of_another_coordinator_is_not_shown_to_this_one(world: World, url: str, tmp_path: Path) -> None:
    token = JoinToken(pin="0" * 64, id="00000000", secret="A" * 32)
    with pytest.raises(PinMismatch):
        join(tmp_path, token, url=url, node="alice", network=Network())
    assert world.log() == []
