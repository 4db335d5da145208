"""Where the personal states of a cell lie: in memory, or in an arena on disk where they are large."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from torch import Tensor

from freehold.core import Algorithm, flatten, leaves, tree_map, unflatten
from freehold.engines import Arena, PersonalStates, PersonalStore, Sealed, Store, state_bytes

IN_MEMORY_BYTES = 64 << 20
"""Personal states that may become larger than this lie in an arena, so that memory and checkpoints do not grow with them."""


@contextmanager
def personal_states(
    algorithm: Algorithm,
    clients: Sequence[str],
    *,
    asked: int,
    folder: Path | None,
    found: Mapping[str, Mapping[str, Tensor]],
    sealed: Sealed | None,
) -> Iterator[PersonalStates]:
    """The states of a cell that asks at most `asked` of `clients`, as a checkpoint left them: `found`, or `sealed` in `folder`.

    Without a folder an arena ends with the process. States of another device than the processor stay in its memory.
    Raises ArenaError.
    """
    like = algorithm.enroll(algorithm.broadcast(algorithm.init()))
    if sealed is not None and folder is not None:
        with closing(Arena.open(folder, clients, algorithm.enroll, like=like, at=sealed)) as arena:
            yield arena
        return
    states = {c: tree_map(lambda t, as_: t.to(as_.device), unflatten(flat, like), like) for c, flat in found.items()}
    elsewhere = any(t.device.type != "cpu" for t in leaves(like))
    if elsewhere or state_bytes(like) * min(asked, len(clients)) <= IN_MEMORY_BYTES:
        store = PersonalStore(algorithm.enroll)
        store.restore(states)
        yield store
        return
    if folder is None:
        made = Arena.temporary(clients, algorithm.enroll, like=like, asked=asked)
    else:
        made = Arena.create(folder, clients, algorithm.enroll, like=like, asked=asked)
    with closing(made) as arena:
        if states:
            arena.restore(states)
        yield arena


def remembered(states: Store) -> tuple[dict[str, dict[str, Tensor]], Sealed | None]:
    """What a checkpoint keeps of states: all of them, flattened; or what an arena has, once all of it is on the disk."""
    if isinstance(states, Arena):
        return {}, states.seal()
    return {c: {k: t.cpu() for k, t in flatten(p).items()} for c, p in states.committed().items()}, None
