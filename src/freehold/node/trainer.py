"""The trainer: runs a plan's code on the client's data, in a process of its own, without network or keys.

It answers the guard's jobs one after the other, and ends when the guard does.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from freehold.core import Round, Tree, flatten, unflatten
from freehold.engines import departing
from freehold.errors import FreeholdError, PeerGone
from freehold.failpoints import failpoint
from freehold.node.jobs import Failed, FromTrainer, MeasuredModel, Open, Opened, ToTrainer, Trained, TrainJob
from freehold.node.program import Program, load
from freehold.plan import Plan, parse
from freehold.tasks.bundled import definition_of
from freehold.wire.local import Channel, channel_from, close, read
from freehold.wire.tensors import packed, unpacked

UNEXPECTED = 306
"""The number of an error that the training code did not foresee."""


REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS})
"""What the sandbox answers to what a trainer may not do."""
SANDBOXED = (
    "In the sandbox there are no child processes, no other programs and no sockets: torch.compile and a DataLoader with workers "
    "do not work there. Leave torch.compile out, and load data in the process itself (num_workers=0)."
)


class Trainer:
    """Answers jobs; one study, one client."""

    def __init__(self) -> None:
        self._program: Program | None = None

    def answer(self, job: ToTrainer, fds: Sequence[int]) -> tuple[FromTrainer, list[int]]:
        """The answer to a job, and the sealed memory that goes with it."""
        if isinstance(job, Open):
            plan: Plan = parse(read(fds[0]).decode())
            definition = definition_of(plan, read(fds[1]) if len(fds) > 1 else None)
            self._program = Program(plan, job.client, load(plan, job.client, Path(job.data), definition), definition)
            population = self._program.population
            training = self._program.training() if plan.privacy.unit == "record" else 0
            return Opened(examples=len(population.target), training=training, findings=self._program.findings()), []
        if self._program is None:
            raise ValueError("a job before the study was opened")
        shared, personal = self._states(job.number, fds)
        if isinstance(job, TrainJob):
            algorithm = self._program.algorithm(job.number)
            result, weight = self._program.train(job.number, Round(job.round, job.cohort, job.population), shared, personal)
            return Trained(weight=weight), [
                packed(departing(algorithm, result), "departing"),
                packed(flatten(result.personal), "personal"),
            ]
        found, alone, served = self._program.measure(job.number, shared, personal, index=job.round)
        return MeasuredModel(splits=dict(found.sums), alone=dict(alone.sums), served=served), []

    def _states(self, number: int, fds: Sequence[int]) -> tuple[Tree, Tree]:
        assert self._program is not None
        algorithm = self._program.algorithm(number)
        shared = unflatten(unpacked(fds[0]), algorithm.broadcast(algorithm.init()))
        first = algorithm.enroll(shared)
        return shared, unflatten(unpacked(fds[1]), first) if len(fds) > 1 else first


def hint_of(error: BaseException) -> str:
    """What the node's owner is told where the sandbox, not a defect, may be the cause: it never leaves the node.

    An error of the operating system's says so, or another one that was raised because of it.
    """
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        current = current.__cause__ or current.__context__
    if any(isinstance(each, OSError) and each.errno in REFUSED for each in seen) or any(
        type(each).__module__.startswith(("torch._inductor", "torch._dynamo")) for each in seen
    ):
        return SANDBOXED
    return ""


def serve(channel: Channel, answer: Callable[[ToTrainer, Sequence[int]], tuple[FromTrainer, list[int]]]) -> None:
    """Answer jobs until the guard is gone."""
    while True:
        try:
            job, fds = channel.receive(ToTrainer)
        except PeerGone:
            return
        out: list[int] = []
        reply: FromTrainer
        try:
            reply, out = answer(job, fds)  # type: ignore[arg-type]
        except FreeholdError as error:
            reply = Failed(code=error.code, message=error.message, hint=error.hint)
        except Exception as error:  # a plan's own code may raise anything, and the guard must hear of it
            # The text of a foreign error may quote data; its kind does not.
            reply = Failed(code=UNEXPECTED, message=f"The training code raised {type(error).__name__}.", hint=hint_of(error))
        finally:
            close(fds)
        try:
            failpoint("trainer.answering")
            channel.send(reply, out)
        except PeerGone:
            return
        finally:
            close(out)


def main() -> None:
    """`python -m freehold.node.trainer FD`: the descriptor of the channel to the guard."""
    torch.set_num_threads(1)
    serve(channel_from(int(sys.argv[1])), Trainer().answer)


if __name__ == "__main__":
    main()
