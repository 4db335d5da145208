"""What operators, researchers and the coordinator say to each other: messages, and clients.

On the machine itself over the coordinator's Unix socket, from elsewhere over its port with a certificate.
"""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import msgspec

from freehold.errors import FreeholdError, Unreachable, WireError, by_code
from freehold.wire.messages import Message, Problem, Role, Sandbox, Signature, decode, encode

M = TypeVar("M", bound=Message)


class TokenRequest(Message, frozen=True, kw_only=True):
    """POST /v1/tokens."""

    role: Role = "node"
    node: str | None = None
    """The name that it is bound to, of a node or a person; None: any node's."""
    ttl_s: float = 86400.0
    uses: int = 1


class TokenMade(Message, frozen=True, kw_only=True):
    """The only time that a token's secret is shown."""

    token: str
    expires: float
    url: str


class TokenInfo(Message, frozen=True, kw_only=True):
    """A token without its secret; times are Unix time."""

    id: str
    role: Role = "node"
    node: str | None
    uses: int
    created: float
    expires: float
    creator: str
    revoked: float | None


class Tokens(Message, frozen=True, kw_only=True):
    """GET /v1/tokens."""

    tokens: list[TokenInfo]


class Subject(Message, frozen=True, kw_only=True):
    """POST /v1/tokens/revoke, /v1/allow and /v1/studies/stop: a token, an identity or a study."""

    name: str
    reason: str = ""


class Denial(Message, frozen=True, kw_only=True):
    """POST /v1/deny: an identity like node/alice, or a certificate's serial."""

    name: str
    reason: str = ""
    even_unknown: bool = False
    """Also one that nobody here has or had."""


class DenialInfo(Message, frozen=True, kw_only=True):
    """An entry of the deny list; `since` is Unix time."""

    name: str
    since: float
    reason: str
    identity: str | None = None
    """Whose certificate it is, of a serial that the coordinator gave out."""


class Denials(Message, frozen=True, kw_only=True):
    """GET /v1/denied, the oldest entry first."""

    denied: list[DenialInfo]


class Done(Message, frozen=True, kw_only=True):
    """It was done."""


class NodeInfo(Message, frozen=True, kw_only=True):
    """A node; times are Unix time, 0 for never since the start."""

    name: str
    datasets: list[str]
    last_seen: float
    connected: bool
    sandbox: Sandbox = ""
    ledger_lines: int = 0
    """Of the node's ledger, as far as it has shown them."""
    ledger_fault: str = ""
    """What is amiss with it: it went back, or is another one."""


class RunInfo(Message, frozen=True, kw_only=True):
    """A run."""

    id: str
    algorithm: str
    repeat: int
    state: str
    round: int
    """Grows over all cycles; each has one round after its last that measures."""
    rounds: int
    """That train, in a cycle."""
    asked: list[str]
    heard: list[str]
    deadline: float
    cycle: int = 0
    declined: dict[str, int] = msgspec.field(default_factory=dict)
    """Node -> the number of the error with which it declined the open round; a node says no more than that."""
    needs: int = 0
    """Answers without which the open round cannot close."""


class Schedule(Message, frozen=True, kw_only=True):
    """Of a study that keeps learning: a cycle trains all rounds of the plan and measures. Times are Unix time."""

    every_s: float
    """From one cycle's beginning to the next."""
    times: int | None
    """Cycles in all; None: until the study is stopped."""
    cycle: int
    """The index of the cycle that is under way, or was last."""
    due: float
    """When the next one begins at the earliest."""


class StudyInfo(Message, frozen=True, kw_only=True):
    """A study."""

    digest: str
    name: str
    state: str
    started: float
    ended: float | None
    reason: str | None
    runs: list[RunInfo]
    by: str = "operator"
    """Who started it: researcher/carol; "operator" is the coordinator's own machine."""
    schedule: Schedule | None = None
    least_nodes: int = 1
    """With fewer that offer its data, no run opens."""
    offering: int = 0
    """Nodes that offer its data now."""


