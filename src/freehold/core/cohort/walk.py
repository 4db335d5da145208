"""The local steps of a cohort, one after the other, each on the clients that still have work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freehold.core.steps import Batch, Steps


@dataclass(frozen=True, kw_only=True)
class Stride:
    """One step of the first `n` clients."""

    n: int
    batch: Batch
    """`x` [n, B, ...] and so on."""
    seeds: Tensor
    """[n, B]: what each example's loss counts with in the step: rate / number of real examples."""
    pace: float | Tensor
    """The rate, or [n] where it differs; 0 for a client whose step is padding."""
    live: Tensor
    """[n] bool."""
    even: bool
    """Whether all of them take the step, at one rate."""
    picks: Tensor | None
    """[n, B], into the clients' own rows; None where these are not known."""


class Walk:
    """The steps of a cohort, from `Steps` or from a list of batches, all with a leading client axis."""

    def __init__(self, batches: Steps | Sequence[Batch], rate: float | Tensor, dtype: torch.dtype) -> None:
        self.rate, self.dtype = rate, dtype
        self.steps = batches if isinstance(batches, Steps) else None
        self.batches = batches
        self.skipped: frozenset[str] = frozenset()
        """Columns that nobody reads from now on."""
        self.count = batches.picks.shape[1] if isinstance(batches, Steps) else len(batches)

    def __iter__(self) -> Iterator[Stride]:
        return self._read(self.steps) if self.steps is not None else self._listed()

    @property
    def raw_rows(self) -> int | None:
        """How many rows of its own a client has; None where they aren't known, or aren't numbers."""
        return self.steps.rows.shape[1] if self.steps is not None and self.steps.table["x"].is_floating_point() else None

    def read_rows(self) -> Tensor:
        """[C, N, in]: all rows of the clients, each as one vector, where they are known."""
        assert self.steps is not None
        return take(self.steps.table["x"], self.steps.rows).flatten(2)

    def _read(self, steps: Steps) -> Iterator[Stride]:
        clients, count, size = steps.picks.shape
        at = steps.rows.gather(1, steps.picks.flatten(1)).view(clients, count, size).transpose(0, 1).contiguous()
        picks, real = steps.picks.transpose(0, 1).contiguous(), steps.real.transpose(0, 1).contiguous()
        live, keys = steps.live.T.contiguous(), steps.keys.T.contiguous()
        seeds, paces = self._weigh(real, live)
        reach, even = _reach(live)
        plain = not isinstance(self.rate, Tensor)
        buffers: dict[str, Tensor] = {}  # one step's examples at a time
        for s, n in enumerate(reach):
            if n == 0:
                continue
            alike = even[s] and plain
            yield Stride(
                n=n,
                batch={
                    **{k: take(t, at[s, :n], buffers, k) for k, t in steps.table.items() if k not in self.skipped},
                    "real": real[s, :n],
                    "live": live[s, :n],
                    "key": keys[s, :n],
                },
                seeds=seeds[s, :n],
                pace=self.rate if alike else paces[s, :n],
                live=live[s, :n],
                even=alike,
                picks=picks[s, :n],
            )

    def _listed(self) -> Iterator[Stride]:
        assert not isinstance(self.batches, Steps)
        for batch in self.batches:
            live = batch["live"][None]
            seeds, paces = self._weigh(batch["real"][None], live)
            (n,), (even,) = _reach(live)
            if n == 0:
                continue
            alike = even and not isinstance(self.rate, Tensor)
            yield Stride(
                n=n,
                batch={k: v[:n] for k, v in batch.items()},
                seeds=seeds[0, :n],
                pace=self.rate if alike else paces[0, :n],
                live=live[0, :n],
                even=alike,
                picks=None,
            )

    def _weigh(self, real: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """(seeds [S, C, B], paces [S, C]) of real [S, C, B] and live [S, C]."""
        paces = live.to(self.dtype) * self.rate
        return real * (paces / real.sum(-1).clamp(min=1))[..., None], paces


def _reach(live: Tensor) -> tuple[list[int], list[bool]]:
    """Of live [S, C]: how many clients lead up to the last one with work, and whether all of these have work."""
    reach = (live * torch.arange(1, live.shape[1] + 1, device=live.device)).amax(1)
    even = live.sum(1) == reach
    both: list[list[int]] = torch.stack([reach, even.long()]).tolist()
    return both[0], [bool(e) for e in both[1]]


def take(table: Tensor, at: Tensor, buffers: dict[str, Tensor] | None = None, name: str = "") -> Tensor:
    """Rows `at` [C, N] of each client's table [C, T, ...]; a table that all share is read in place.

    With `buffers` the rows lie in the buffer of that name, until the next call.
    """
    if table.stride(0) == 0 or table.shape[0] == 1:
        clients, rows = at.shape
        if buffers is None:
            return table[0].index_select(0, at.flatten()).view(clients, rows, *table.shape[2:])
        if name not in buffers or buffers[name].shape[0] < clients:
            buffers[name] = table.new_empty(clients, rows, *table.shape[2:])
        out = buffers[name][:clients]
        torch.index_select(table[0], 0, at.flatten(), out=out.flatten(0, 1))
        return out
    return table[torch.arange(len(at), device=at.device)[:, None], at]
