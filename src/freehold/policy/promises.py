"""What may be said of privacy: the words of reports, of what an owner approves, and of the page for data protection officers.

Whoever wants to say more has to change them here.
"""

from __future__ import annotations

from typing import Final

NOTHING: Final = (
    "No noise is added and no ε is promised: records stay on their nodes, but contributions leave, "
    "and can reveal records to who sees them."
)
"""Release level trusted-code."""

CLIENT: Final = (
    "The guard of each node clips and noises every contribution before it leaves, whatever the training code does: "
    "ε = {epsilon} at δ = {delta} for all records of a node together, over the whole plan."
)
"""Release level noised, unit client."""

RECORD: Final = (
    "Training code adds noise to each step, for each single record, as far as that code is trusted; "
    "each node's ledger says its ε at δ = {delta}."
)
"""Release level noised, unit record."""

MEASURES: Final = "What nodes tell of how good their models are carries no noise, and no ε covers it."
"""Beside each of the others, where measures leave."""
