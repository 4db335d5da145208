"""The learning problems of these tests: a few ragged clients in float64, seen by freehold as a Feed and by oracles as a Log."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from freehold.core import Task, task_from
from freehold.drawing import draw_cohort
from freehold.engines import Feed, Work
from freehold.engines.loop import ADAPTING
from tests.algorithms.oracles import Log, Net, Pair

INPUTS, FEATURES, CLASSES = 5, 4, 3
SIZES = {"a": 6, "b": 10, "c": 12, "d": 15, "e": 19, "f": 8}  # modulo the batch size of 4: never 1, for BatchNorm's sake
WORK = Work(batch_size=4, epochs=2)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model, a loss and everybody's data."""

    net: nn.Module
    loss: nn.Module
    task: Task
    feed: Feed

    @property
    def clients(self) -> list[str]:
        return list(self.feed.rows)


def population(*, regression: bool = False, validation: int = 6, seed: int = 0) -> Feed:
    """Clients that disagree: each one's labels are shifted against the next one's."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(INPUTS, CLASSES, generator=draw, dtype=torch.float64)
    xs, ys, rows, at = [], [], {}, 0
    for i, (client, size) in enumerate(SIZES.items()):
        counts = {"train": size, "validation": validation, "test": 5}
        x = torch.randn(sum(counts.values()), INPUTS, generator=draw, dtype=torch.float64) + 0.3 * i
        xs.append(x)
        ys.append(x @ weight[:, :1] + 0.5 * i if regression else ((x @ weight).argmax(1) + i % 2) % CLASSES)
        rows[client] = {}
        for split, count in counts.items():
            rows[client][split] = torch.arange(at, at + count)
            at += count
    return Feed(x=torch.cat(xs), y=torch.cat(ys), rows=rows)


def problem(*, norm: bool = False, regression: bool = False, validation: int = 6) -> Problem:
    """A small network with `body` and `head` in float64; with BatchNorm if `norm`."""
    torch.manual_seed(3)
    net = Net(INPUTS, FEATURES, 1 if regression else CLASSES, norm=norm).double()
    loss: nn.Module = nn.MSELoss() if regression else nn.CrossEntropyLoss()
    feed = population(regression=regression, validation=validation)
    return Problem(net=net, loss=loss, task=task_from(net, loss, classes=0 if regression else CLASSES), feed=feed)


def log_of(feed: Feed, *, rounds: int, cohort: int, work: Work = WORK) -> Log:
    """What the engine will draw in these rounds, as plain pairs of tensors."""

    def drawn(client: str, index: int) -> list[Pair]:
        return [(batch["x"], batch["y"]) for batch in feed.steps(client, index, work)]

    def rows(split: str) -> dict[str, tuple[Tensor, Tensor]]:
        return {c: (feed.x[s[split]], feed.y[s[split]]) for c, s in feed.rows.items()}

    asked = [draw_cohort(list(feed.rows), cohort, seed=0, index=r) for r in range(rounds)]
    return Log(
        rounds=[{c: drawn(c, r) for c in cohort} for r, cohort in enumerate(asked)],
        adapting={c: drawn(c, ADAPTING) for c in feed.rows},
        train=rows("train"),
        validation=rows("validation"),
        test=rows("test"),
    )
