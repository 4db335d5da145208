"""Who may be put on the deny list: what can be refused at all, and what somebody here has or had."""

from __future__ import annotations

import re
from typing import Final, get_args

from freehold.coordinator.enrolment_records import EnrolmentRecords
from freehold.errors import UnknownName, UsageError, near_miss
from freehold.wire.messages import Role

_DENIABLE: Final = "[0-9A-F]{2,40}|(" + "|".join(get_args(Role)) + ")/[a-z0-9-]{1,63}"

_MOST_NAMED: Final = 10
"""Of a federation with more identities none is named that is not near."""


def check(what: str) -> None:
    """Raise UsageError for what is neither a certificate's serial nor an identity."""
    if not re.fullmatch(_DENIABLE, what):
        raise UsageError(f"{what!r} is neither a serial nor an identity.", hint="Identities are written like node/alice.")


def check_known(records: EnrolmentRecords, what: str) -> None:
    """Raise UnknownName for an identity or a serial that nobody here has, had, or is about to have by a token."""
    known = records.identities()
    if what in known or ("/" not in what and records.knows_serial(what)):
        return
    anyway = "--even-unknown denies it all the same: before it joins, or where another CA signs."
    said = near_miss(what, known) if "/" in what and known else ""
    if said.startswith("Known:") and len(known) > _MOST_NAMED:
        said = "`freehold node list` and `freehold token list` show names."
    kind = "Nobody here is" if "/" in what else "No certificate here has the serial"
    raise UnknownName(f"{kind} {what}.", hint=f"{said} {anyway}".strip())
