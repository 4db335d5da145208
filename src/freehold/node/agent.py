"""The agent: the node's only process with a network. Standard library and msgspec alone, so an idle node is small.

It asks the coordinator for work, hands it to the guard, and sends what the guard hands back, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from freehold.errors import FreeholdError, NodeError, PeerGone, StoreError, Unreachable, by_code
from freehold.events import Event, Listener, silent
from freehold.node.errands import (
    OWNERS_WORD,
    Busy,
    FromGuard,
    Hello,
    MeasureErrand,
    Outgoing,
    OutgoingMessage,
    PendingRounds,
    Quit,
    Refused,
    Settle,
    TrainErrand,
    errand_of,
    heard,
)
from freehold.node.rest import Rest, Rules
from freehold.node.upstream import Along, Upstream
from freehold.wire.client import retry
from freehold.wire.local import Memory, close, sealed
from freehold.wire.messages import MOST_PENDING, Blob, Measure, Pending, Train, Work, WorkReply, WorkRequest
from freehold.wire.process import Child, Spawn, spawn

GUARD = "freehold.node.guard"
POLL_S = 25.0
"""How long the coordinator may hold an answer back: below what proxies and routers cut."""

SMALL_BYTES = 1 << 20
"""Contributions up to this size wait for the next piece of work in the same request."""

ERRAND_LIMIT_S = 7200.0
MOST_PAUSE_S = 60.0
"""Between two attempts of a node that the coordinator refuses: somebody has to do something first."""

LOOK_S = 60.0
"""Between two looks of a resting node at its owner's rules; the coordinator hears of it every REST_POLL_S."""
REST_POLL_S = 900.0

IDLE_S = 300.0
"""A guard that had nothing to do for so long is ended."""
TEND_S = 86_400.0
"""At least so often there is one, which erases what is kept no longer."""

MOST_KEPT_BYTES = 1 << 23
"""Of a plan, or of its code."""


@dataclass(kw_only=True)
class Status:
    """What the node's page shows."""

    node: str
    coordinator: str
    state: str = "starting"
    since: float = field(default_factory=time.time)
    rounds: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    last_error: str = ""
    last_choice: str = ""
    """What was refused last because the node's owner has said so, by policy, approval or denial: that is no error."""
    rest: Rest | None = None
    """Why it rests; None while it works."""
    sandbox: str = ""
    """What the guard said of it: its level, "off", or "refused: " and why."""
    held: int = 0
    """Attempts to get out of it that held."""


