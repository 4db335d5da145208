"""What ε costs: the same algorithm without noise, and with the noise that each ε asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import msgspec

from freehold.algorithms import build_algorithm
from freehold.data import Prepared
from freehold.errors import UsageError
from freehold.plan import Plan, Privacy
from freehold.privacy import epsilon_by_rdp, epsilon_of, mechanism_of
from freehold.privacy.accounting import noise_for
from freehold.report import Comparison, NoisedRow, PrivacyCost
from freehold.report.cost import rounded_up
from freehold.report.summary import SHARES, summarize
from freehold.report.wording import value
from freehold.study.settings import Trial
from freehold.tasks import TaskDefinition, build_task

_COSTLY = 3
"""Of many sizes of clients, how many may have the largest ε: those that the usual estimate puts first."""


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Which ε to try, and for whom: the questions of `freehold simulate --epsilon`."""

    epsilons: tuple[float, ...]
    unit: Literal["record", "client"] = "record"
    delta: float | None = None
    """1e-5 if not given."""
    max_norm: float = 1.0
    """To which a record's gradient, or a client's contribution, is clipped."""

    def __post_init__(self) -> None:
        if not self.epsilons or len(set(self.epsilons)) < len(self.epsilons):
            raise UsageError("Each ε is to be named once.", hint="For example --epsilon 1,4,8")

    def plan(self, plan: Plan, noise_multiplier: float) -> Plan:
        """`plan`, with so much noise; for noise per client every node counts alike."""
        return msgspec.structs.replace(
            uniform(plan) if self.unit == "client" else plan,
            privacy=Privacy(
                unit=self.unit,
                max_norm=self.max_norm,
                noise_multiplier=noise_multiplier,
                expected_batch=float(plan.training.batch_size) if self.unit == "record" else None,
                delta=1e-5 if self.delta is None else self.delta,
            ),
        )


def noised_trials(ask: Noised, trials: Sequence[Trial], prepared: Prepared) -> tuple[tuple[Trial, ...], PrivacyCost]:
    """The rows with one more for each ε, of the last row's algorithm, and what they promise.

    With noise per client every row counts clients alike, as the guard demands. Raises PlanError for an ε that no noise keeps.
    """
    if ask.unit == "client":
        trials = [replace(trial, plan=uniform(trial.plan)) for trial in trials]
    clear = trials[-1]
    sizes = [len(prepared.rows[client]["train"]) for client in prepared.clients]
    rows, points = [], []
    for target in sorted(ask.epsilons):
        noise = noise_for(
            target,
            lambda nm: largest(ask.plan(clear.plan, nm), sizes)[0],
            lambda nm: largest(ask.plan(clear.plan, nm), sizes, fast=True)[1],
        )
        plan = ask.plan(clear.plan, noise)
        found, by_rdp = largest(plan, sizes)
        name = f"{clear.name}-epsilon-{target:g}"
        rows.append(Trial(name=name, title=f"{clear.title}, ε = {target:g}", plan=plan, required=True))
        points.append(NoisedRow(row=name, epsilon=found, epsilon_by_rdp=by_rdp, noise_multiplier=noise, asked=target))
    said = rows[0].plan.privacy
    cost = PrivacyCost(unit=ask.unit, delta=said.delta, max_norm=ask.max_norm, clear=clear.name, points=tuple(points))
    return (*trials, *rows), cost


def cost_of(plan: Plan, row: str, prepared: Prepared) -> PrivacyCost | None:
    """What a plan promises by itself; None if nothing."""
    said = plan.privacy
    if said.unit == "none" or said.noise_multiplier is None or said.max_norm is None:
        return None
    found, by_rdp = largest(plan, [len(prepared.rows[client]["train"]) for client in prepared.clients])
    point = NoisedRow(row=row, epsilon=found, epsilon_by_rdp=by_rdp, noise_multiplier=said.noise_multiplier)
    return PrivacyCost(unit=said.unit, delta=said.delta, max_norm=said.max_norm, clear="", points=(point,))


def check_allowed(definition: TaskDefinition, prepared: Prepared, trials: Sequence[Trial]) -> None:
    """Raise NotPrivate, with the reason and what to do, where an algorithm cannot keep what its plan promises."""
    for trial in trials:
        if trial.plan.privacy.unit == "record":
            build_algorithm(build_task(definition, prepared, trial.plan, trial.plan.training.seed), trial.plan.algorithm)


def largest(plan: Plan, sizes: Sequence[int], *, fast: bool = False) -> tuple[float, float]:
    """(ε by privacy loss distributions, by Rényi) of one run of a plan, for the client whose ε is largest; both by Rényi if
    `fast`."""
    chosen = sorted(set(sizes), key=partial(_weight, plan), reverse=True)[:_COSTLY] if plan.privacy.unit == "record" else [1]
    rounds, delta = plan.training.rounds, plan.privacy.delta
    by_rdp = []
    for size in chosen:
        found = mechanism_of(plan, size)
        by_rdp.append(float("inf") if found is None else epsilon_by_rdp([found.times(found.count * rounds)], delta))
    exact = by_rdp if fast else [epsilon_of(plan, rounds, size) for size in chosen]
    return max(exact), max(by_rdp)


def _weight(plan: Plan, size: int) -> float:
    """What ε grows with, nearly."""
    found = mechanism_of(plan, size)
    return 0.0 if found is None else found.sampling**2 * found.count


def uniform(plan: Plan) -> Plan:
    """The same plan, in which every node counts alike."""
    return msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, weighting="uniform"))


def said_of(comparison: Comparison) -> tuple[str, ...]:
    """The promise and its price in plain words, for the notes of a report."""
    cost = comparison.privacy
    if cost is None:
        return ()
    by_row = {each.name: each.mean for each in summarize(comparison)}
    alone, metric = by_row[comparison.baseline] or 0.0, comparison.metric
    one, many = comparison.noun
    whose = "one training record" if cost.unit == "record" else f"all that one {one} contributes"
    notes = [
        f"ε is that of one run, for the {one} with the largest, at δ = {cost.delta:g}: it bounds what {whose} changes, against "
        "zeros in its place. It does not hide how many records there are. On a federation companions and repeats are runs of "
        "their own, and cost more.",
        "Noise and batches of a simulation follow from the seed, so that it can be repeated; whoever knows it can take the noise "
        "away. A node draws from the operating system.",
    ]
    if cost.unit == "client":
        notes.append(
            f"Noise that hides a whole {one} is averaged over no more than {len(comparison.participants)} {many}: with so few, "
            "accuracy is mostly lost at any ε that promises much."
        )
    below = [(point, loss) for point in cost.points if (loss := alone - (by_row[point.row] or 0.0)) >= 5e-4]
    if below:
        told = ", ".join(rounded_up(point.epsilon) for point, _ in below)
        notes.append(
            f"At ε = {told} the mean is below that of training alone, which sends nothing and needs no noise: by "
            f"{value(metric, below[0][1])}{' points' if metric in SHARES else ''} at ε = {rounded_up(below[0][0].epsilon)}."
        )
    return tuple(notes)
