"""A running coordinator: its parts put together over one state folder, started and stopped.

<state>/coordinator.sqlite   enrolment and studies      <state>/blobs/       what is too large for a row
<state>/authority/           issuer and trusted roots   <state>/ca/          the root's key, which can be taken offline
<state>/server.pem           its own key and chain      <state>/admin.sock   administration, mode 0600
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from freehold.coordinator.administration import Administration, serve_unix
from freehold.coordinator.app import App
from freehold.coordinator.authority import NODE_LIFE_S, Authority
from freehold.coordinator.child import ServerCode
from freehold.coordinator.enrolment import Enrolment
from freehold.coordinator.enrolment_tables import denied, readings, transactions
from freehold.coordinator.metrics import Metrics, serve_plain
from freehold.coordinator.presence import Presence
from freehold.coordinator.signing import trusting
from freehold.coordinator.store import Store, connect
from freehold.coordinator.studies import Studies
from freehold.errors import CoordinatorError
from freehold.events import Event, Listener, silent
from freehold.wire import spki
from freehold.wire.ingest import Ingest, Pace
from freehold.wire.process import Spawn, spawn
from freehold.wire.server import Identity, Peers, give_back_memory, save_connection_memory, serve, server_context

_TRIM_S: Final = 5.0
"""From a round's end until the memory that it took is handed back, so that rounds of milliseconds do not pay for it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a coordinator runs."""

    state: Path
    federation: str = "freehold"
    host: str = "127.0.0.1"
    port: int = 8443  # 0: any free one
    names: tuple[str, ...] = ()  # DNS names and addresses that nodes know it by; () = the host's own
    database: str = ""  # URL; "" = SQLite in the state folder
    ca_dir: Path | None = None  # where the root's key is; None = in the state folder
    metrics_port: int = 0  # of Prometheus metrics, on loopback; 0: none
    study_keys: tuple[Path, ...] = ()  # public keys that sign plans; () = any plan that the admin socket brings

    def hosts(self) -> tuple[str, ...]:
        """The names in its certificate."""
        if self.names:
            return self.names
        own = [socket.gethostname(), "localhost", "127.0.0.1"]
        try:
            if not ipaddress.ip_address(self.host).is_unspecified:
                own.append(self.host)
        except ValueError:
            own.append(self.host)
        return tuple(dict.fromkeys(own))


