"""What operators and researchers can ask of a coordinator: over a Unix socket that only its own user can open, and on its port.

Who may ask what stands in `wire.adminroutes`. The socket asks as an operator.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from aiohttp import web

from freehold.coordinator.enrolment import Enrolment
from freehold.coordinator.presence import Presence
from freehold.coordinator.schedules import schedule_of
from freehold.coordinator.store import Store
from freehold.coordinator.studies import Studies
from freehold.coordinator.study_records import starter_of
from freehold.coordinator.study_tables import contributions, measures, rounds, runs, studies
from freehold.coordinator.witness import Witness
from freehold.errors import NotAllowed, StudyRefused, UnknownRun
from freehold.events import Event, Listener
from freehold.plan import Plan, Run, parse, runs_of
from freehold.wire import admin, adminroutes
from freehold.wire.ingest import read_message
from freehold.wire.messages import Role
from freehold.wire.routes import Route
from freehold.wire.server import refusals, reply


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Who asks."""

    role: Role
    name: str = ""
    """"" on the coordinator's own machine."""

    def __str__(self) -> str:
        return f"{self.role}/{self.name}" if self.name else self.role

    def check(self, route: Route) -> None:
        """Raise NotAllowed unless this role may ask this."""
        if self.role not in route.roles:
            raise NotAllowed(
                f"{self} may not ask for {route.path}; this is for: {', '.join(route.roles)}.",
                hint="An operator can do it for you, or give you another role: `freehold token create --role operator`.",
            )

    def check_own(self, starter: str) -> None:
        """Raise NotAllowed for what somebody else began, unless an operator asks."""
        if self.role != "operator" and starter != str(self):
            raise NotAllowed(
                f"{starter} started this study; {self} may only stop studies of their own.", hint="Ask them, or an operator."
            )


OPERATOR_HERE = Asker(role="operator")
"""Who can open the coordinator's socket."""
AdminAnswer = Callable[[Asker, web.Request], Awaitable[web.StreamResponse]]


