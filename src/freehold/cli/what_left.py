"""What left the nodes on this machine, by their own ledgers: shown at the end of the demo."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from freehold.errors import LedgerDamaged

if TYPE_CHECKING:
    from rich.table import Table

SENT = ("contribution", "measures")


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """What one node's ledger says, after every byte of it was checked."""

    node: str
    lines: int
    contributions: int
    contribution_bytes: int
    measures: int
    measure_bytes: int
    releases: tuple[str, ...]
    sandboxes: tuple[str, ...]


def leaving(node: str, state: Path) -> Leaving:
    """Read and verify the ledger in a node's state folder; raises LedgerDamaged or LedgerError."""
    from freehold.node.audit import entries, verify
    from freehold.node.ledger import FILE
    from freehold.node.lines import public_key

    folder = state / "ledger"
    found = verify(folder / FILE, key=public_key(folder))
    if found.wrong is not None:
        raise LedgerDamaged(f"Line {found.wrong} of {node}'s ledger is wrong: {found.why}.", hint="`freehold ledger verify`.")
    sent = [line for line in entries(folder) if line.kind in SENT and line.n <= found.head.n]
    contributions = [line for line in sent if line.kind == "contribution"]
    measures = [line for line in sent if line.kind == "measures"]
    return Leaving(
        node=node,
        lines=found.head.n,
        contributions=len(contributions),
        contribution_bytes=sum(line.bytes or 0 for line in contributions),
        measures=len(measures),
        measure_bytes=sum(line.bytes or 0 for line in measures),
        releases=tuple(sorted({line.release or "" for line in contributions})),
        sandboxes=tuple(sorted({line.sandbox or "" for line in contributions})),
    )


def shown(found: Iterable[Leaving]) -> Table:
    """A line for each node."""
    from rich import box
    from rich.table import Table

    from freehold.node.page import size

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("node", "ledger", "contributions", "measures", "sandbox", "release"):
        table.add_column(name, justify="right" if name in ("ledger", "contributions", "measures") else "left", no_wrap=True)
    for each in found:
        table.add_row(
            each.node,
            f"{each.lines} lines",
            f"{each.contributions}, {size(each.contribution_bytes)}",
            f"{each.measures}, {size(each.measure_bytes)}",
            ", ".join(each.sandboxes),
            ", ".join(each.releases),
        )
    return table
