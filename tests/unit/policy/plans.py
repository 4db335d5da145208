"""Plans and facts for policies to decide on."""

from __future__ import annotations

import msgspec

from freehold.plan import AlgorithmRef, Contribution, Plan, Privacy, RoundPolicy, TaskRef, TensorSpec, Training
from freehold.policy import Facts

FOREIGN = "sha256:" + "ab" * 32
NOON = 1_700_000_000.0


def heart(**changed: object) -> Plan:
    """A plan on data that is called heart."""
    plan = Plan(
        name="study",
        task=TaskRef(name="heart"),
        algorithm=AlgorithmRef(name="fedavg"),
        training=Training(rounds=3, batch_size=8, epochs=1, weighting="uniform"),
        round=RoundPolicy(least_nodes=4),
        contribution=Contribution(tensors=(TensorSpec(name="weight", shape=(2, 13)), TensorSpec(name="bias", shape=(2,)))),
    )
    return msgspec.structs.replace(plan, **changed)


def noised(unit: str, **changed: object) -> Plan:
    """The same with noise."""
    expected = 8.0 if unit == "record" else None
    privacy = Privacy(unit=unit, max_norm=1.0, noise_multiplier=1.1, expected_batch=expected, delta=1e-5)  # type: ignore[arg-type]
    return heart(privacy=privacy, **changed)


def facts(**changed: object) -> Facts:
    """Of a node that has the task heart."""
    given: dict[str, object] = {"installed": frozenset({"heart"}), "now": NOON}
    return Facts(**{**given, **changed})  # type: ignore[arg-type]
