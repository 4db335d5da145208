"""Freehold: personalized federated learning for Linux.

    import freehold
    freehold.compare(frame, client="hospital", target="ill")

`compare`, `simulate` and `tune` are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import typing as _typing

if _typing.TYPE_CHECKING:
    from freehold.study.api import compare, simulate
    from freehold.study.tune import tune

__all__ = ["compare", "simulate", "tune"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from freehold import study

        return getattr(study, name)
    raise AttributeError(f"module 'freehold' has no attribute {name!r}")
