"""The tables of a plan, as frozen structs. Made in Python or read from TOML, one that contradicts itself is a `PlanError`."""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec

from freehold.errors import PlanError, WeightRefused
from freehold.plan.checks import (
    FORMAT,
    check_digest,
    check_format,
    check_least,
    check_name,
    check_options,
    check_positive,
    check_range,
    check_work,
    shown,
)
from freehold.plan.spec import Contribution, TensorSpec

Scalar = str | int | float | bool
"""What an option or a hyper-parameter may be."""


class TaskRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The learning problem, by name and version; `digest` pins the installed file that defines it.

    `bundle`: the digest of the code itself, which travels with the study and runs in a sandbox only. `options`: how data are
    made or read.
    """

    name: str
    version: str = "1"
    digest: str = ""
    bundle: str | None = None
    options: dict[str, Scalar] = {}

    @property
    def pinned(self) -> str:
        """The digest of its code, whichever there is; "" for an installed task that is not pinned."""
        return self.bundle or self.digest

    def __post_init__(self) -> None:
        check_name("task.name", self.name)
        if self.digest:
            check_digest("task.digest", self.digest)
        if self.bundle is not None:
            check_digest("task.bundle", self.bundle)
            if self.digest:
                raise PlanError(
                    "task has a digest and a bundle, but its code is either installed or comes along.",
                    hint="Keep bundle alone: it pins every file.",
                )
        check_options(self.options)


class WrapperRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An `Algorithm -> Algorithm` wrapper, for instance `clip` or `server-momentum`."""

    name: str
    hyperparameters: dict[str, Scalar] = {}

    def __post_init__(self) -> None:
        check_name("A wrapper's name", self.name)


class AlgorithmRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A registered algorithm, with what differs from its default hyper-parameters; wrappers apply in order, innermost first."""

    name: str
    hyperparameters: dict[str, Scalar] = {}
    wrappers: tuple[WrapperRef, ...] = ()

    def __post_init__(self) -> None:
        check_name("An algorithm's name", self.name)


class Companion(AlgorithmRef, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run to compare with, which has bytes and a privacy budget of its own; `tensors` is all that it may send."""

    tensors: tuple[TensorSpec, ...] = ()


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long and in which bites the cohort trains: each round either `epochs` over the client's data, or `steps` batches.

    No `weighting`: the algorithm's own. `last_batch`: "even" deals the examples of a pass over its batches, whose sizes then
    differ by one at most; "short" fills every batch but the last, as most data loaders do, and a single example that is left
    over makes a whole step. `most_weight`: weights above it are cut to it; absent: a client counts with all its examples.
    """

    rounds: int
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    seed: int = 0
    weighting: Literal["examples", "uniform"] | None = None
    continuing: bool = False
    last_batch: Literal["even", "short"] = "even"
    most_weight: int | None = None

    def __post_init__(self) -> None:
        check_least("training.rounds", self.rounds, 1)
        check_least("training.batch_size", self.batch_size, 1)
        check_range("training.seed", self.seed, 0, 2**63 - 1)
        check_work("training", self.epochs, self.steps)
        if self.most_weight is not None:
            check_range("training.most_weight", self.most_weight, 1, 2**53)
            if self.weighting == "uniform":
                raise PlanError(
                    'training.most_weight is set, but training.weighting is "uniform": every contribution weighs 1.',
                    hint="Leave most_weight out, or weigh by examples.",
                )

    def check_weight(self, weight: float) -> None:
        """Raise WeightRefused for a contribution that would count with more, or with something else, than this plan allows."""
        if self.weighting == "uniform" and weight != 1:
            raise WeightRefused(
                f"A contribution has the weight {weight}, but the plan weighs uniformly.",
                hint='With training.weighting = "uniform" each contribution weighs 1.',
            )
        if self.most_weight is not None and not weight <= self.most_weight:
            raise WeightRefused(
                f"A contribution has the weight {weight}, but the plan allows at most {self.most_weight}.",
                hint="training.most_weight bounds it; a trainer that does as the plan says cuts its weight to that.",
            )

    def trains(self, index: int) -> bool:
        """Whether the round of this index trains. After `rounds` of them one measures; then a study on a schedule trains on."""
        return index % (self.rounds + 1) < self.rounds

    def cycle(self, index: int) -> int:
        """How often a study had trained and measured before the round of this index; 0 without a schedule."""
        return index // (self.rounds + 1)

    def trained(self, index: int) -> int:
        """How many rounds have trained before the round of this index."""
        return index - self.cycle(index)


class Work(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An amount of local work: either `epochs` over the client's data, or `steps` batches."""

    epochs: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        check_work("adaptation", self.epochs, self.steps)


class RoundPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom a round asks and when it counts. No `cohort`: all that are enrolled; no `quorum`: all that were asked must answer.

    `least_nodes`: how many must have joined before the first round.

    "asynchronous": a round is a server update, which closes when `buffer` contributions are in; `cohort` nodes train at a time.
    A contribution that is s updates old is multiplied with `(1 + s)^-staleness_exponent`, and refused above `most_staleness`.
    """

    cohort: int | None = None
    quorum: int | None = None
    deadline_s: float = 600.0
    least_nodes: int = 1
    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    buffer: int | None = None
    staleness_exponent: float | None = None
    most_staleness: int | None = None

    def __post_init__(self) -> None:
        if self.cohort is not None:
            check_least("round.cohort", self.cohort, 1)
        if self.quorum is not None:
            check_least("round.quorum", self.quorum, 1)
        if self.cohort is not None and self.quorum is not None and self.quorum > self.cohort:
            raise PlanError(
                f"round.quorum is {self.quorum}, but must lie between 1 and round.cohort, {self.cohort}.",
                hint="Lower round.quorum or raise round.cohort.",
            )
        check_positive("round.deadline_s", self.deadline_s)
        check_least("round.least_nodes", self.least_nodes, 1)
        self._check_mode()

    def _check_mode(self) -> None:
        waits = self.mode == "asynchronous"
        for name in ("buffer", "staleness_exponent", "most_staleness"):
            if not waits and getattr(self, name) is not None:
                raise PlanError(
                    f'round.{name} is set, but round.mode is "synchronous", which does not use it.',
                    hint=f'Leave {name} out, or say mode = "asynchronous".',
                )
        if not waits:
            return
        if self.buffer is None or self.quorum is not None:
            raise PlanError(
                'round.mode is "asynchronous", which needs round.buffer and has no round.quorum.',
                hint="An update happens when `buffer` contributions are in; leave quorum out.",
            )
        check_least("round.buffer", self.buffer, 1)
        check_range("round.most_staleness", self.staleness_limit, 0, 1000)
        if not 0 <= self.staleness_power <= 10:
            raise PlanError(
                f"round.staleness_exponent is {self.staleness_exponent}, but must lie between 0 and 10.",
                hint="0 counts old contributions like new ones; the paper's is 0.5.",
            )

    @property
    def staleness_power(self) -> float:
        """`staleness_exponent`, or what its absence means."""
        return 0.5 if self.staleness_exponent is None else self.staleness_exponent

    @property
    def staleness_limit(self) -> int:
        """`most_staleness`, or what its absence means."""
        return 20 if self.most_staleness is None else self.most_staleness


class Privacy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is promised, and for whom.

    `record`: DP-SGD in the trainer, for tasks that the owner trusts. `client`: the guard clips and adds noise. `none`: nothing.
    """

    unit: Literal["none", "record", "client"] = "none"
    max_norm: float | None = None
    noise_multiplier: float | None = None
    expected_batch: float | None = None
    delta: float = 1e-5

    def __post_init__(self) -> None:
        for name in _USED["record"]:
            value: float | None = getattr(self, name)
            used = name in _USED[self.unit]
            if used and value is None:
                raise PlanError(
                    f'privacy.unit is "{self.unit}", which needs privacy.{name}, and there is none.',
                    hint=f'Add {name} to [privacy], or say unit = "none" and promise nothing.',
                )
            if value is not None and not used:
                raise PlanError(
                    f'privacy.{name} is set, but privacy.unit is "{self.unit}", which does not use it.',
                    hint=f"Leave {name} out, or choose the unit that it belongs to.",
                )
            if value is not None:
                check_positive(f"privacy.{name}", value)
        if self.unit == "record" and self.noise_multiplier is not None and self.noise_multiplier > MOST_RECORD_NOISE:
            raise PlanError(
                f"privacy.noise_multiplier is {self.noise_multiplier:g}; per record it is at most {MOST_RECORD_NOISE:g}.",
                hint="So much noise leaves nothing to learn, and its grid is too coarse for gradients; lower it.",
            )
        if not 0 < self.delta < 1:
            raise PlanError(
                f"privacy.delta is {self.delta}, but must lie between 0 and 1.",
                hint="Choose it well below 1 / the number of records (or clients) that the promise is about.",
            )