@dataclass(kw_only=True)
class Service:
    """A coordinator between `start` and `stop`."""

    settings: Settings
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    listener: Listener = silent
    spawn: Spawn = spawn
    pace: Pace = field(default_factory=Pace)
    idle_s: float = 30.0  # a connection without a whole request for so long is cut
    poll_s: float = 300.0  # the longest that an answer is held back, whatever a node asks for
    node_life_s: float = NODE_LIFE_S  # of the certificates that nodes get
    _denied: set[str] = field(default_factory=set)
    _trim: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Take up every study where it was, then listen."""
        state, admit = self.settings.state, trusting(self.settings.study_keys)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_connection_memory()
        authority = Authority.open(
            state / "authority",
            federation=self.settings.federation,
            now=self.clock(),
            ca_dir=self.settings.ca_dir or state / "ca",
        )
        engine = connect(self.settings.database or f"sqlite:///{state / 'coordinator.sqlite'}")
        self.store = Store(engine, state / "blobs")
        self.store.sweep()
        self._read_denied()
        self.enrolment = Enrolment(
            authority=authority,
            transaction=transactions(engine),
            reading=readings(engine),
            clock=self.clock,
            lifetime_s=self.node_life_s,
        )
        self.code = ServerCode(spawn=self.spawn)
        self.presence = Presence(self.store, self.clock)
        self.studies = Studies(
            self.store,
            self.code,
            self.presence.offering,
            clock=self.clock,
            tell=self._tell,
            admit=admit,
        )
        self.metrics = Metrics(self.presence, self._expiries, self.clock)
        self.peers = Peers(clock=self.clock, denied=self._is_denied)
        self.ingest = Ingest(state / "blobs", pace=self.pace)
        self.administration = Administration(
            enrolment=self.enrolment,
            studies=self.studies,
            store=self.store,
            presence=self.presence,
            denied=self._deny,
            url=lambda: self.url,
            tell=self._tell,
        )
        await self.studies.recover()
        pair = state / "server.pem"
        due = self._issue_own()
        self._context = server_context(pair, pair, authority.roots_pem)
        app = App(
            enrolment=self.enrolment,
            studies=self.studies,
            store=self.store,
            presence=self.presence,
            ingest=self.ingest,
            peers=self.peers,
            replaced=self._replaced,
            poll_s=self.poll_s,
            tell=self._tell,
        ).build()
        try:
            self._serving = await serve(app, self.settings.host, self.settings.port, self._context, keepalive_s=self.idle_s)
        except OSError as error:
            await self._close_parts()
            raise CoordinatorError(
                f"Cannot listen on {self.settings.host}:{self.settings.port}: {error.strerror}.",
                hint="Another program has the port, or the address is not this machine's; give --port or --host.",
            ) from error
        self._renewal = asyncio.create_task(self._keep_fresh(due))
        self._admin = await serve_unix(self.administration.build(), state / "admin.sock")
        await self._serve_metrics()
        self._tell(Event("coordinator.started", {"url": self.url, "federation": self.settings.federation}))

    def _issue_own(self) -> float:
        """A new key and certificate for the coordinator itself; when the next one is due."""
        pair = self.settings.state / "server.pem"
        return self.enrolment.authority.issue_server(pair, hosts=self.settings.hosts(), now=self.clock())

    async def _keep_fresh(self, due: float) -> None:
        """Renew the coordinator's own certificate at two thirds of its life; new connections get the new one."""
        pair = self.settings.state / "server.pem"
        while True:
            await self.sleep(min(max(due - self.clock(), 1.0), 3600.0))
            if self.clock() >= due:
                due = await asyncio.to_thread(self._issue_own)
                self._context.load_cert_chain(pair, pair)
                self._tell(Event("certificate.renewed", {"until": self._expiries()["server"]}))

    async def _serve_metrics(self) -> None:
        self._metrics = None
        if self.settings.metrics_port:
            app = self.metrics.build(lambda: not self.studies.closing)
            try:
                self._metrics = await serve_plain(app, "127.0.0.1", self.settings.metrics_port)
            except OSError as error:
                await self.stop()
                raise CoordinatorError(
                    f"Cannot serve metrics on 127.0.0.1:{self.settings.metrics_port}: {error.strerror}.",
                    hint="Another program has the port; give another --metrics-port.",
                ) from error

    def _expiries(self) -> dict[str, float]:
        issuer, state = self.enrolment.authority.issuer, self.settings.state
        found = {"server": spki.dates(spki.certificates((state / "server.pem").read_text(encoding="ascii"))[0])[1]}
        if issuer is not None:
            found["issuer"] = issuer.certificate.not_valid_after_utc.timestamp()
        return found

    @property
    def url(self) -> str:
        """Where nodes find it."""
        return f"https://{self.settings.hosts()[0] if self.settings.names else _shown(self.settings.host)}:{self._serving.port}"

    async def stop(self) -> None:
        """Answer what waits, then end; every study stays where it is."""
        self._renewal.cancel()
        if self._trim is not None:
            self._trim.cancel()
        self.studies.wake_all()
        await self._serving.close()
        await self._admin.cleanup()
        if self._metrics is not None:
            await self._metrics.cleanup()
        await self._close_parts()
        self._tell(Event("coordinator.stopped", {}))

    async def _close_parts(self) -> None:
        await self.studies.close()
        self.code.end()
        self.ingest.close()
        await asyncio.to_thread(self.store.close)

    def _is_denied(self, identity: Identity) -> bool:
        return bool({identity.serial, identity.serial.lstrip("0"), f"{identity.role}/{identity.name}"} & self._denied)

    def _read_denied(self) -> None:
        self._denied = set(self.store.read(lambda c: c.execute(sa.select(denied.c.what)).scalars().all()))

    def _replaced(self, node: str, last: asyncio.Transport | None) -> None:
        """A name has left, or is another machine's from now on: connections of the certificates that it had before are cut."""
        self._read_denied()
        self.peers.drop_named(self.settings.federation, "node", node, keep=last)

    async def _deny(self, what: str, on: bool) -> None:
        self._read_denied()
        if not on:
            return
        role, _, name = what.partition("/")
        if name:
            self.peers.drop_named(self.settings.federation, role, name)
            if role == "node":
                self.presence.gone(name)
                await self.studies.gone(name)

    def _tell(self, event: Event) -> None:
        if hasattr(self, "administration"):
            self.administration.listen(event)
            self.metrics.listen(event)
            if event.name == "round.closed" and self._trim is None:
                self._trim = asyncio.get_running_loop().call_later(_TRIM_S, self._give_back)
        self.listener(event)

    def _give_back(self) -> None:
        self._trim = None
        asyncio.get_running_loop().run_in_executor(None, give_back_memory)


def _shown(host: str) -> str:
    try:
        return socket.gethostname() if ipaddress.ip_address(host).is_unspecified else host
    except ValueError:
        return host
