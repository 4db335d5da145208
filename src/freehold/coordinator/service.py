"""A running coordinator: its parts put together over one state folder, started and stopped.

<state>/coordinator.sqlite   enrolment and studies      <state>/blobs/       what is too large for a row, and arrives
<state>/authority/           issuer and trusted roots   <state>/ca/          the root's key, which can be taken offline
<state>/server.pem           its own key and chain      <state>/admin.sock   administration, mode 0600
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from freehold.coordinator.administration import Administration, serve_unix
from freehold.coordinator.admission import names_of
from freehold.coordinator.app import App
from freehold.coordinator.authority import NODE_LIFE_S, Authority
from freehold.coordinator.blobs import blobs_at
from freehold.coordinator.child import ServerCode
from freehold.coordinator.enrolment import PERSON_LIFE_S, Enrolment
from freehold.coordinator.enrolment_tables import denied, readings, transactions
from freehold.coordinator.lease import LIFE_S, Lease
from freehold.coordinator.metrics import Metrics, serve_plain
from freehold.coordinator.ownca import OwnCertificates, check_server, open_authority
from freehold.coordinator.presence import Presence
from freehold.coordinator.quotas import Quotas
from freehold.coordinator.replicas import Replicas, check_blobs, check_roots, name_of
from freehold.coordinator.store import Store, connect
from freehold.coordinator.studies import Studies
from freehold.coordinator.witness import Witness
from freehold.errors import CertificateUnfit, CoordinatorError
from freehold.events import Event, Listener, silent
from freehold.sandbox.starting import for_foreign_code
from freehold.signing import trusting
from freehold.wire import spki
from freehold.wire.ingest import Ingest, Pace
from freehold.wire.process import Spawn, spawn
from freehold.wire.server import Identity, Peers, give_back_memory, save_connection_memory, serve, server_context

_TRIM_S: Final = 5.0
"""From a round's end until the memory that it took is handed back, so that rounds of milliseconds do not pay for it."""

_COLLECT: Final = (20_000, 10, 10)
"""When Python looks for cycles. By its default it looks at all that thousands of connections hold in every other round."""

