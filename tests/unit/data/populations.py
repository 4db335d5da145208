"""Small populations for the tests of this folder."""

import numpy as np

from freehold.data import Population


def labeled(client: list[str], target: list[int], **more: np.ndarray) -> Population:
    """A population with one random feature, of these clients and class indices."""
    rows = len(client)
    classes = tuple(str(label) for label in range(max([1, *target]) + 1))
    return Population(
        name="made",
        features=np.random.default_rng(0).normal(size=(rows, 2)),
        target=np.array(target, dtype=np.int64),
        client=np.array(client, dtype=str),
        schema=None,
        classes=classes,
        **more,
    )
