"""The door of the guard: what leaves is counted in the budget and written into the ledger, both on the disk, before it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from freehold.errors import BudgetExceeded, CheckpointRefused, DataUnfit, FreeholdError, LedgerDamaged
from freehold.events import Event
from freehold.node import checkpoints, control
from freehold.node.budget import Anchor, Ask, Budget, Limits, Spent, no_vault
from freehold.node.errands import BY_TRAINING, told
from freehold.node.ledger import FILE, Ledger
from freehold.node.lines import Line, digest_of_line
from freehold.plan import Plan, digest, runs_of
from freehold.privacy.accounting import mechanism_of
from freehold.wire.messages import Countersigned, LedgerHead

CHECKPOINT_LINES = 100
"""After so many lines, at the guard's start, and when a run has ended, the coordinator is shown where the ledger stands."""

CONTROL_S, CONTROL_MESSAGES = 3600.0, 1000
"""A line of control messages is written after so long or so many, at the guard's first work, and after measures."""


_AHEAD = "the budget was written and no line after it: the guard died there, or the end of this ledger was cut off"


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
        self._accounted = -math.inf
        self._due = True
        """Whether the coordinator is to be shown where the ledger stands."""
        self._witnessed = 0
        """The line up to which it has."""

    def begin(self, piece: Piece) -> None:
        """Reserve what the contribution will cost, before it is trained; raises BudgetExceeded, and what `send` raises."""
        ask = piece.asked()
        _, budget = self._now()
        self._account()
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
        if kind == "measures":
            self._run_ended()
        return spent

    def _run_ended(self) -> None:
        """The ledger stands where the coordinator is to witness it, with all that left before."""
        self._account(at_once=True)
        self._due = True

    def refuse(
        self, error: FreeholdError, *, run: str = "", round: int = 0, study: str | None = None, measures: bool = False
    ) -> None:
        """Write that something was refused, and why: in fixed words where training code may have chosen them.

        `measures`: they were asked for, which is a run's end, also where they stay: under noise they always do.
        """
        text = told(error.code) if error.code in {*BY_TRAINING, DataUnfit.code} else error.message[:2000]
        self._append("refusal", study=study, run=run or None, round=round, verdict="refused", code=error.code, text=text)
        if measures:
            self._run_ended()

    def note(self, kind: Literal["approval", "policy", "erased", "started"], text: str, **told: str | None) -> None:
        """Write what the owner decided, or how the guard started."""
        self._append(kind, text=text[:2000], **told)

    def anchor(self) -> Anchor:
        """What the vault is tied to."""
        return self._now()[1].anchor

    def name_vault(self) -> None:
        """Tie the vault down as it is now."""
        _, budget = self._now()
        with _Failing(self):
            budget.name_vault()

    def _account(self, *, at_once: bool = False) -> None:
        """Write how many control messages, of how many bytes, have left since the last such line, if it is time."""
        now = time.monotonic()
        counts = control.waiting(self._state)
        if not (at_once or now - self._accounted > CONTROL_S or sum(n for n, _ in counts.values()) >= CONTROL_MESSAGES):
            return
        with control.taken(self._state) as counts:
            if counts:
                messages, size = (sum(each[index] for each in counts.values()) for index in (0, 1))
                self._append("control", messages=messages, bytes=size, kinds=counts)
        self._accounted = now

    # Checkpoints.

    def head(self) -> LedgerHead | None:
        """What the coordinator is to witness now; None where nothing is due."""
        if self._opened is None:
            return None
        ledger, _ = self._opened
        if not self._due and ledger.head.n - self._witnessed < CHECKPOINT_LINES:
            return None
        return ledger.key.show(ledger.head)

    def witnessed(self, found: Countersigned, roots: str) -> list[Event]:
        """Take up the coordinator's answer; what there is to tell its owner.

        Where it proves that this ledger was longer, or another one, nothing leaves from then on.
        """
        ledger, _ = self._now()
        folder = self._state / "ledger"
        self._due, self._witnessed = False, ledger.head.n
        try:
            vouched = checkpoints.check(found, roots, node=self._node)
        except CheckpointRefused as error:
            return [Event("checkpoint.refused", {"code": error.code, "why": error.message})]
        if vouched is None or found.head is None:
            return []
        if found.head.key != ledger.key.public:  # somebody else's word for what cannot be looked into: the owner must know
            return [Event("checkpoint.unlike", {"lines": vouched.n, "key": found.head.key})]
        with _Failing(self):
            before = checkpoints.load(folder)
            if before is None or before.head is None or before.head.n <= vouched.n:
                checkpoints.keep(folder, found)
        if digest_of_line(folder / FILE, vouched.n, ledger.head) != vouched.hash:
            self.close()
            return [Event("checkpoint.behind", {"lines": ledger.head.n, "witnessed": vouched.n})]
        return []

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
                self._check(ledger)
                budget = Budget(self._state / "budget", ledger, self._vault)
                # After the budget was read, which must find the ledger as it was when the guard died.
                if budget.ahead or ledger.torn:
                    torn, text = ledger.torn or None, _AHEAD if budget.ahead else "a line was being written"
                    ledger.append(Line(prev="", n=0, time=0.0, kind="repaired", bytes=torn, budget=budget.digest, text=text))
                self._opened, self._due = (ledger, budget), True
            except BaseException:
                ledger.close()
                raise
        return self._opened

    def _check(self, ledger: Ledger) -> None:
        """Raise LedgerDamaged for a ledger that ends before what was witnessed of it."""
        folder = self._state / "ledger"
        found = checkpoints.load(folder)
        if found is None or found.head is None:
            return
        n = found.head.n
        if found.head.key != ledger.key.public or digest_of_line(folder / FILE, n, ledger.head) != found.head.hash:
            raise LedgerDamaged(
                f"The ledger in {folder} has {ledger.head.n} lines, and is not the one whose line {n} the coordinator witnessed.",
                hint="Restore ledger/ and budget/ from the same, newest backup. Nothing leaves before.",
            )


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