LOOK_AGAIN_S = 5.0
"""Between two looks at the files of a certificate that others renew."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a coordinator runs."""

    state: Path
    federation: str = "freehold"
    host: str = "127.0.0.1"
    port: int = 8443  # 0: any free one
    names: tuple[str, ...] = ()  # DNS names and addresses that nodes know it by; () = the host's own
    database: str = ""  # URL; "" = SQLite in the state folder
    blobs: str = ""  # URL of a bucket for what is too large for a row; "" = a folder in the state folder
    ca_dir: Path | None = None  # where the root's key is; None = in the state folder
    metrics_port: int = 0  # of Prometheus metrics, on loopback; 0: none
    own: OwnCertificates = field(default_factory=OwnCertificates)  # of the organisation's CA
    quotas: Quotas = field(default_factory=Quotas)  # what one researcher may take
    study_keys: tuple[Path, ...] = ()  # public keys that sign plans; () = any plan that the admin socket brings

    def hosts(self) -> tuple[str, ...]:
        """The names in its certificate, where it makes that itself."""
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
    person_life_s: float = PERSON_LIFE_S  # of those that operators and researchers get
    lease_s: float = LIFE_S  # how long another coordinator over the same database waits for this one, if it dies
    _denied: set[str] = field(default_factory=set)
    _pair: tuple[Path, Path] = field(init=False)  # its own certificate and key
    _known: tuple[str, ...] = field(init=False, default=())  # the names in it that it was given
    _files: tuple[tuple[int, int, int], ...] = field(init=False, default=())
    _trim: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Take up every study where it was, then listen."""
        state, admit = self.settings.state, trusting(self.settings.study_keys)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_connection_memory()
        gc.set_threshold(*_COLLECT)
        authority = self._authority()
        engine = connect(self.settings.database or f"sqlite:///{state / 'coordinator.sqlite'}")
        self.store = Store(engine, blobs_at(self.settings.blobs, state / "blobs"), name_of(state))
        await self.store.write(lambda c: check_roots(c, authority), "coordinator.roots")
        self.lease = Lease(self.store, life_s=self.lease_s)
        leads, blobs = await self.lease.keep(), self.settings.blobs
        await self.store.write(lambda c: check_blobs(c, self.store, blobs, leads=leads), "coordinator.roots")
        self.store.sweep()
        self._read_denied()
        self.enrolment = Enrolment(
            authority=authority,
            transaction=transactions(engine, lambda c: self.store.announce(c, "nodes")),
            reading=readings(engine),
            clock=self.clock,
            lifetime_s=self.node_life_s,
            person_life_s=self.person_life_s,
        )
        self.code = ServerCode(
            spawn=self.spawn,
            sandboxed=lambda: for_foreign_code(str(state)),
            bundle_of=lambda digest: self.store.blob_bytes(digest.removeprefix("sha256:")),
        )
        self.presence = Presence(self.store, self.clock)
        self.witness = Witness(self.store, lambda: self._pair, clock=self.clock, tell=self._tell)
        self.studies = Studies(
            self.store,
            self.code,
            self.presence.offering,
            clock=self.clock,
            tell=self._tell,
            admit=admit,
            lease=self.lease,
            quotas=self.settings.quotas,
        )
        self.metrics = Metrics(self.presence, self._expiries, self.clock)
        self.peers = Peers(clock=self.clock, denied=self._is_denied)
        self.ingest = Ingest(state / "blobs", pace=self.pace)
        self.administration = Administration(
            enrolment=self.enrolment,
            studies=self.studies,
            store=self.store,
            presence=self.presence,
            witness=self.witness,
            denied=self._deny,
            url=lambda: self.url,
            tell=self._tell,
        )
        await self.studies.recover()
        self.replicas = Replicas(self.store, self.lease, self.studies, self.presence, self._deny_again, tell=self._tell)
        due = self._renew_own()
        self._context = server_context(*self._pair, authority.anchors_pem)
        app = self._app()
        where = self.settings.host, self.settings.port, self._context
        try:
            self._serving = await serve(app.build(), *where, keepalive_s=self.idle_s, lost=app.lost)
        except OSError as error:
            await self._close_parts()
            raise CoordinatorError(
                f"Cannot listen on {self.settings.host}:{self.settings.port}: {error.strerror}.",
                hint="Another program has the port, or the address is not this machine's; give --port or --host.",
            ) from error
        self.replicas.start()
        self._renewal = asyncio.create_task(self._keep_fresh(due))
        self._admin = await serve_unix(self.administration.build(), state / "admin.sock")
        await self._serve_metrics()
        self._tell(Event("coordinator.started", {"url": self.url, "federation": self.settings.federation}))

    def _app(self) -> App:
        """What answers on the port."""
        return App(
            enrolment=self.enrolment,
            administration=self.administration,
            studies=self.studies,
            store=self.store,
            presence=self.presence,
            witness=self.witness,
            ingest=self.ingest,
            peers=self.peers,
            replaced=self._replaced,
            strangers=self.settings.own.client_ca is not None,
            poll_s=self.poll_s,
            tell=self._tell,
        )

    def _authority(self) -> Authority:
        return open_authority(
            self.settings.own,
            self.settings.state / "authority",
            federation=self.settings.federation,
            now=self.clock(),
            ca_dir=self.settings.ca_dir or self.settings.state / "ca",
            names=self.settings.names,
        )

    def _renew_own(self) -> float:
        """A new key and certificate for the coordinator itself, or those of its CA; when to look for the next ones."""
        own, settings = self.settings.own, self.settings
        if own.server_cert is None or own.server_key is None:
            pair = settings.state / "server.pem"
            self._pair, self._known = (pair, pair), settings.hosts() if settings.names else ()
            return self.enrolment.authority.issue_server(pair, hosts=settings.hosts(), now=self.clock())
        # Before they are read: what changes meanwhile is looked at again. One that does not fit is, too, but once.
        self._files = _version(own.server_cert, own.server_key)
        found = check_server(own, names=settings.names, now=self.clock())
        self._pair, self._known = (own.server_cert, own.server_key), settings.names or found.names
        return self.clock() + LOOK_AGAIN_S

    async def _keep_fresh(self, due: float) -> None:
        """Renew the coordinator's own certificate at two thirds of its life; new connections get the new one.

        Where its CA renews it, take what lies in the files once it has changed and is whole; until then the old one stays.
        """
        while True:
            await self.sleep(min(max(due - self.clock(), 1.0), 3600.0))
            if self.clock() < due:
                continue
            if self.settings.own.server_cert is not None and _version(*self._pair) == self._files:
                due = self.clock() + LOOK_AGAIN_S
                continue
            try:
                due = await asyncio.to_thread(self._renew_own)
                self._context.load_cert_chain(*self._pair)
                self._tell(Event("certificate.renewed", {"until": self._expiries()["server"]}))
            except (CertificateUnfit, ssl.SSLError, OSError) as error:
                if self.settings.own.server_cert is None:
                    raise
                code = error.code if isinstance(error, CertificateUnfit) else CertificateUnfit.code
                self._tell(Event("certificate.not_renewed", {"code": code}))
                due = self.clock() + LOOK_AGAIN_S

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
        issuer = self.enrolment.authority.issuer
        found = {"server": spki.dates(spki.certificates(self._pair[0].read_text(encoding="utf-8"))[0])[1]}
        if issuer is not None:
            found["issuer"] = issuer.certificate.not_valid_after_utc.timestamp()
        return found

    @property
    def url(self) -> str:
        """Where nodes find it."""
        return f"https://{self._known[0] if self._known else _shown(self.settings.host)}:{self._serving.port}"

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
        await self.replicas.close()
        self.code.end()
        self.ingest.close()
        await asyncio.to_thread(self.store.close)

    def _is_denied(self, identity: Identity) -> bool:
        return not self._denied.isdisjoint(names_of(identity))

    def _read_denied(self) -> None:
        self._denied = set(self.store.read(lambda c: c.execute(sa.select(denied.c.what)).scalars().all()))

    def _deny_again(self) -> None:
        """Another coordinator may have denied somebody who is connected here."""
        self._read_denied()
        self.peers.drop_denied()

    def _replaced(self, role: str, name: str, last: asyncio.Transport | None) -> None:
        """A name has left, or is another machine's from now on: connections of the certificates that it had before are cut."""
        self._read_denied()
        self.peers.drop_named(self.settings.federation, role, name, keep=last)

    async def _deny(self, what: str, on: bool) -> None:
        self._read_denied()
        if not on:
            return
        self.peers.drop_denied()
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


def _version(*paths: Path) -> tuple[tuple[int, int, int], ...]:
    """What changes when a file is replaced or written; nothing for one that is not there for a moment."""
    found = []
    for path in paths:
        try:
            told = path.stat()
        except OSError:
            continue
        found.append((told.st_ino, told.st_mtime_ns, told.st_size))
    return tuple(found)


def _shown(host: str) -> str:
    try:
        return socket.gethostname() if ipaddress.ip_address(host).is_unspecified else host
    except ValueError:
        return host
