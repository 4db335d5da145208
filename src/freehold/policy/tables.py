"""What a policy says of one data set, as a frozen struct; one that contradicts itself is a `PolicyError`."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Literal

import msgspec

from freehold.errors import PolicyError, UsageError
from freehold.hours import Hours

Release = Literal["trusted-code", "secure-sum", "noised"]
"""How far what leaves can be trusted not to be somebody's record; see docs/reference/policy.md."""
Benefit = Literal["never", "binned", "named"]
Unit = Literal["none", "record", "client"]
Sandbox = Literal["none", "basic", "standard", "strict"]
SANDBOXES: tuple[Sandbox, ...] = ("none", "basic", "standard", "strict")
"""From the weakest to the strongest."""

PERMITS = ("release", "share_benefit", "tasks", "code", "trusted_code", "gpu")
"""Keys that allow something: without them less is allowed, never more."""
LIMITS = (
    "least_sum",
    "study_keys",
    "unit",
    "epsilon_per_study",
    "epsilon_total",
    "delta",
    "most_clip",
    "bytes_per_day",
    "smallest_cohort",
    "secure_aggregation",
    "attested_coordinator",
    "hours",
    "memory",
    "cpus",
    "sandbox",
    "columns",
    "keep_days",
)
"""Keys that forbid something: without them there is no such limit."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ED25519 = bytes.fromhex("302a300506032b6570032100")
"""What each public Ed25519 key begins with, before its 32 bytes."""


class DataRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table of one data set. Times are local, sizes in bytes, norms of the whole contribution."""

    release: Release | None = None
    least_sum: int | None = None
    share_benefit: Benefit = "never"
    tasks: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    trusted_code: tuple[str, ...] = ()
    gpu: bool = False
    study_keys: tuple[str, ...] = ()
    unit: Unit = "none"
    epsilon_per_study: float | None = None
    epsilon_total: float | None = None
    delta: float | None = None
    most_clip: float | None = None
    bytes_per_day: int | None = None
    smallest_cohort: int = 1
    secure_aggregation: bool = False
    attested_coordinator: bool = False
    hours: str = ""
    memory: int | None = None
    cpus: float | None = None
    sandbox: Sandbox = "none"
    columns: tuple[str, ...] | None = None
    keep_days: float | None = None

    def __post_init__(self) -> None:
        if self.attested_coordinator:
            raise PolicyError(
                "attested_coordinator is true, but this Freehold cannot attest a coordinator yet: it is not built.",
                hint="Leave attested_coordinator out; nothing else here asks for less because of it.",
            )
        if self.release == "secure-sum" and self.least_sum is None:
            raise PolicyError(
                'release is "secure-sum", and least_sum is missing.',
                hint='Write both: release = "secure-sum" and least_sum = 5, the fewest nodes that are added up.',
            )
        for name, least in (("least_sum", 2), ("bytes_per_day", 0), ("smallest_cohort", 1), ("memory", 0), ("keep_days", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise PolicyError(f"{name} is {value}, but must be at least {least}.", hint=f"Raise {name}.")
        for name in ("epsilon_per_study", "epsilon_total", "most_clip", "cpus"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise PolicyError(f"{name} is {value}, but must not be below 0.", hint=f"Raise {name}, or leave it out.")
        if self.delta is not None and not 0 < self.delta < 1:
            raise PolicyError(f"delta is {self.delta}, but must lie between 0 and 1.", hint="For example delta = 1e-5.")
        for name in ("code", "trusted_code"):
            for text in getattr(self, name):
                if not _DIGEST.fullmatch(text):
                    raise PolicyError(f"{name} has {text[:80]!r}, which is no digest.", hint="A digest is sha256: and 64 digits.")
        for line in self.study_keys:
            if not _is_key(line):
                raise PolicyError(
                    f"study_keys has {line[:80]!r}, which is no public study key.",
                    hint="Copy the middle line of FILE.pub.",
                )
        try:
            Hours(self.hours)
        except UsageError as error:
            raise PolicyError(f"hours: {error.message}", hint=error.hint) from None


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it: the rules of each data set by its name. Without any, every plan waits."""

    data: dict[str, DataRules] = {}


def _is_key(line: str) -> bool:
    try:
        body = base64.b64decode(line, validate=True)
    except (ValueError, binascii.Error):
        return False
    return len(body) == 44 and body.startswith(_ED25519)
