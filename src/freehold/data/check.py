"""What is odd about each client's data, in plain words: `freehold data check`. Counts and names, never rows."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from freehold.data.checkcolumns import Finding, check_column, check_pooled
from freehold.data.overlap import example_keys
from freehold.data.population import Population
from freehold.data.schema import infer_schema

__all__ = ["Finding", "check", "told"]

MANY_CLIENTS = 50  # beyond this, columns are checked over all clients at once, and clients are counted instead of listed
FEW_EXAMPLES = 20
LOPSIDED = 0.9


def check(population: Population, *, min_examples: int = 1) -> tuple[Finding, ...]:
    """Findings about the clients, their labels and their columns, errors first. A client with fewer than `min_examples`
    is an error, as it would be in a study of silos.

    Compares with the population's schema; without one, with what `infer_schema` makes of all clients, which has no ranges.
    Arrays of more than two axes are checked for labels and sizes only. Never raises for data that could be read.
    """
    many = len(population.clients) > MANY_CLIENTS
    findings = _too_small(population, min_examples)
    findings += _many_clients(population) if many else _each_client(population, min_examples)
    findings += _doubles(population, many)
    frame = _frame(population)
    if frame is not None:
        schema = infer_schema(population)
        everyone = {None: np.arange(len(frame))} if many else {client: rows for client, rows in population.rows.items()}
        for column in schema.columns:
            whole = frame[column.name]
            for client, rows in everyone.items():
                coded = population.coded.get(client or "", {}).get(column.name, {})
                findings += check_column(column, whole[rows], client=client, coded=coded, everyone=whole)
            findings += check_pooled(column, whole, population)
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(findings, key=lambda finding: order[finding.level]))


def _frame(population: Population) -> pl.DataFrame | None:
    features = population.features
    if isinstance(features, pl.DataFrame):
        return features
    if features.ndim > 2:
        return None
    return pl.DataFrame({f"x{index}": features[:, index] for index in range(features.shape[1])})


def told(finding: Finding) -> str:
    """A finding in one sentence, with whom it is about."""
    return finding.text if finding.client is None else f"{finding.client}: {finding.text}"


def _too_small(population: Population, min_examples: int) -> list[Finding]:
    return [
        Finding(
            client=client,
            column=None,
            level="error",
            text=f"{_examples(size)}, but a study needs {min_examples} of each client: say --min-examples {size}, leave it out, "
            "or say --devices, which skips small clients and counts them.",
        )
        for client, size in population.sizes.items()
        if size < min_examples
    ]


def _examples(count: int) -> str:
    return f"{count} example{'' if count == 1 else 's'}"


def _each_client(population: Population, min_examples: int) -> list[Finding]:
    findings = []
    for client, rows in population.rows.items():
        if min_examples <= len(rows) < FEW_EXAMPLES:
            text = f"{_examples(len(rows))}: too few to test a model on, or to tell a gain from luck."
            findings.append(Finding(client=client, column=None, level="warning", text=text))
        found = _labels(population, client, rows)
        if found is not None:
            findings.append(found)
    return findings


def _labels(population: Population, client: str, rows: NDArray[np.int64]) -> Finding | None:
    target = population.target[rows]
    if not population.classes:
        if len(rows) > 1 and (target == target[0]).all():
            text = f"the target is the same number in all {len(rows)} rows: there is nothing to learn."
            return Finding(client=client, column=None, level="warning", text=text)
        return None
    counts = np.bincount(target.astype(np.int64), minlength=len(population.classes))
    most = population.classes[int(counts.argmax())]
    if counts.max() == len(rows):
        whose = f"all {len(rows)} rows are" if len(rows) > 1 else "its one row is"
        text = f"{whose} {most!r}: alone, this client cannot learn to tell the classes apart."
    elif counts.max() >= LOPSIDED * len(rows):
        text = f"{counts.max()} of {len(rows)} {most}: accuracy says little, look at balanced accuracy."
    else:
        return None
    return Finding(client=client, column=None, level="warning", text=text)


def _many_clients(population: Population) -> list[Finding]:
    sizes = np.array(list(population.sizes.values()))
    findings = []
    if (sizes < FEW_EXAMPLES).any():
        text = f"{int((sizes < FEW_EXAMPLES).sum())} of {len(sizes)} clients have fewer than {FEW_EXAMPLES} examples."
        findings.append(Finding(client=None, column=None, level="warning", text=text))
    odd = [_labels(population, client, rows) for client, rows in population.rows.items()]
    count = sum(finding is not None for finding in odd)
    if count:
        what = f"one class in {LOPSIDED:.0%} or more of their rows" if population.classes else "one target value"
        text = f"{count} of {len(sizes)} clients have {what}: look at balanced accuracy."
        findings.append(Finding(client=None, column=None, level="warning", text=text))
    return findings


def _doubles(population: Population, many: bool) -> list[Finding]:
    """Examples that stand in the data more than once, by client."""
    table = pl.DataFrame({"client": population.codes, "key": example_keys(population)})
    counts = table.group_by("client", "key").len().filter(pl.col("len") > 1)
    by_client = counts.group_by("client").agg((pl.col("len") - 1).sum()).sort("client")
    if many and len(by_client):
        text = f"{int(by_client['len'].sum())} rows repeat another row of the same client."
        return [Finding(client=None, column=None, level="note", text=text)]
    return [
        Finding(
            client=population.clients[client],
            column=None,
            level="note",
            text=f"{repeated} of {population.sizes[population.clients[client]]} rows repeat another row: entered twice?",
        )
        for client, repeated in by_client.rows()
    ]
