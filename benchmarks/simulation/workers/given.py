"""What a worker is given, and how it is told: a folder with the work, and lines of JSON on two pipes.

In: `{"round": 3}`; out: `{"cpu_s": 0.2}`. In: `{"outcome": "file.npz"}`; out: `{}` once it is written. In: end of file: over.
A worker says `{"ready": true}` once its environment is loaded, or `{"missing": "why"}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.simulation.networks import LOSSES, NETWORKS, Loss


class Given:
    """The work of a folder that `benchmarks.simulation.peer.write` wrote."""

    def __init__(self, folder: Path) -> None:
        """Read all of it."""
        self.told: dict[str, Any] = json.loads((folder / "work.json").read_text(encoding="utf-8"))
        with np.load(folder / "work.npz") as arrays:
            self.x, self.y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
            self._picks = torch.from_numpy(arrays["picks"])
        with np.load(folder / "init.npz") as arrays:
            self.init = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        # [rounds][clients] -> the sizes of the batches, which follow each other in `picks`.
        self._batches: list[list[list[int]]] = self.told["batches"]
        self._begins = self.told["begins"]
        self.sizes: list[int] = self.told["sizes"]
        self.lr: float = self.told["lr"]
        self.loss: Loss = LOSSES[self.told["target"]][1]

    def module(self) -> nn.Module:
        """A model in its initial state."""
        made = NETWORKS[self.told["network"]]()
        made.load_state_dict(self.init)
        return made

    def batches(self, index: int, client: int) -> list[tuple[Tensor, Tensor]]:
        """The local steps of a client in a round; rounds begin anew after the last that was given."""
        index %= len(self._batches)
        sizes, begin = self._batches[index][client], self._begins[index][client]
        picks = self._picks[begin : begin + sum(sizes)].split(sizes)
        return [(self.x[at], self.y[at]) for at in picks]


class Pipes:
    """A worker's two ends."""

    def __init__(self) -> None:
        """From the command line: the folder, and the numbers of both descriptors."""
        self.folder = Path(sys.argv[1])
        self._in, self._out = os.fdopen(int(sys.argv[2]), encoding="utf-8"), os.fdopen(int(sys.argv[3]), "w", encoding="utf-8")

    def say(self, **told: Any) -> None:
        """One line."""
        self._out.write(json.dumps(told) + "\n")
        self._out.flush()

    def asked(self) -> dict[str, Any] | None:
        """The next line; None once there is no more."""
        line = self._in.readline()
        return json.loads(line) if line else None


def save(path: str, outcome: Mapping[str, Tensor]) -> None:
    """The mean update, by name."""
    np.savez(path, **{k: v.detach().numpy() for k, v in outcome.items()})


def serve(run: Callable[[int], None], outcome: Callable[[], Mapping[str, Tensor]], pipes: Pipes) -> None:
    """Answer until there is no more, with the processor time of this process."""
    pipes.say(ready=True)
    while (asked := pipes.asked()) is not None:
        if "outcome" in asked:
            save(asked["outcome"], outcome())
            pipes.say()
            continue
        began = time.process_time()
        run(asked["round"])
        pipes.say(cpu_s=time.process_time() - began)
