"""What the algorithms' page says of each algorithm, generated from the registry and from measurements.

As a program it writes the generated blocks of `docs/reference/algorithms.md` anew (`make regold`); the prose around them is
written by hand.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from freehold.algorithms import Costs, costs
from freehold.core import AlgorithmEntry, Hyperparameter, algorithm_entry, algorithm_names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "algorithms.md"
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


@cache
def entries() -> tuple[AlgorithmEntry, ...]:
    """Freehold's own algorithms, in the order in which the page has them; new ones last."""
    own = [entry for name in algorithm_names() if (entry := algorithm_entry(name)).package == "freehold"]
    order = re.findall(r"^#+ `([\w-]+)`$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return tuple(sorted(own, key=lambda entry: order.index(entry.name) if entry.name in order else len(order)))


def current() -> str:
    """The page as it should be."""
    blocks = {"costs": cost_table()} | {entry.name: facts(entry) for entry in entries()}
    return BLOCK.sub(lambda found: f"{found[1]}\n{blocks[found[2]]}\n{found[3]}", PAGE.read_text(encoding="utf-8"))


def facts(entry: AlgorithmEntry) -> str:
    """The paper, the docstring and the hyper-parameters of one algorithm."""
    lines = [entry.citation, "", *(f"> {line}".rstrip() for line in entry.explanation.splitlines()), ""]
    lines += ["| hyper-parameter | default | range |", "|---|---|---|"]
    lines += [f"| `{name}` | {default(known)} | {allowed(known)} |" for name, known in entry.hyperparameters.items()]
    return "\n".join([*lines, ""])


def default(known: Hyperparameter) -> str:
    """What holds if nothing is said."""
    if known.required:
        return "must be given"
    return "see above" if known.default is None else f"`{known.default}`"


def allowed(known: Hyperparameter) -> str:
    """The range in words."""
    if known.choices:
        return ", ".join(f"`{choice}`" for choice in known.choices)
    whole = "a whole number, " if known.kind is int else ""
    return f"{whole}{known.between}" if known.between else whole.rstrip(", ") or "any"


def cost_table() -> str:
    """All algorithms, and what each costs."""
    head = "| algorithm | down | up | server | client | gradients | compute | adapting | sent besides | record-level privacy |"
    lines = [head, "|---|" + "---:|" * 7 + "---|---|"]
    return "\n".join([*lines, *(cost_row(entry.name, costs(entry)) for entry in entries()), ""])


def cost_row(name: str, found: Costs) -> str:
    """One row of the table."""
    numbers = (found.download, found.upload, found.server, found.personal, found.gradients, found.compute, found.adapting)
    besides = ", ".join(f"`{item}`" for item in found.statistics) or "–"
    return f"| [`{name}`](#{name}) | {' | '.join(map(number, numbers))} | {besides} | {'yes' if found.record_privacy else 'no'} |"


def number(value: float) -> str:
    """Two decimals, without idle zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    PAGE.write_text(current(), encoding="utf-8")