class Studies(Message, frozen=True, kw_only=True):
    """GET /v1/studies."""

    studies: list[StudyInfo]


class StudyRequest(Message, frozen=True, kw_only=True):
    """POST /v1/studies: a plan as TOML, its signature, and the bundle that it names.

    `every_s`: it trains and measures again so long after it last began to, until it is stopped or has done so `times`.
    """

    plan: str
    signature: Signature | None = None
    bundle: bytes | msgspec.UnsetType = msgspec.UNSET
    every_s: Annotated[float, msgspec.Meta(ge=1)] | None = None
    times: Annotated[int, msgspec.Meta(ge=1, le=10**6)] | None = None


class StudyStarted(Message, frozen=True, kw_only=True):
    """The plan's digest, by which the study is known."""

    digest: str


class RoundInfo(Message, frozen=True, kw_only=True):
    """A closed round; seconds from its opening to its closing, and what its contributions weighed in bytes."""

    run: str
    round: int
    heard: list[str]
    seconds: float
    bytes: int
    sandboxes: tuple[str, ...] = ()
    """In what those that counted were trained, by the nodes' own word; "" where one says nothing."""


class Cycle(Message, frozen=True, kw_only=True):
    """A cycle of a study that keeps learning."""

    index: int
    measured: int
    """Runs that are measured in it."""
    ended: float
    """When the last of them was, Unix time."""


class Results(Message, frozen=True, kw_only=True):
    """GET /v1/studies/{digest}: what is known of a study. `measures`: run -> node -> the node's message as JSON.

    Rounds and measures are those of one cycle: `?cycle=` says which, else the last in which all runs are measured, or the first.
    """

    plan: str
    rounds: list[RoundInfo]
    measures: dict[str, dict[str, str]]
    sent_bytes: dict[str, int]
    """Node -> bytes of its contributions, in all cycles."""
    sandboxes: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Node -> in what its contributions were trained, by its own word; levels of the sandbox, or off."""
    cycle: int = 0
    cycles: tuple[Cycle, ...] = ()
    """Those in which a run is measured."""


class Status(Message, frozen=True, kw_only=True):
    """GET /v1/status."""

    federation: str
    url: str
    release: str
    since: float
    nodes: list[NodeInfo]
    studies: list[StudyInfo]
    refused: dict[str, int]
    """Error number -> requests that were refused with it."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Administrator(Protocol):
    """Asks a coordinator. The paths are those of its socket."""

    def get(self, route: str, kind: type[M]) -> M:
        """Ask; raises Unreachable, or what the coordinator refused with."""

    def post(self, route: str, message: Message, kind: type[M]) -> M:
        """Tell; raises as `get`."""


class Admin:
    """Asks a coordinator over its Unix socket, which only its own user can open."""

    def __init__(self, path: Path, *, timeout_s: float = 60.0) -> None:
        self._path, self._timeout_s = path, timeout_s

    def get(self, route: str, kind: type[M]) -> M:
        """Ask; raises Unreachable, or what the coordinator refused with."""
        return self._ask("GET", route, b"", kind)

    def post(self, route: str, message: Message, kind: type[M]) -> M:
        """Tell; raises as `get`."""
        return self._ask("POST", route, encode(message), kind)

    def _ask(self, method: str, route: str, body: bytes, kind: type[M]) -> M:
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            connection.request(method, route, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found = answer.read()
        except OSError as error:
            raise Unreachable(
                f"No coordinator answers at {self._path}: {error.strerror or error}.",
                hint="Start it with `freehold coordinator start`, or name its state folder with --state.",
            ) from error
        except http.client.HTTPException as error:
            raise Unreachable("The coordinator ended within an answer.", hint="Look at its log.") from error
        finally:
            connection.close()
        if answer.status == 200:
            return decode(found, kind)
        try:
            told = decode(found, Problem)
        except WireError:
            raise WireError(f"The coordinator answers with status {answer.status}.", hint="Look at its log.") from None
        raise (by_code(told.code) or FreeholdError)(told.message, hint=told.hint)
