"""The ways in which training code could carry records out, and what becomes of each: one table for the tests and for the page.

`python -m tests.redteam` writes the table of the threat model anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar

PAGE: Final = Path(__file__).parents[2] / "docs" / "explanation" / "threat-model.md"
BEGIN, END = "<!-- channels: python -m tests.redteam -->", "<!-- end of channels -->"

Becomes = Literal["stopped", "bounded", "stays", "out of reach"]


class Channel(NamedTuple):
    """A row. `stays`: it reaches the owner's own machine and goes no further."""

    through: str
    attempt: str
    becomes: Becomes
    by: str


SPEC = "the guard: names, shapes and dtypes are the plan's"
DOOR = "the guard: one header for a plan, every number finite"
SEALED = "the guard: memory is sealed and filled before it looks"
CLOSED = "the guard: messages have a closed schema and a size"
KNOWN = "the guard: known sums, that can be true, over five examples or more"
CODE = "the agent: one number for all that training code can bring about"
JAIL = "the sandbox"

CHANNELS: Final[dict[str, Channel]] = {
    # Weights.
    "weight-fraction": Channel("weight", "digits after the point", "stopped", "the guard: a weight is a count"),
    "weight-changes": Channel("weight", "another count each round", "stopped", "the guard: one count for a table, run by run"),
    "weight-sign": Channel("weight", "minus zero", "stopped", "the guard: a weight is a count"),
    "weight-large": Channel("weight", "more than `training.most_weight`", "stopped", "the guard: the plan's bound"),
    "weight-uniform": Channel(
        "weight", "other than 1 where the plan has noise", "stopped", "the guard: such plans weigh uniformly"
    ),
    "weight-once": Channel(
        "weight",
        "one whole number that is no count",
        "bounded",
        "at most 53 bits a run and table, none with noise",
    ),
    # Tensors.
    "tensor-name": Channel("contribution", "a record as a tensor's name", "stopped", SPEC),
    "tensor-extra": Channel("contribution", "a tensor more", "stopped", SPEC),
    "tensor-missing": Channel("contribution", "a tensor less", "stopped", SPEC),
    "tensor-dtype": Channel("contribution", "a wider dtype", "stopped", SPEC),
    "tensor-shape": Channel("contribution", "another shape", "stopped", SPEC),
    "header-metadata": Channel("contribution", "metadata in the header", "stopped", DOOR),
    "header-spaces": Channel("contribution", "spaces in the header", "stopped", DOOR),
    "header-order": Channel("contribution", "the order of names in the header", "stopped", DOOR),
    "bytes-after": Channel("contribution", "bytes after the last tensor", "stopped", DOOR),
    "nan-payload": Channel("contribution", "51 bits in each NaN", "stopped", DOOR),
    "infinity": Channel("contribution", "signs of infinity", "stopped", DOOR),
    "small-numbers": Channel(
        "contribution", "minus zero, subnormals, low bits, with noise", "stopped", "the guard: fixed point, then noise"
    ),
    "plain-numbers": Channel(
        "contribution",
        "the numbers themselves, without noise",
        "out of reach",
        "release level `trusted-code`: the owner trusts the task",
    ),
    "oversized": Channel(
        "contribution", "numbers of any size, with noise", "bounded", "the guard: clip to `max_norm`, then noise: ε"
    ),
    "seeds": Channel(
        "contribution", "seeding the noise, to take it away again", "stopped", "the guard: its own noise, from the kernel"
    ),
    # Memory and descriptors.
    "unsealed": Channel("shared memory", "left unsealed, and changed after the check", "stopped", SEALED),
    "sealed-later": Channel("shared memory", "sealed against some changes only", "stopped", SEALED),
    "shrunk": Channel("shared memory", "cut short while the guard reads", "stopped", SEALED),
    "hole": Channel("shared memory", "huge and empty, to use up the guard's memory", "stopped", SEALED),
    "no-memory": Channel("shared memory", "a pipe, a file or a folder in its place", "stopped", SEALED),
    "descriptor-more": Channel("descriptors", "a descriptor more", "stopped", CLOSED),
    "descriptor-many": Channel("descriptors", "more than a message may carry", "stopped", CLOSED),
    "descriptor-none": Channel("descriptors", "none", "stopped", CLOSED),
    # Messages.
    "field": Channel("message", "a field more", "stopped", CLOSED),
    "event": Channel("message", "an event for the log", "stopped", CLOSED),
    "other-answer": Channel("message", "the answer to another question", "stopped", CLOSED),
    "huge-message": Channel("message", "longer than the limit", "stopped", CLOSED),
    "deep-message": Channel("message", "brackets in brackets", "stopped", CLOSED),
    "twice": Channel(
        "message", "two answers to one question", "stopped", "the guard: one thing leaves for each errand, and is checked"
    ),
    "silent": Channel("message", "dying in place of an answer", "stopped", "the guard: error 306"),
    # Errors.
    "error-text": Channel(
        "error", "a record as the text", "stopped", "the agent: a fixed sentence for each number; the ledger has it, too"
    ),
    "error-long": Channel("error", "a text that no message can carry on", "stopped", "the guard: cuts it"),
    "error-number": Channel("error", "a letter by which error it is", "stopped", CODE),
    "error-opening": Channel("error", "a record as the reason why data does not fit", "stopped", "the agent: a fixed sentence"),
    "answer-or-not": Channel(
        "error", "whether a round is answered at all", "bounded", "two bits a round: a contribution, 305, 306 or nothing"
    ),
    # Measures.
    "measure-name": Channel("measures", "a record as a sum's name", "stopped", KNOWN),
    "measure-split": Channel("measures", "another split", "stopped", KNOWN),
    "measure-fraction": Channel("measures", "digits of a count", "stopped", KNOWN),
    "measure-examples": Channel(
        "measures", "another number of examples each time", "stopped", "the guard: one number for a table"
    ),
    "measure-served": Channel("measures", "a record as the model's name", "stopped", KNOWN),
    "measure-few": Channel("measures", "sums over one record", "stopped", KNOWN),
    "measure-kept": Channel("measures", "anything, by `share_benefit = never`", "stopped", "the owner's policy, the default"),
    "measure-binned": Channel(
        "measures", "digits of a loss, by `share_benefit = binned`", "bounded", "two digits of each figure, counts in tens"
    ),
    "measure-named": Channel(
        "measures", "digits of a loss, by `share_benefit = named`", "out of reach", "the owner shares them; ε does not cover them"
    ),
    # State.
    "later-study": Channel("personal state", "read by the next study", "stopped", "the vault: each run has its own"),
    "later-round": Channel(
        "personal state", "kept for later rounds of the same run", "stays", "it is in the vault; it leaves by no other way"
    ),
    # The sandbox.
    "stdout": Channel("files", "standard output", "stopped", JAIL),
    "stderr": Channel("files", "standard error", "stays", "the node's own log; do not send it elsewhere"),
    "scratch": Channel("files", "scratch, for the next study to read", "stopped", JAIL),
    "data-folder": Channel("files", "beside the table", "stopped", JAIL),
    "code-folder": Channel("files", "beside the code", "stopped", JAIL),
    "other-files": Channel("files", "the node's own state: ledger, keys, vault", "stopped", JAIL),
    "environment": Channel("environment", "secrets of the node's environment", "stopped", JAIL),
    "inherited": Channel("descriptors", "what the guard has open", "stopped", JAIL),
    "socket": Channel("network", "a socket", "stopped", JAIL),
    # What no check stops.
    "timing": Channel("time", "when a round is answered", "out of reach", "deadlines bound it: seconds for a bit"),
    "compressed-size": Channel(
        "size",
        "the length of what `compression` makes of numbers",
        "out of reach",
        "without `compression` every length is the plan's; with noise it tells nothing",
    ),
    "load": Channel("machine", "heat, caches, load that others on the machine see", "out of reach", "a machine of its own"),
    "kernel": Channel(
        "machine", "a defect of the kernel or of a GPU's driver", "out of reach", "updates; gVisor or Kata around the node"
    ),
}

SHOWN: dict[str, str] = {}
"""Row -> the test that shows it, once the tests are imported."""

Test = TypeVar("Test", bound=Callable[..., object])


def shows(*rows: str) -> Callable[[Test], Test]:
    """Mark a test as the one that shows these rows."""

    def mark(test: Test) -> Test:
        for row in rows:
            assert row in CHANNELS, f"no row {row}"
            name = f"{test.__module__.rpartition('.')[2]}.py::{test.__name__}"
            assert SHOWN.setdefault(row, name) == name, f"{row} is shown twice"
        return test

    return mark


def render() -> str:
    """The table as Markdown."""
    lines = ["| through | attempt | becomes | by | shown by |", "|---|---|---|---|---|"]
    for key, row in CHANNELS.items():
        test = SHOWN.get(key)
        lines.append(f"| {row.through} | {row.attempt} | {row.becomes} | {row.by} | {f'`{test}`' if test else '–'} |")
    return "\n".join(lines)


def written(text: str) -> str:
    """The page with the table in its place."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{render()}\n{END}{rest.split(END)[1]}"
