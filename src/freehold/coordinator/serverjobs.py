"""What the coordinator and the child that runs algorithm code say to each other; tensors go beside it as sealed memory."""

from __future__ import annotations

import msgspec

from freehold.plan import TensorSpec


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all jobs have. Descriptor 0 of each request: the plan as TOML."""


class Load(Job, frozen=True, kw_only=True, tag="load"):
    """The first job of a child in a sandbox. Descriptors: the plan, and the bundle that it names, to be imported there."""


class Loaded(Job, frozen=True, kw_only=True, tag="loaded"):
    """The bundle defines the plan's task."""


class Describe(Job, frozen=True, kw_only=True, tag="describe"):
    """What do the plan's algorithm and its companions send?"""


class Begin(Job, frozen=True, kw_only=True, tag="begin"):
    """The server state of a run before its first round, and what nodes see of it."""

    number: int


class Close(Job, frozen=True, kw_only=True, tag="close"):
    """A round's server update. Descriptors: the plan, the server state, the tally (int64, see `wire.tally`)."""

    number: int
    round: int
    heard: int
    population: int


class Described(Job, frozen=True, kw_only=True, tag="described"):
    """The tensors that leave a node: of the algorithm, then of each companion."""

    tensors: list[tuple[TensorSpec, ...]]


class States(Job, frozen=True, kw_only=True, tag="states"):
    """Descriptors: the server state, and what nodes see of it unless that is all of it."""


class ServerCodeError(Job, frozen=True, kw_only=True, tag="failed"):
    """The job could not be done."""

    code: int
    message: str
    hint: str = ""


ToChild = Load | Describe | Begin | Close
FromChild = Loaded | Described | States | ServerCodeError
