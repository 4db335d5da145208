"""Handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels, without clients of their own."""

from __future__ import annotations

import numpy as np

from freehold.data.population import Population


def digits() -> Population:
    """Features [1797, 64] in [0, 1], classes 0 to 9, one client "all": use `partition` to make clients of it.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (test part), CC BY 4.0.
    """
    from sklearn.datasets import load_digits  # here: it takes a second to import

    images, labels = load_digits(return_X_y=True)
    return Population(
        name="digits",
        features=(np.asarray(images, dtype=np.float32) / np.float32(16)),
        target=np.asarray(labels, dtype=np.int64),
        client=np.full(len(labels), "all"),
        schema=None,
        classes=tuple(map(str, range(10))),
    )
