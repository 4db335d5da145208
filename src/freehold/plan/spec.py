"""What may leave a node: the contribution spec, as data, and the one function that holds a contribution against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from freehold.errors import PlanError, SpecMismatch
from freehold.plan.checks import check_least, check_range, shown

DType = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32"]
"""What tensors may travel as."""

SentAs = Literal["float32", "bfloat16"]
"""What a plan may have steps of parameters rounded to before they travel."""

Compression = Literal["none", "zstd"]
"""How the bytes of a contribution travel."""


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor that may leave a node: its name in the flattened contribution, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        if not self.name:
            raise PlanError(
                "contribution.tensors has an entry with an empty name.", hint="Name the tensor as the algorithm does."
            )
        for size in self.shape:
            check_least(f"contribution.tensors.{shown(self.name)}.shape", size, 0)


class Contribution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a node may send in a round: fixed point with `scale` bits after the point, and only these tensors.

    `dtype`: what steps of parameters are rounded to on the node before they count; absent: as the algorithm makes them.
    `tensors` lists the dtypes that really travel.
    """

    scale: int = 24
    dtype: SentAs | None = None
    compression: Compression = "none"
    tensors: tuple[TensorSpec, ...] = ()

    def __post_init__(self) -> None:
        check_range("contribution.scale", self.scale, 1, 52)
        seen: set[str] = set()
        for tensor in self.tensors:
            if tensor.name in seen:
                raise PlanError(f"contribution.tensors lists {shown(tensor.name)} twice.", hint="Keep one of the two.")
            seen.add(tensor.name)


def check_contribution(spec: Contribution, flat: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Raise `SpecMismatch` unless `flat`, name -> (shape, dtype), is exactly what `spec` lists."""
    expected = {tensor.name: tensor for tensor in spec.tensors}
    for name in sorted(flat.keys() - expected.keys()):
        raise SpecMismatch(
            f"{shown(name)} {list(flat[name][0])} is not in the plan's contribution spec.",
            hint="The plan shares only what it lists; if that is wrong, change the plan, and have it signed and approved anew.",
        )
    for name, tensor in expected.items():
        if name not in flat:
            raise SpecMismatch(f"{shown(name)} is in the plan's contribution spec, but was not contributed.", hint=_SAME_TASK)
        shape, dtype = flat[name]
        if tuple(shape) != tensor.shape or dtype != tensor.dtype:
            raise SpecMismatch(
                f"{shown(name)} is {shown(dtype)} {list(shape)}, but the plan's contribution spec says "
                f"{tensor.dtype} {list(tensor.shape)}.",
                hint=_SAME_TASK,
            )


_SAME_TASK = "Check that the node runs the task and the algorithm, with the options, that the plan names."
