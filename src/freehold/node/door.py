"""The door of the guard: what leaves is counted in the budget and written into the ledger, both on the disk, before it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from freehold.errors import BudgetExceeded, DataUnfit, FreeholdError
from freehold.node.budget import Anchor, Ask, Budget, Limits, Spent, no_vault
from freehold.node.errands import BY_TRAINING, told
from freehold.node.ledger import Ledger
from freehold.node.lines import Line
from freehold.plan import Plan, digest, runs_of
from freehold.privacy.accounting import mechanism_of


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of work, as the ledger tells of it."""

    plan: Plan
    run: str
    round: int
    dataset: str
    examples: int = 0
    """Training examples of this node; only record-level privacy needs them."""
    limits: Limits = field(default_factory=Limits)
    sandbox: str = "none"
    """The level that the trainer ran at."""
    release: str = "trusted-code"
    """The release level by which it may leave."""

    def asked(self) -> Ask:
        """What it asks of the budget."""
        training = self.plan.training
        return Ask(
            dataset=self.dataset,
            plan=digest(self.plan),
            run=self.run,
            round=self.round,
            ordinal=training.trained(self.round),
            rounds=training.rounds * (training.cycle(self.round) + 1),
            runs=len(runs_of(self.plan)),
            unit=self.plan.privacy.unit,
            mechanism=mechanism_of(self.plan, self.examples),
            limits=self.limits,
        )


class Door:
    """One node's; ledger and budget are opened when they are first needed, and anew after they failed."""

    def __init__(
        self,
        state: Path,
        *,
        node: str,
        peer: str,
        clock: Callable[[], float] = time.time,
        vault: Callable[[], str | None] = no_vault,
    ) -> None:
        """`peer`: the coordinator that all goes to. `vault`: names the vault that the budget ties down."""
        self._vault = vault
        self._state, self._node, self._peer, self._clock = state, node, peer, clock
        self._opened: tuple[Ledger, Budget] | None = None
        self._open: list[Ask] = []

    def begin(self, piece: Piece) -> None:
        """Reserve what the contribution will cost, before it is trained; raises BudgetExceeded, and what `send` raises."""
        ask = piece.asked()
        _, budget = self._now()
        with _Failing(self):
            budget.reserve(ask)
        if ask not in self._open:
            self._open.append(ask)

    def give_up(self) -> None:
        """What was begun and not sent will never leave."""
        for ask in self._open:
            _, budget = self._now()
            with _Failing(self):
                budget.release(ask)
        self._open = []

    def send(self, kind: Literal["contribution", "measures"], piece: Piece, *, sha256: str, length: int) -> Spent | None:
        """Write that this leaves now. ε so far, None for what has none of its own.

        Raises LedgerError, LedgerDamaged, BudgetDamaged or StateInUse, after which it must not leave.
        """
        ledger, budget = self._now()
        with _Failing(self):
            spent = None
            if kind == "contribution":
                ask = piece.asked()
                spent = budget.spend(ask)
                self._open = [each for each in self._open if each != ask]
            finite = spent is not None and math.isfinite(spent.total)
            ledger.append(
                self._line(
                    kind,
                    study=piece.plan.name,
                    plan=digest(piece.plan),
                    run=piece.run,
                    round=piece.round,
                    dataset=piece.dataset,
                    bytes=length,
                    sha256=sha256,
                    unit=piece.plan.privacy.unit if spent else None,
                    epsilon=round_up(spent.total) if spent and finite else None,
                    delta=spent.delta if spent and finite else None,
                    sandbox=piece.sandbox,
                    release=piece.release,
                    verdict="sent",
                )
            )
        return spent

    def refuse(self, error: FreeholdError, *, run: str = "", round: int = 0, study: str | None = None) -> None:
        """Write that something was refused, and why: in fixed words where training code may have chosen them."""
        text = told(error.code) if error.code in {*BY_TRAINING, DataUnfit.code} else error.message[:2000]
        self._append("refusal", study=study, run=run or None, round=round, verdict="refused", code=error.code, text=text)

    def note(
        self, kind: Literal["approval", "policy", "erased"], text: str, *, plan: str | None = None, verdict: str = ""
    ) -> None:
        """Write what the owner decided."""
        self._append(kind, plan=plan, text=text[:2000], verdict=verdict or None)

    def anchor(self) -> Anchor:
        """What the vault is tied to."""
        return self._now()[1].anchor

    def name_vault(self) -> None:
        """Tie the vault down as it is now."""
        _, budget = self._now()
        with _Failing(self):
            budget.name_vault()

    def control(self, messages: int, length: int) -> None:
        """Write how many other messages, of how many bytes, have gone since the last such line."""
        self._append("control", messages=messages, bytes=length)

    def close(self) -> None:
        """Let go of the files."""
        if self._opened is not None:
            self._opened[0].close()
        self._opened = None

    def _append(self, kind: str, **given: object) -> None:
        ledger, _ = self._now()
        with _Failing(self):
            ledger.append(self._line(kind, **given))

    def _line(self, kind: str, **given: object) -> Line:
        assert self._opened is not None
        return Line(prev="", n=0, time=0.0, kind=kind, peer=self._peer or None, budget=self._opened[1].digest, **given)  # type: ignore[arg-type]

    def _now(self) -> tuple[Ledger, Budget]:
        if self._opened is None:
            ledger = Ledger(self._state / "ledger", node=self._node, clock=self._clock)
            try:
                budget = Budget(self._state / "budget", ledger, self._vault)
                if budget.ahead:
                    text = (
                        "the budget was written and no line after it: the guard died there, or the end of this ledger was cut off"
                    )
                    ledger.append(Line(prev="", n=0, time=0.0, kind="repaired", budget=budget.digest, text=text))
                self._opened = ledger, budget
            except BaseException:
                ledger.close()
                raise
        return self._opened


class _Failing:
    """What could not be written is read anew from the disk the next time."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not issubclass(kind, BudgetExceeded):
            self._door.close()


def round_up(value: float) -> float:
    """To four digits after the point, never below."""
    return math.ceil(value * 1e4) / 1e4
