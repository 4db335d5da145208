"""What can be asked of a coordinator: the one table that its server, its clients and the OpenAPI document read."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from freehold.wire.messages import (
    END,
    MOST_PENDING,
    NAME_PATTERN,
    RUN_PATTERN,
    Certificate,
    Countersigned,
    Declined,
    EnrollRequest,
    Leave,
    LoginRequest,
    Measures,
    Message,
    RenewRequest,
    Role,
    RoundIndex,
    RunId,
    Sha256,
    WorkReply,
    WorkRequest,
)

VERSION_HEADER: Final = "Freehold-Version"
SHA256_HEADER: Final = "Freehold-Sha256"
WEIGHT_HEADER: Final = "Freehold-Weight"
WAIT_HEADER: Final = "Freehold-Wait"
DATASETS_HEADER: Final = "Freehold-Datasets"
PENDING_HEADER: Final = "Freehold-Pending"
SANDBOX_HEADER: Final = "Freehold-Sandbox"
ENCODING_HEADER: Final = "Content-Encoding"
LEDGER_HEADER: Final = "Freehold-Ledger"

Binary: TypeAlias = Literal["application/octet-stream", "application/x-pem-file", "application/json"]
"""A body that is none of our messages, by its media type."""

_NAME, _RUN = (pattern.removeprefix("^").removesuffix(END) for pattern in (NAME_PATTERN, RUN_PATTERN))

Version = Annotated[int, msgspec.Meta(ge=1, description="Of the protocol.")]
Weight = Annotated[float, msgspec.Meta(ge=0, description="What the contribution counts with.")]
Wait = Annotated[float, msgspec.Meta(ge=0, le=300, description="Seconds to wait for the next piece of work.")]
DATASETS_PATTERN: Final = f"^({_NAME}(,{_NAME}){{0,59}})?{END}"
PENDING_PATTERN: Final = f"^({_RUN}:[0-9]{{1,9}}(,{_RUN}:[0-9]{{1,9}}){{0,{MOST_PENDING - 1}}})?{END}"
Datasets = Annotated[
    str,
    msgspec.Meta(pattern=DATASETS_PATTERN, description="What the node has data for, between commas."),
]
PendingList = Annotated[
    str,
    msgspec.Meta(
        pattern=PENDING_PATTERN,
        description="Rounds of which the node does not know whether they counted, run:round, between commas.",
    ),
]

LEDGER_PATTERN: Final = f"^[0-9]{{1,15}}:[0-9a-f]{{64}}:[0-9a-f]{{64}}:[0-9a-f]{{128}}{END}"
Ledger = Annotated[
    str,
    msgspec.Meta(
        pattern=LEDGER_PATTERN,
        description="Where the node's ledger stands, now and then: lines, digest of the last, public key, signature.",
    ),
]

SANDBOX_PATTERN: Final = f"^(off|basic|standard|strict)?{END}"
Level = Annotated[str, msgspec.Meta(pattern=SANDBOX_PATTERN, description="Of the sandbox that the contribution was trained in.")]
Encoding = Annotated[
    Literal["zstd"],
    msgspec.Meta(description="Where the plan says so; digest and length are those of the bytes sent."),
]


class Field(msgspec.Struct, frozen=True):
    """A header of a request, or a part of its path: its type, as msgspec knows it."""

    name: str
    type: object
    required: bool = True


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be asked."""

    method: Literal["GET", "POST", "PUT"]
    path: str
    summary: str
    request: type[Message] | Binary | None = None
    reply: type[Message] | Binary
    fields: tuple[Field, ...] = ()
    """What stands in the braces of `path`, and the headers."""
    roles: tuple[Role, ...] = ("node",)
    """Whose certificate must be presented; none: nobody's."""
    repeatable: bool = True
    """Whether it may be sent again when the answer was lost: the coordinator counts it once."""

    def at(self, **parts: str | int) -> str:
        """The path with its parts filled in."""
        return self.path.format(**parts)


CA: Final = Route(method="GET", path="/v1/ca", summary="The federation's roots.", reply="application/x-pem-file", roles=())
ENROLL: Final = Route(
    method="POST",
    path="/v1/enroll",
    summary="Join with a token: a first certificate.",
    request=EnrollRequest,
    reply=Certificate,
    roles=(),
    repeatable=False,
)
LOGIN: Final = Route(
    method="POST",
    path="/v1/login",
    summary="The same for a person: an operator or a researcher.",
    request=LoginRequest,
    reply=Certificate,
    roles=(),
    repeatable=False,
)
RENEW: Final = Route(
    method="POST",
    path="/v1/renew",
    summary="A new certificate for the identity presented, with a new key.",
    request=RenewRequest,
    reply=Certificate,
    roles=("node", "operator", "researcher"),
    repeatable=False,
)
_ALONG: Final = (
    Field(WAIT_HEADER, Wait, required=False),
    Field(DATASETS_HEADER, Datasets, required=False),
    Field(PENDING_HEADER, PendingList, required=False),
    Field(LEDGER_HEADER, Ledger, required=False),
)
"""What asks for the next piece of work, beside a body that is the guard's."""

WORK: Final = Route(
    method="POST",
    path="/v1/work",
    summary="Wait for a piece of work.",
    request=WorkRequest,
    reply=WorkReply,
    fields=(Field(LEDGER_HEADER, Ledger, required=False),),
)
BLOB: Final = Route(
    method="GET",
    path="/v1/blobs/{sha256}",
    summary="Tensors or a plan, by content.",
    reply="application/octet-stream",
    fields=(Field("sha256", Sha256),),
)
CONTRIBUTE: Final = Route(
    method="PUT",
    path="/v1/contributions/{run}/{round}",
    summary="Send a contribution; a second, equal one changes nothing.",
    request="application/octet-stream",
    reply=WorkReply,
    fields=(
        Field("run", RunId),
        Field("round", RoundIndex),
        Field(VERSION_HEADER, Version),
        Field(SHA256_HEADER, Sha256),
        Field(WEIGHT_HEADER, Weight),
        *_ALONG,
        Field(SANDBOX_HEADER, Level, required=False),
        Field(ENCODING_HEADER, Encoding, required=False),
    ),
)
MEASURES: Final = Route(
    method="POST",
    path="/v1/measures",
    summary="Send what was measured: sums.",
    request=Measures,
    reply=WorkReply,
    fields=_ALONG,
)
DECLINED: Final = Route(method="POST", path="/v1/declined", summary="Decline a piece of work.", request=Declined, reply=WorkReply)
LEAVE: Final = Route(method="POST", path="/v1/leave", summary="Leave for good.", request=Leave, reply=WorkReply)
CHECKPOINT: Final = Route(
    method="GET",
    path="/v1/checkpoint",
    summary="The furthest head of this node's ledger that the coordinator was shown.",
    reply=Countersigned,
)
OPENAPI: Final = Route(method="GET", path="/v1/openapi.json", summary="This document.", reply="application/json", roles=())

ROUTES: Final = (CA, ENROLL, LOGIN, RENEW, WORK, BLOB, CONTRIBUTE, MEASURES, DECLINED, LEAVE, CHECKPOINT, OPENAPI)
