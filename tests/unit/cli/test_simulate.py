"""What `freehold simulate --epsilon` takes, before anything is computed."""

from __future__ import annotations

import pytest

from freehold.cli.simulate import NoiseOptions, Unit, _wanted
from freehold.errors import UsageError


def test_epsilons_are_read_with_safe_defaults() -> None:
    found = _wanted(NoiseOptions(epsilon=["1,4", "8"]))
    assert found == {"epsilons": (1.0, 4.0, 8.0), "unit": "record", "delta": None, "max_norm": 1.0}
    found = _wanted(NoiseOptions(epsilon=["2"], unit=Unit.client, delta=1e-6, max_norm=0.5))
    assert found == {"epsilons": (2.0,), "unit": "client", "delta": 1e-6, "max_norm": 0.5}
    assert _wanted(NoiseOptions()) is None


@pytest.mark.parametrize(
    ("epsilon", "unit", "delta", "max_norm"),
    [
        (["one"], None, None, None),
        (["0"], None, None, None),
        (["inf"], None, None, None),
        (["1"], None, 1.0, None),
        (["1"], None, -1e-5, None),
        (["1"], None, None, 0.0),
        (None, Unit.client, None, None),
        (None, None, 1e-5, None),
        (None, None, None, 2.0),
    ],
)
def test_what_is_no_epsilon_or_has_no_meaning_without_one_is_refused(
    epsilon: list[str] | None, unit: Unit | None, delta: float | None, max_norm: float | None
) -> None:
    with pytest.raises(UsageError):
        _wanted(NoiseOptions(epsilon=epsilon, unit=unit, delta=delta, max_norm=max_norm))
