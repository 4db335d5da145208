"""A running node: joins if it has to, keeps its certificate fresh, shows its page, and works until it is told to stop.

<state>/identity/   key, certificate, roots (see `node.credentials`)
<state>/vault/      personal states        <state>/studies/   what the node found out about each study, for its page
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from freehold.errors import CertificateUnfit, FreeholdError, NotJoined, UsageError
from freehold.events import Event, Listener, silent
from freehold.node import credentials, outside
from freehold.node.agent import Agent
from freehold.node.control import Control
from freehold.node.credentials import Credentials, renew_at
from freehold.node.join import Network, join, renew
from freehold.node.rest import Rules
from freehold.node.upstream import Upstream
from freehold.wire.client import Connection, Timeouts, retry, trusting
from freehold.wire.jointoken import JoinToken
from freehold.wire.messages import WorkReply, WorkRequest
from freehold.wire.process import Spawn, spawn
from freehold.wire.routes import WORK

RENEWAL_RETRY_S = 300.0
GOODBYE = Timeouts(connect_s=2.0, read_s=2.0)
"""A node that is told to stop does so within seconds, whether anybody hears of it or not."""

LOOK_AGAIN_S = 5.0
"""Between two looks at the files of a certificate that others renew."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a node runs."""

    name: str
    state: Path
    datasets: Mapping[str, Path] = field(default_factory=dict)
    """Name -> table; whatever a plan calls its task."""
    coordinator: str = ""
    """URL; "" = the one that it joined."""
    token: JoinToken | None = None
    federation: str | None = None
    rules: Rules = field(default_factory=Rules)
    """When the node works and when it rests."""
    policy: Path | None = None
    """The owner's policy; policy.toml in the state folder if it is not given."""
    tpm: str = ""
    """TCTI of the TPM that seals the vault's key; "" where none does."""
    outside: outside.Files | None = None
    """A certificate from a CA of the organisation's own, in place of a token."""
    sandbox: Literal["required", "off"] = "required"
    """Whether trainers run in a sandbox; "off" trusts every plan with what this user may do."""

    def __post_init__(self) -> None:
        for name, path in self.datasets.items():
            if not path.is_file() or not os.access(path, os.R_OK):
                raise UsageError(f"The data {name} at {path} is no readable file.", hint="Give --data NAME=FILE.")


class Service:
    """A node."""

    def __init__(
        self,
        settings: Settings,
        *,
        listener: Listener = silent,
        spawn: Spawn = spawn,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`clock`: by which the rules have the node rest. `sleep`: how the agent waits."""
        self.settings, self._tell, self._spawn, self._clock, self._sleep = settings, listener, spawn, clock, sleep
        self.agent: Agent | None = None
        self._stopping = threading.Event()
        self._control = Control(settings.state)

    def identity(self) -> Credentials:
        """This node's identity, joining for it if there is none; raises NotJoined without a token, CertificateUnfit."""
        if self.settings.outside is not None:
            return self._from_outside(self.settings.outside)
        try:
            found = credentials.load(self.settings.state)
        except NotJoined:
            found = None
        if found is not None and (time.time() < found.not_after or found.outside_key is not None):
            return found  # where others renew it, they may still do so
        if self.settings.token is None or not self.settings.coordinator:
            raise NotJoined(
                f"Node {self.settings.name} has no valid identity in {self.settings.state}.",
                hint="Give --coordinator URL and --join-file FILE, with a token from `freehold token create`.",
            )
        token = self.settings.token

        def attempt() -> Credentials:
            return join(
                self.settings.state,
                token,
                url=self.settings.coordinator,
                node=self.settings.name,
                network=Network(self._control),
                federation=self.settings.federation,
            )

        found = retry(attempt, sleep=self._stopping.wait, random=random.random, clock=time.monotonic, give_up_s=60.0)
        self._tell(Event("node.joined", {"node": self.settings.name, "federation": found.membership.federation}))
        return found

    def _from_outside(self, files: outside.Files) -> Credentials:
        found = outside.read(files)
        member = found.membership
        if (member.node, member.federation) != (self.settings.name, self.settings.federation or member.federation):
            raise CertificateUnfit(
                f"The certificate in {files.cert} is that of node {member.node!r} in federation {member.federation!r}.",
                hint=f"Start it with --name {member.node}, or have one issued for {self.settings.name}.",
            )
        outside.keep(self.settings.state, files)
        return found

    def run(self) -> None:
        """Join, then work until Stopped is raised (see `stop_when_told`). Raises what joining raises."""
        found = self.identity()
        url = self.settings.coordinator or found.membership.url
        trust = trusting(found.roots.read_text(encoding="ascii"), found.files)
        if found.outside_key is not None:  # roots are renewed, too

            def trust() -> ssl.SSLContext:
                return trusting(found.roots.read_text(encoding="ascii"), found.files)()

        connection = Connection(url, trust, meter=self._control)
        self.agent = Agent(
            Upstream(connection, self._control),
            node=found.membership.node,
            state=self.settings.state,
            datasets=self.settings.datasets,
            url=url,
            policy=self.settings.policy,
            tpm=self.settings.tpm,
            tell=self._tell,
            spawn=self._spawn,
            sleep=self._sleep,
            rules=self.settings.rules,
            clock=self._clock,
            sandbox=self.settings.sandbox,
        )
        work = self._keep_fresh if found.outside_key is None else self._look_again
        renewing = threading.Thread(target=work, args=(found, connection), name="renewal", daemon=True)
        renewing.start()
        try:
            self.agent.run()
        except Stopped:
            if self.agent.status.state == "connected":
                _say_goodbye(Connection(url, trust, timeouts=GOODBYE, meter=self._control))
            raise
        finally:
            self._stopping.set()

    def _keep_fresh(self, found: Credentials, connection: Connection) -> None:
        due = renew_at(found.not_before, found.not_after, random.random())
        while not self._stopping.wait(max(due - time.time(), 0.0)):
            try:
                found = renew(self.settings.state, Network(self._control))
                connection.refresh()
                # A short certificate's dates begin before it was made; its rest is not to be spent on renewals alone.
                rest_s = found.not_after - time.time()
                due = max(renew_at(found.not_before, found.not_after, random.random()), time.time() + rest_s / 3)
                self._tell(Event("certificate.renewed", {"until": found.not_after}))
            except FreeholdError as error:
                self._tell(Event("certificate.not_renewed", {"code": error.code}))
                due = time.time() + RENEWAL_RETRY_S * (0.5 + random.random())

    def _look_again(self, found: Credentials, connection: Connection) -> None:
        """Take what lies in the files once it has changed and is whole; until then the connection stays as it is."""
        known = outside.version(found)
        while not self._stopping.wait(LOOK_AGAIN_S):
            now = outside.version(found)
            if now == known:
                continue
            known = now
            try:
                fresh = credentials.load(self.settings.state)
                connection.refresh()
                self._tell(Event("certificate.renewed", {"until": fresh.not_after}))
            except FreeholdError as error:
                self._tell(Event("certificate.not_renewed", {"code": error.code}))


def _say_goodbye(connection: Connection) -> None:
    """Have the coordinator know that nobody need wait for this node."""
    with contextlib.suppress(FreeholdError):
        connection.post(WORK.path, WorkRequest(stops=True), WorkReply)
    connection.close()


class Stopped(BaseException):
    """Told to end, perhaps in the middle of waiting for an answer: nothing that an agent holds must be saved."""


def stop_when_told() -> None:
    """SIGTERM and SIGINT raise Stopped in the main thread; the second one ends the process at once."""

    def handle(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