class Agent:
    """One node in one federation."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        node: str,
        state: Path,
        datasets: Mapping[str, Path],
        url: str,
        policy: Path | None = None,
        tell: Listener = silent,
        spawn: Spawn = spawn,
        sleep: Callable[[float], object] = time.sleep,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.time,
        sandbox: Literal["required", "off"] = "required",
        tpm: str = "",
    ) -> None:
        """`clock` is the Unix time by which `rules` have the node work or rest. `tpm`: which seals the vault's key."""
        self._upstream, self._tell = upstream, tell
        paths, rules_file = {k: str(v) for k, v in datasets.items()}, str(policy or "")
        self._hello = Hello(
            node=node, state=str(state), datasets=paths, policy=rules_file, sandbox=sandbox, coordinator=url, tpm=tpm
        )
        self._guard = Child(GUARD, FromGuard, spawn=spawn, opening=self._greet)
        self._plans: dict[str, bytes] = {}
        self._pending: list[Pending] = []
        self._busy = self._tended = time.monotonic()
        self._sleep = sleep
        self._refusals = 0
        self._heard = 0.0  # when the last answer came, on the monotonic clock
        self._rules, self._clock = rules or Rules(), clock
        self._withdrawn = False  # whether the coordinator knows that this node rests
        self.status = Status(node=node, coordinator=url)

    def run(self) -> None:
        """Work until something is raised; then the guard is ended, whose vault is always in order."""
        self._errand(Settle())
        reply: WorkReply | None = None
        try:
            while True:
                if reply is None:
                    self._rest()
                    reply = self._ask(self._poll)
                reply = self._follow(reply)
        finally:
            self._upstream.close()
            self._guard.end()

    def _poll(self, working: Pending | None = None) -> WorkReply:
        # Until it is done a node that is about to rest offers what it did: who offers nothing is not waited for.
        # The first answer after a connection was lost comes at once, so that the node knows that it is back.
        self._look()
        wait_s = self._wait_s() if self.status.state == "connected" and working is None else 0.0
        pending = self._pending[:MOST_PENDING]
        datasets = sorted(self._hello.datasets) if working is not None else self._offers()
        request = WorkRequest(wait_s=wait_s, datasets=datasets, pending=pending, working=working, sandbox=self._level())
        try:
            reply = self._upstream.poll(request)
        except Unreachable:
            raise
        except FreeholdError:  # who may not ask for work is no member, or the coordinator is in trouble
            self.status.state = "refused"
            raise
        self._withdrawn = not datasets
        return reply

    # Rest. A resting node offers nothing, so it is in no new cohort, and declines what it was asked for before.

    def _look(self) -> Rest | None:
        """Why the node rests now; None if it works."""
        found = self._rules.rest(self._clock())
        before, self.status.rest = self.status.rest, found
        if found is not None and (before is None or before.kind != found.kind):
            self._tell(Event("node.rests", {"why": found.why, "until": found.until or 0.0}))
        elif found is None and before is not None:
            self._tell(Event("node.works", {}))
        return found

    def _offers(self) -> list[str]:
        return [] if self._look() is not None else sorted(self._hello.datasets)

    def _wait_s(self) -> float:
        return 0.0 if self.status.rest is not None else POLL_S

    def _rest(self) -> None:
        """While the node rests and the coordinator knows it: look at the rules, and use no network until the next poll is due."""
        rested_s = 0.0
        while (rest := self._look()) is not None and self._withdrawn and rested_s < REST_POLL_S:
            self._guard.end()
            left_s = LOOK_S if rest.until is None else rest.until - self._clock()
            pause_s = min(max(left_s, 0.0), LOOK_S)
            self._sleep(pause_s)
            rested_s += max(pause_s, 1.0)

    def _ask(self, attempt: Callable[[], WorkReply]) -> WorkReply | None:
        """Ask until the coordinator answers; None when it refuses, which is told."""

        def once() -> WorkReply:
            try:
                found = attempt()
            except Unreachable as error:
                before, self.status.state, self.status.last_error = self.status.state, "unreachable", str(error)
                if before != "unreachable":
                    self._tell(Event("coordinator.unreachable", {"url": self.status.coordinator}))
                raise
            self._refusals, self._heard = 0, time.monotonic()
            before, self.status.state = self.status.state, "connected"
            if before != "connected":
                self._tell(Event("coordinator.connected", {"url": self.status.coordinator}))
            return found

        try:
            return retry(once, sleep=self._sleep, random=random.random, clock=time.monotonic, first_s=0.25)
        except FreeholdError as error:
            self.status.last_error = str(error)
            self._tell(Event("coordinator.refused", {"code": error.code}))
            self._sleep(random.random() * min(2.0**self._refusals, MOST_PAUSE_S))
            self._refusals += 1
            return None

    def _follow(self, reply: WorkReply | None) -> WorkReply | None:
        """Do what a reply says; the next one, if the answer to it came along."""
        if reply is None:
            return None
        if reply.settled or reply.ledger is not None:
            told, _ = self._errand(Settle(settled=reply.settled, witnessed=reply.ledger))
            if isinstance(told, Refused):
                # To train on what is not committed would put this node out of step with the coordinator.
                self.status.last_error = f"{told.message} {told.hint}"
                self._tell(Event("vault.refused", {"code": told.code}))
                self._sleep(1.0 + random.random())
                return None
        if reply.work is None:
            if time.monotonic() - self._tended > TEND_S:
                self._tended = time.monotonic()
                self._errand(Settle())
            elif time.monotonic() - self._busy > IDLE_S:
                self._guard.end()
            return None
        self._busy = time.monotonic()
        return self._work(reply.work)

    def _work(self, work: Work) -> WorkReply | None:
        if (rest := self._look()) is not None:
            error = rest.error()
            return self._decline(work, Refused(code=error.code, message=error.message))
        fds: list[int] = []
        out: list[int] = []
        try:
            fds += [self._kept(work.plan), self._fetch(work.shared)]
            fds += [self._kept(work.bundle)] if work.bundle is not None else []
            found, out = self._errand(self._errand_of(work), fds)
            while isinstance(found, Busy):
                # Whether the coordinator still waits, it alone knows: a round that is short of answers is prolonged.
                reply = self._ask(lambda: self._poll(Pending(run=work.run, round=work.round)))
                if reply is None or reply.work is None or (reply.work.run, reply.work.round) != (work.run, work.round):
                    self._errand(Quit())
                    self._tell(Event("work.given_up", {"run": work.run, "round": work.round}))
                    return reply
                found, out = self._errand(self._errand_of(reply.work), fds)
            return self._answer(work, found, out)
        except Unreachable:
            return None  # asked for again once the coordinator is back
        except StoreError as error:
            # The coordinator cannot read what it announced: that is no reason for this node to decline.
            self.status.last_error = str(error)
            self._tell(Event("coordinator.refused", {"code": error.code}))
            self._sleep(1.0 + random.random())
            return None
        except FreeholdError as error:
            self.status.last_error = str(error)
            self._tell(Event("work.failed", {"run": work.run, "round": work.round, "code": error.code}))
            return self._decline(work, Refused(code=error.code, message=error.message))
        finally:
            close([*fds, *out])

    def _errand_of(self, work: Work) -> TrainErrand | MeasureErrand:
        return errand_of(work, left_s=max(work.left_s - (time.monotonic() - self._heard), 0.0))

    def _answer(self, work: Work, found: Any, out: list[int]) -> WorkReply | None:
        if isinstance(found, Refused):
            said = f"{found.message} {found.hint}"
            if found.code in OWNERS_WORD:
                self.status.last_choice = said
            else:
                self.status.last_error = said
            self._tell(Event("work.refused", {"run": work.run, "round": work.round, "code": found.code}))
            return self._decline(work, found)
        if isinstance(found, OutgoingMessage | Outgoing):
            self._upstream.expect(work)
        if isinstance(found, OutgoingMessage) and isinstance(work, Measure):
            return self._ask(lambda: self._upstream.measures(found.body, self._along()))
        if isinstance(found, Outgoing) and isinstance(work, Train):
            self._pending = [*self._pending, Pending(run=work.run, round=work.round)]
            return self._ask(lambda: self._contribute(work, found, out[0]))
        raise NodeError("The guard answered another question.", hint="This is a defect; please report it.")

    def _along(self, wait_s: float | None = None) -> Along:
        return Along(self._wait_s() if wait_s is None else wait_s, self._offers(), self._pending[:MOST_PENDING])

    def _contribute(self, work: Train, found: Outgoing, fd: int) -> WorkReply:
        # The offers first: they look whether the node rests, and who rests does not wait.
        along = Along(0.0, self._offers(), self._pending[-MOST_PENDING:])
        along = along._replace(wait_s=self._wait_s() if found.length <= SMALL_BYTES else 0.0)
        reply = self._upstream.contribute(work, found, fd, along, self._level())
        self.status.rounds += 1
        self.status.sent_bytes += found.length
        self._tell(
            Event("contribution.sent", {"run": work.run, "round": work.round, "bytes": found.length, "sha256": found.sha256})
        )
        return reply

    def _decline(self, work: Work, refused: Refused) -> WorkReply | None:
        along, (code, message) = self._along(), heard(refused.code)
        return self._ask(lambda: self._upstream.decline(work, code, message, along))

    def _kept(self, blob: Blob) -> int:
        """A plan or its code in sealed memory; kept, by content, since each piece of work names them."""
        if blob.length > MOST_KEPT_BYTES:
            raise NodeError("The coordinator announced a plan or code of too many bytes.", hint="It was not fetched.")
        if blob.sha256 not in self._plans:
            fd = self._fetch(blob)
            try:
                if len(self._plans) >= 16:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[blob.sha256] = os.pread(fd, blob.length, 0)
            finally:
                close([fd])
        return sealed(self._plans[blob.sha256], "plan")

    def _fetch(self, blob: Blob) -> int:
        """A blob in sealed memory, verified."""
        self.status.received_bytes += blob.length
        memory = Memory("blob")
        try:
            if blob.body is None:
                self._upstream.fetch(blob, memory)
            else:
                if len(blob.body) != blob.length or hashlib.sha256(blob.body).hexdigest() != blob.sha256:
                    raise NodeError("The coordinator sent bytes that are not what it announced.", hint="It is asked again.")
                memory.write(blob.body)
        except BaseException:
            close([memory.fd])
            raise
        return memory.seal()

    def _level(self) -> Any:
        return self.status.sandbox.partition(":")[0]

    # The guard.

    def _greet(self, child: Child) -> None:
        reply, fds = child.ask(self._hello, timeout_s=60.0, restarts=0)
        close(fds)
        if isinstance(reply, Refused):
            raise (by_code(reply.code) or NodeError)(reply.message, hint=reply.hint)
        self._note(reply)

    def _errand(self, errand: msgspec.Struct, fds: list[int] | None = None) -> tuple[Any, list[int]]:
        try:
            found, got = self._guard.ask(errand, fds or [], timeout_s=ERRAND_LIMIT_S)
        except (PeerGone, TimeoutError, msgspec.MsgspecError) as error:
            raise NodeError(f"The guard died or stalled ({type(error).__name__}).", hint="It is started again.") from error
        self._note(found)
        return found, got

    def _note(self, found: object) -> None:
        for event in getattr(found, "events", ()):
            self._tell(event)
        self._upstream.head = getattr(found, "head", None) or self._upstream.head
        if isinstance(found, PendingRounds):
            self._pending = found.pending
            if found.sandbox and found.sandbox != self.status.sandbox:
                self.status.sandbox, self.status.held = found.sandbox, found.held
                self._tell(found.sandbox_event())
