"""Where a simulation computes: on the CPU, or on a CUDA device."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import torch

from freehold.core import Task
from freehold.errors import DeviceMissing

DeviceName: TypeAlias = Literal["cpu", "cuda"]


def device_of(name: DeviceName) -> torch.device:
    """The device of that name; DeviceMissing where torch finds none."""
    if name == "cuda" and not torch.cuda.is_available():
        built = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise DeviceMissing(
            f"--device cuda: {built}.",
            hint="Run with --device cpu; or install a build of torch with CUDA (https://pytorch.org), and check nvidia-smi.",
        )
    return torch.device(name)


def moved(task: Task, device: torch.device) -> Task:
    """The same task, starting on a device."""
    return task if device.type == "cpu" else replace(task, init={k: t.to(device) for k, t in task.init.items()})
