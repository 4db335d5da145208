"""What an engine tells of how it ran: the choice, what fell back and why, who was skipped, and how much work was useful."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from freehold.engines.choice import Choice


@dataclass(kw_only=True)
class Execution:
    """Grows while an engine runs."""

    choice: Choice | None = None
    """What was chosen at first; None until there was a round."""
    executor: str = ""
    """What runs now: it changes when something falls back."""
    why: str = "no round was run"
    """Instead of a choice's own reason."""
    chunk: int = 0
    fallbacks: dict[str, None] = field(default_factory=dict)
    """What was given up, one line each, in order."""
    skipped: dict[str, None] = field(default_factory=dict)
    """Clients without training data, in the order they were met."""
    steps: int = 0
    """Steps of clients that changed something."""
    computed_steps: int = 0
    computed_examples: int = 0
    _examples: list[Tensor] = field(default_factory=list)

    def count(self, real: Tensor, steps: int, computed_steps: int) -> None:
        """Add a chunk: `real` [C, S, B], its live steps, and those that were computed."""
        self.steps += steps
        self.computed_steps += computed_steps
        self.computed_examples += computed_steps * real.shape[-1]
        self._examples = [torch.stack([*self._examples, real.sum()]).sum()]  # no wait for a device

    @property
    def examples(self) -> int:
        """Real examples that were processed."""
        return int(self._examples[0]) if self._examples else 0

    def told(self) -> Mapping[str, Any]:
        """As JSON knows it."""
        choice = self.choice
        return {
            "executor": self.executor,
            "chunk": self.chunk,
            "why": choice.why if choice else self.why,
            "flop_per_step": choice.flop_per_step if choice else 0.0,
            "estimated_us": dict(choice.estimated_us) if choice else {},
            "measured_us": dict(choice.measured_us) if choice else {},
            "useful_steps": self.steps / self.computed_steps if self.computed_steps else 1.0,
            "useful_examples": self.examples / self.computed_examples if self.computed_examples else 1.0,
            "fallbacks": list(self.fallbacks),
            "skipped": list(self.skipped),
        }
