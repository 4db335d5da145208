"""What guard and trainer say to each other; tensors go beside it as sealed memory."""

from __future__ import annotations

import msgspec

from freehold.wire.messages import Measured


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all jobs have."""


class Open(Job, frozen=True, kw_only=True, tag="open"):
    """The first job of a trainer: one study, one client. Descriptors: the plan as TOML, and the bundle that it names."""

    client: str
    data: str
    """Path of the client's table."""


class TrainJob(Job, frozen=True, kw_only=True, tag="train"):
    """A round's client update. Descriptors: shared, and the committed personal state unless it is the first."""

    number: int
    """Of the run."""
    round: int
    cohort: int
    population: int


class MeasureJob(Job, frozen=True, kw_only=True, tag="measure"):
    """Measure the client's own model. Descriptors as for `TrainJob`."""

    number: int
    round: int


class Opened(Job, frozen=True, kw_only=True, tag="opened"):
    """The data fits the plan. `findings` say what is odd; they stay on the node."""

    examples: int
    training: int = 0
    """Of them, those that are trained on, in the split with the fewest; only where the plan has record-level privacy."""
    findings: list[str]


class Trained(Job, frozen=True, kw_only=True, tag="trained"):
    """Descriptors: all that departs, and the new personal state."""

    weight: float


class MeasuredModel(Job, frozen=True, kw_only=True, tag="measured"):
    """Sums over each split; without descriptors."""

    splits: dict[str, Measured]
    alone: dict[str, Measured]
    """The same of the model that this client trained alone, as long as the others."""
    served: str
    """Which of "local", "shared" and "personal" the node would serve, "" where it cannot tell yet."""


class Failed(Job, frozen=True, kw_only=True, tag="failed"):
    """The job could not be done; the trainer goes on."""

    code: int
    message: str
    hint: str = ""


ToTrainer = Open | TrainJob | MeasureJob
FromTrainer = Opened | Trained | MeasuredModel | Failed