class Administration:
    """Answers operators and researchers."""

    def __init__(
        self,
        *,
        enrolment: Enrolment,
        studies: Studies,
        store: Store,
        presence: Presence,
        witness: Witness,
        denied: Callable[[str, bool], Awaitable[None]],
        url: Callable[[], str],
        tell: Listener,
    ) -> None:
        """`denied(identity, on)` is told when the deny list changes."""
        self._enrolment, self._studies, self._store, self._presence = enrolment, studies, store, presence
        self._witness = witness
        self._denied, self._url, self._tell = denied, url, tell
        self._since = time.time()
        self._plans: dict[str, tuple[Plan, dict[str, Run]]] = {}
        self.refused: Counter[str] = Counter()

    def listen(self, event: Event) -> None:
        """Count refusals."""
        if event.name == "request.refused":
            self.refused[str(event.fields["code"])] += 1

    def build(self) -> web.Application:
        """The application to serve on the socket."""
        app = web.Application(middlewares=[refusals(self._tell)])
        for route, answer in self.answers().items():
            app.router.add_route(route.method, adminroutes.on_socket(route), partial(answer, OPERATOR_HERE))
        return app

    def answers(self) -> Mapping[Route, AdminAnswer]:
        """What answers each route, once it is known who asks and that they may."""
        return {
            adminroutes.STATUS: self._status,
            adminroutes.TOKENS: self._tokens,
            adminroutes.CREATE_TOKEN: self._create_token,
            adminroutes.REVOKE_TOKEN: self._revoke,
            adminroutes.DENIED: self._denials,
            adminroutes.DENY: self._deny,
            adminroutes.ALLOW: self._allow,
            adminroutes.STUDIES: self._list,
            adminroutes.START_STUDY: self._start,
            adminroutes.STOP_STUDY: self._stop,
            adminroutes.RESULTS: self._results,
        }

    async def _status(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        now = time.time()
        ledgers = await asyncio.to_thread(self._witness.all)
        nodes = [
            admin.NodeInfo(
                name=name,
                datasets=sorted(seen.datasets),
                last_seen=seen.last,
                connected=seen.connected(now),
                sandbox=seen.sandbox,  # type: ignore[arg-type]  # as it was stored
                ledger_lines=ledgers[name].head.n if name in ledgers else 0,
                ledger_fault=ledgers[name].fault if name in ledgers else "",
            )
            for name, seen in sorted(self._presence.all().items())
        ]
        return reply(
            admin.Status(
                federation=self._enrolment.authority.federation,
                url=self._url(),
                release=version("freehold"),
                since=self._since,
                nodes=nodes,
                studies=self._infos(),
                refused=dict(self.refused),
            )
        )

    async def _tokens(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        found = await asyncio.to_thread(self._enrolment.tokens)
        return reply(
            admin.Tokens(
                tokens=[
                    admin.TokenInfo(
                        id=t.id,
                        role=t.role,  # type: ignore[arg-type]  # as it was stored
                        node=t.node,
                        uses=t.uses,
                        created=t.created,
                        expires=t.expires,
                        creator=t.creator,
                        revoked=t.revoked,
                    )
                    for t in found
                ]
            )
        )

    async def _create_token(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        message = await read_message(request, admin.TokenRequest)
        made = await asyncio.to_thread(
            self._enrolment.create_token,
            creator=str(asker),
            ttl_s=message.ttl_s,
            node=message.node,
            uses=message.uses,
            role=message.role,
        )
        return reply(admin.TokenMade(token=made.format(), expires=time.time() + message.ttl_s, url=self._url()))

    async def _revoke(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        message = await read_message(request, admin.Subject)
        await asyncio.to_thread(self._enrolment.revoke_token, message.name, by=str(asker))
        return reply(admin.Done())

    async def _deny(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        message = await read_message(request, admin.Denial)
        await asyncio.to_thread(
            self._enrolment.deny, message.name, by=str(asker), reason=message.reason, even_unknown=message.even_unknown
        )
        await self._denied(message.name, True)
        return reply(admin.Done())

    async def _denials(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        found = await asyncio.to_thread(self._enrolment.denials)
        return reply(
            admin.Denials(
                denied=[admin.DenialInfo(name=d.what, since=d.time, reason=d.reason, identity=d.identity) for d in found]
            )
        )

    async def _allow(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        message = await read_message(request, admin.Subject)
        await asyncio.to_thread(self._enrolment.allow, message.name, by=str(asker))
        await self._denied(message.name, False)
        return reply(admin.Done())

    async def _list(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        return reply(admin.Studies(studies=self._infos()))

    async def _start(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        message = await read_message(request, admin.StudyRequest)
        if message.times is not None and message.every_s is None:
            raise StudyRefused("A study is to be run several times, but not how often.", hint="Add --every, for instance 24h.")
        digest = await self._studies.start(
            message.plan,
            message.signature,
            bundle=message.bundle or None,
            by=str(asker),
            every_s=message.every_s,
            times=message.times,
        )
        return reply(admin.StudyStarted(digest=digest))

    async def _stop(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        message = await read_message(request, admin.Subject)
        digest = self._digest(message.name)
        asker.check_own(self._store.read(lambda c: starter_of(c, digest)))
        await self._studies.stop(digest, message.reason or f"stopped by {asker}")
        return reply(admin.Done())

    async def _results(self, asker: Asker, request: web.Request) -> web.StreamResponse:
        digest, asked = self._digest(request.match_info["study"]), request.query.get("cycle", "")
        cycle = int(asked) if re.fullmatch("[0-9]{1,7}", asked) else None
        return reply(self._store.read(lambda c: results(c, self._store, digest, cycle)))

    def _digest(self, name: str) -> str:
        """A study by its digest, the beginning of it, or its name."""

        def find(connection: sa.Connection) -> list[str]:
            whole = sa.or_(
                studies.c.digest.startswith(name), studies.c.digest.startswith(f"sha256:{name}"), studies.c.name == name
            )
            return list(connection.execute(sa.select(studies.c.digest).where(whole)).scalars())

        found = self._store.read(find)
        if len(found) != 1:
            said = f"{len(found)} studies are called {name!r}" if found else f"No study is called {name!r}"
            raise UnknownRun(f"{said}.", hint="`freehold study list` shows names and digests; give a digest, or its beginning.")
        return found[0]

    def _known(self, sha256: str) -> tuple[Plan, dict[str, Run]]:
        """A stored plan and its runs by id; kept, since reading one takes milliseconds."""
        if sha256 not in self._plans:
            plan = parse(self._store.blob_bytes(sha256).decode())
            self._plans[sha256] = plan, {run.id: run for run in runs_of(plan)}
        return self._plans[sha256]

    def _infos(self) -> list[admin.StudyInfo]:
        live = {run.id: run for run in self._studies.open_runs()}

        def read(connection: sa.Connection) -> list[admin.StudyInfo]:
            infos = []
            for row in connection.execute(sa.select(studies).order_by(studies.c.started)):
                plan, named = self._known(row.plan)
                told = []
                for r in connection.execute(sa.select(runs).where(runs.c.study == row.digest).order_by(runs.c.number)):
                    now = live.get(r.id)
                    told.append(
                        admin.RunInfo(
                            id=r.id,
                            algorithm=named[r.id].algorithm.name,
                            repeat=named[r.id].repeat,
                            state=now.state if now else r.state,
                            round=now.round if now else r.round,
                            rounds=plan.training.rounds,
                            asked=list(now.cohort) if now else [],
                            heard=sorted(now.received) if now else [],
                            deadline=now.deadline if now else 0.0,
                            cycle=plan.training.cycle(now.round if now else r.round),
                            declined=now.told_declined() if now else {},
                            needs=now.needs if now else 0,
                        )
                    )
                infos.append(
                    admin.StudyInfo(
                        digest=row.digest,
                        name=row.name,
                        state=row.state,
                        started=row.started,
                        ended=row.ended,
                        reason=row.reason,
                        runs=told,
                        by=row.by,
                        schedule=schedule_of(connection, row.digest),
                        least_nodes=plan.round.least_nodes,
                        offering=len(self._presence.offering(plan.task.name, plan.clients == "devices")),
                    )
                )
            return infos

        return self._store.read(read)


def results(connection: sa.Connection, store: Store, digest: str, cycle: int | None = None) -> admin.Results:
    """All that is known of a study's cycle: of this one, or the last in which all runs are measured."""
    plan = connection.execute(sa.select(studies.c.plan).where(studies.c.digest == digest)).scalar_one()
    text = store.blob_bytes(plan).decode()
    training, all_runs = parse(text).training, len(runs_of(parse(text)))
    own = sa.select(runs.c.id).where(runs.c.study == digest)
    closed = connection.execute(
        sa.select(rounds).where(rounds.c.run.in_(own), rounds.c.closed.is_not(None)).order_by(rounds.c.run, rounds.c.round)
    ).all()
    ends: dict[int, list[float]] = {}
    for row in closed:
        if not training.trains(row.round):
            ends.setdefault(training.cycle(row.round), []).append(row.closed)
    cycles = [admin.Cycle(index=i, measured=len(when), ended=max(when)) for i, when in sorted(ends.items())]
    if cycle is None:
        cycle = max((each.index for each in cycles if each.measured == all_runs), default=0)
    told: dict[str, dict[str, str]] = {}
    measuring = measures.c.round == cycle * (training.rounds + 1) + training.rounds
    for row in connection.execute(sa.select(measures).where(measures.c.run.in_(own), measuring)):
        told.setdefault(row.run, {})[row.node] = row.body
    heard: dict[tuple[str, int], list[Any]] = {}
    sent: dict[str, int] = {}
    trained_in: dict[str, set[str]] = {}
    for row in connection.execute(sa.select(contributions).where(contributions.c.run.in_(own)).order_by(contributions.c.node)):
        heard.setdefault((row.run, row.summed), []).append(row)
        sent[row.node] = sent.get(row.node, 0) + row.length
        trained_in.setdefault(row.node, set()).add(row.sandbox)
    return admin.Results(
        plan=text,
        rounds=[
            admin.RoundInfo(
                run=r.run,
                round=r.round,
                heard=[c.node for c in heard.get((r.run, r.round), []) if c.counted],
                seconds=r.closed - r.opened,
                bytes=sum(c.length for c in heard.get((r.run, r.round), [])),
                sandboxes=tuple(sorted({c.sandbox for c in heard.get((r.run, r.round), []) if c.counted})),
            )
            for r in closed
            if training.cycle(r.round) == cycle
        ],
        measures=told,
        sent_bytes=sent,
        sandboxes={node: tuple(sorted(levels)) for node, levels in trained_in.items()},
        cycle=cycle,
        cycles=tuple(cycles),
    )


async def serve_unix(app: web.Application, path: Path) -> web.AppRunner:
    """Serve on a Unix socket of mode 0600; a socket that a killed coordinator left is replaced."""
    path.unlink(missing_ok=True)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    mask = os.umask(0o177)  # the socket must never be open to others, not even for a moment
    try:
        await web.UnixSite(runner, str(path)).start()
    finally:
        os.umask(mask)
    return runner
