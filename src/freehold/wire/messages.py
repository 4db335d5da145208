"""The messages between coordinator and nodes, and between an operator and the coordinator: typed, strict, versioned.

Each body but tensors is one of these structs as JSON. A message of another version, with an unknown field or of a wrong type
is refused. Tensors travel as safetensors beside them (`freehold.wire.codec`), named by their SHA-256.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from freehold.errors import FreeholdError, ProtocolVersion, WireError

VERSION = 1
"""Of the protocol. It grows when an older peer could misread a message."""

END = r"$(?!\n)"
"""The end of a text: `$` alone would let a line feed follow, and JSON Schema does not know `\\Z`."""
NAME_PATTERN = rf"^[a-z0-9]([a-z0-9-]{{0,61}}[a-z0-9])?{END}"
SHA256_PATTERN = rf"^[0-9a-f]{{64}}{END}"
RUN_PATTERN = rf"^[0-9a-f]{{16}}-[0-9]{{1,4}}{END}"

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, description="A node's or a federation's name, fit for a host name.")]
Sha256 = Annotated[str, msgspec.Meta(pattern=SHA256_PATTERN, description="SHA-256 of the bytes, lower-case hexadecimal.")]
RunId = Annotated[
    str, msgspec.Meta(pattern=RUN_PATTERN, description="The first 16 digits of the plan's digest, and the run's number.")
]
RoundIndex = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
LineNumber = Annotated[int, msgspec.Meta(ge=1, le=10**15 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Pem = Annotated[str, msgspec.Meta(max_length=65536)]
Words = Annotated[str, msgspec.Meta(max_length=2000)]
Role = Literal["node", "operator", "researcher"]
"""What a certificate's holder may do: take part, administer, or run studies."""
TokenId = Annotated[str, msgspec.Meta(pattern=rf"^[0-9a-f]{{8}}{END}")]
Sandbox = Literal["", "off", "refused", "basic", "standard", "strict"]
"""In what training code runs on a node, by the node's own word: its sandbox's level; off, as its owner wants it; or nowhere,
since the sandbox did not hold. "": not known yet."""
Secret = Annotated[str, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[str, msgspec.Meta(max_length=200)]
"""Of a plan by a study key, see `freehold.signing`; the node holds it against its owner's policy."""


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all messages have."""

    version: int = VERSION


class Problem(Message, frozen=True, kw_only=True):
    """The answer to what is refused: an error's number, what was found and expected, and what to do."""

    code: int
    message: str
    hint: str = ""


# Enrolment. Only renewal asks for a certificate.


class EnrollRequest(Message, frozen=True, kw_only=True):
    """POST /v1/enroll. `csr` is a PKCS#10 request in PEM; the node's private key never leaves it."""

    federation: Name | None = None
    """None where the root does not name it, as that of an organisation's own CA."""
    node: Name
    token_id: TokenId
    secret: Secret
    csr: Pem

    def __repr__(self) -> str:  # without the secret: tracebacks and logs show it
        return f"EnrollRequest(federation={self.federation!r}, node={self.node!r}, token_id={self.token_id!r})"


class LoginRequest(Message, frozen=True, kw_only=True):
    """POST /v1/login: an operator or a researcher. Which of the two, and under which name, the token says."""

    federation: Name | None = None
    token_id: TokenId
    secret: Secret
    csr: Pem

    def __repr__(self) -> str:  # without the secret
        return f"LoginRequest(federation={self.federation!r}, token_id={self.token_id!r})"


class RenewRequest(Message, frozen=True, kw_only=True):
    """POST /v1/renew. The identity is that of the certificate presented, whatever the CSR says; its key must be a new one."""

    csr: Pem


class Certificate(Message, frozen=True, kw_only=True):
    """The answer to these: the certificate with its intermediates, and the roots to trust, in PEM."""

    federation: Name
    node: Name
    """The name, also where it is a person's."""
    role: Role = "node"
    chain: Pem
    roots: Pem
    not_after: float
    """Unix time in seconds."""


# The ledger of a node: the coordinator learns how many lines it has and the digest of the last, and nothing of what they say.


class LedgerHead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a node's ledger stands, signed by the ledger's key (Ed25519, in hexadecimal)."""

    n: LineNumber
    """The number of its last line."""
    hash: Sha256
    """The digest of that line, which binds all before it."""
    key: Sha256
    signature: Annotated[str, msgspec.Meta(pattern=rf"^[0-9a-f]{{128}}{END}")]

    def body(self) -> bytes:
        """What the ledger's key signs."""
        return f"freehold head\0{self.n} {self.hash}".encode()


class Countersigned(Message, frozen=True, kw_only=True):
    """The furthest head of a node's ledger that the coordinator was shown, signed by the key of its own certificate."""

    node: Name
    head: LedgerHead | None = None
    """None: it was shown none."""
    time: float
    """Unix time by the coordinator's clock."""
    signature: Annotated[str, msgspec.Meta(pattern=rf"^([0-9a-f]{{2}}){{1,1024}}{END}")]
    chain: Pem
    """The coordinator's certificate and those between it and a root."""

    def body(self) -> bytes:
        """What is signed: ECDSA or RSA-PSS with SHA-256, or Ed25519, as the certificate's key is."""
        head = "-" if self.head is None else f"{self.head.n} {self.head.hash} {self.head.key}"
        return f"freehold checkpoint\0{self.node} {head} {self.time!r}".encode()


# Work.


class Blob(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tensors or a plan, named by content; small ones come along in `body`, others from GET /v1/blobs/{sha256}."""

    sha256: Sha256
    length: Annotated[int, msgspec.Meta(ge=0)]
    body: bytes | None = None


class Pending(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A round whose contribution a node has made without knowing whether it counted."""

    run: RunId
    round: RoundIndex


MOST_PENDING = 200
"""Rounds that a node asks about at once; it asks about others later."""
Unsettled = Annotated[list[Pending], msgspec.Meta(max_length=MOST_PENDING)]
Datasets = Annotated[list[Name], msgspec.Meta(max_length=60)]


class Settled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of it: the node commits the personal state of the contribution that counted, and discards others."""

    run: RunId
    round: RoundIndex
    counted: Annotated[str, msgspec.Meta(pattern=rf"^([0-9a-f]{{64}})?{END}")]
    """SHA-256 of the node's contribution that counted; "" if none did."""


class WorkRequest(Message, frozen=True, kw_only=True):
    """POST /v1/work: a long poll. The answer comes when there is work, when something pending was settled, or after `wait_s`."""

    wait_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 0.0
    datasets: Datasets = []
    """What the node has data for."""
    pending: Unsettled = []
    working: Pending | None = None
    """The work that the node is still busy with at its deadline: handed out once more if the coordinator still waits for it."""
    sandbox: Sandbox = ""
    stops: bool = False
    """The node is about to stop, in order. It offers nothing, so that nobody waits for it; there is no work in the answer."""


class Train(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, tag="train"):
    """Train on `shared` and send a contribution within `left_s` seconds. It is no time of day: clocks may differ by minutes."""

    run: RunId
    round: RoundIndex
    cohort: int
    population: int
    plan: Blob
    signature: Signature | None = None
    bundle: Blob | None = None
    """The code that the plan names, if it is not installed on nodes."""
    shared: Blob
    left_s: Seconds


class Measure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, tag="measure"):
    """Measure the node's own model after `round` rounds on its own validation and test examples; only sums leave."""

    run: RunId
    round: RoundIndex
    plan: Blob
    signature: Signature | None = None
    bundle: Blob | None = None
    """The code that the plan names, if it is not installed on nodes."""
    shared: Blob
    left_s: Seconds


Work = Train | Measure


class WorkReply(Message, frozen=True, kw_only=True):
    """The answer to POST /v1/work, to a contribution and to measures: the next piece of work may come along."""

    settled: list[Settled] = []
    work: Work | None = None
    received: bool = False
    """The contribution or measures of this request are durable on the coordinator; they may have been before."""
    ledger: Countersigned | None = None
    """Where the request showed the head of the node's ledger."""


DIFFERING = "differing"
"""The name of a sum: test examples that a run's model and the one trained alone do not both have right, or both wrong."""


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sums over one split. A sum that rests on fewer than five examples is left out."""

    examples: Count
    sums: Annotated[dict[Annotated[str, msgspec.Meta(max_length=100)], float], msgspec.Meta(max_length=1000)]


class Measures(Message, frozen=True, kw_only=True):
    """POST /v1/measures: as the node's guard wrote it, byte for byte."""

    run: RunId
    round: RoundIndex
    splits: dict[Literal["validation", "test"], Measured]
    alone: dict[Literal["validation", "test"], Measured] = {}
    """Of the model that the node trained alone; only where its owner shares the benefit."""
    served: Literal["", "local", "shared", "personal"] = ""


class Declined(Message, frozen=True, kw_only=True):
    """POST /v1/declined: the node will not or cannot do a piece of work. The text never quotes data."""

    run: RunId
    round: RoundIndex
    code: Annotated[int, msgspec.Meta(ge=0, le=9999)]
    message: Words
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 0.0
    datasets: Datasets | None = None
    pending: Unsettled = []


class Leave(Message, frozen=True, kw_only=True):
    """POST /v1/leave: the node leaves for good; its certificate is revoked."""


M = TypeVar("M", bound=Message)


class _Versioned(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0


def encode(message: Message) -> bytes:
    """A message as JSON."""
    return msgspec.json.encode(message)


def decode(body: bytes | bytearray | memoryview, kind: type[M]) -> M:
    """The message of that kind in `body`; raises ProtocolVersion for another version and WireError for anything else."""
    try:
        version = msgspec.json.decode(body, type=_Versioned).version
        if version == VERSION:
            return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(
            f"A message of kind {kind.__name__} was expected, but {_where(error)}.",
            hint="Both sides must run Freehold; see docs/reference/wire.md for the messages.",
        ) from None
    raise ProtocolVersion(
        f"The other side speaks version {version} of the protocol, this one {VERSION}.",
        hint=f"Install the Freehold release that speaks version {max(version, VERSION)} on the older side.",
    )


def _where(error: Exception) -> str:
    """msgspec's words name the place and the type, and of the content at most a field's name. They go to the sender alone."""
    return f"it is not one: {error}" if isinstance(error, msgspec.ValidationError) else "it is not JSON"


def problem(error: FreeholdError) -> Problem:
    """An error as it travels."""
    return Problem(code=error.code, message=error.message, hint=error.hint)