MOST_RECORD_NOISE: Final = 2.0**20
"""Noise that is wider needs a grid of fewer than 2^20 steps in `max_norm`: rounding to it would move gradients of many numbers
beyond what they are clipped to."""

_USED = {
    "none": (),
    "record": ("max_norm", "noise_multiplier", "expected_batch"),
    "client": ("max_norm", "noise_multiplier"),
}
"""Which figures the promise of each unit rests on."""


MOST_UNITS: Final = 2.0**40
"""What `max_norm` and the noise may be in units of the fixed point: sums over many clients must stay exact."""


def check_released(plan: Plan) -> None:
    """Raise PlanError where a plan with noise per client cannot keep its promise."""
    if plan.training.weighting != "uniform":
        raise PlanError(
            'privacy.unit is "client", but a weight by examples tells a number without noise.',
            hint='Add weighting = "uniform" to [training].',
        )
    privacy, unit = plan.privacy, 2.0**plan.contribution.scale
    assert privacy.max_norm is not None and privacy.noise_multiplier is not None, "checked with the table"
    if max(1.0, privacy.noise_multiplier) * privacy.max_norm * unit > MOST_UNITS:
        raise PlanError(
            f"With contribution.scale {plan.contribution.scale}, max_norm and its noise are too large for exact sums.",
            hint="Lower contribution.scale: noise hides what lies that far after the point.",
        )
    for tensors in (plan.contribution.tensors, *(companion.tensors for companion in plan.companions)):
        for tensor in tensors:
            if "float" not in tensor.dtype:
                raise PlanError(
                    f'{shown(tensor.name)} is {tensor.dtype}, and privacy.unit is "client", which clips and noises floats only.',
                    hint="Choose an algorithm that sends no whole numbers, or another unit.",
                )
        if (privacy.max_norm * unit) ** 2 < sum(math.prod(tensor.shape) for tensor in tensors):
            raise PlanError(
                f"With contribution.scale {plan.contribution.scale}, rounding could move a contribution by more than max_norm.",
                hint="Raise contribution.scale.",
            )


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole run. The same plan is tried in the simulator and run on the federation.

    No `adaptation`: as much work as in a round of training. `repeats`: how often all of it is run, each time with another
    seed, so with other splits; what differs between the repeats says how sure a comparison is.
    """

    format: int = FORMAT
    name: str
    task: TaskRef
    algorithm: AlgorithmRef
    training: Training
    adaptation: Work | None = None
    round: RoundPolicy = msgspec.field(default_factory=RoundPolicy)
    privacy: Privacy = msgspec.field(default_factory=Privacy)
    contribution: Contribution = msgspec.field(default_factory=Contribution)
    companions: tuple[Companion, ...] = ()
    repeats: int = 1
    min_examples: int = 10
    clients: Literal["silos", "devices"] = "silos"

    def __post_init__(self) -> None:
        check_format(self.format)
        check_name("name", self.name)
        check_least("min_examples", self.min_examples, 1)
        check_range("repeats", self.repeats, 1, 1000)
        if self.privacy.unit == "client":
            check_released(self)
