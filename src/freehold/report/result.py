"""What a comparison found: clients, rows (one per algorithm), and what each seed measured. Plain values, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from freehold.errors import UsageError

Problem = Literal["classification", "regression"]
Splits = Literal["repeated", "fixed"]


@dataclass(frozen=True, kw_only=True)
class ClientFacts:
    """Size and label mix of one client's data; counts are examples, of the first seed's split."""

    name: str
    examples: int
    train: int
    validation: int
    test: int
    labels: Mapping[str, float] = field(default_factory=dict)  # class -> share in [0, 1]; {} for regression
    took_part: bool = True  # False: a newcomer, never in a cohort; reported apart
    estimated: bool = False  # True: `train`, and with it `examples`, follows from the others by the split's rule


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One run of one row: the figures of each client's TEST data after the last round.

    `figures` is client -> {"accuracy", "balanced_accuracy", "log_loss"} or {"r2", "rmse", "mae"}; NaN where a figure has
    no meaning (balanced accuracy of a test set with one class). `best_figures`: the same at `best_round`.
    `paired_se`: client -> standard error, over that client's test examples, of the paired difference of the
    comparison's metric to the baseline of the same seed; for accuracy `std(right - baseline_right, ddof=1) / sqrt(n)`.
    Without it, the intervals of accuracy assume the worst, that the two never err on the same example, and are wider.
    """

    seed: int
    figures: Mapping[str, Mapping[str, float]]
    curve: tuple[tuple[int, float], ...] = ()  # (round, mean over clients of the metric on VALIDATION data)
    best_round: int = -1  # round with the best validation value; -1: none was looked for
    served: Mapping[str, str] = field(default_factory=dict)  # of `select`: client -> "local" | "shared" | "personal"
    best_figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    paired_se: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One algorithm with one set of hyper-parameters, over all seeds."""

    name: str
    title: str
    algorithm: str
    hyperparameters: Mapping[str, float | int | str] = field(default_factory=dict)
    results: tuple[SeedResult, ...]
    published: float | None = None  # mean of the metric in the published table this study reproduces
    published_std: float | None = None
    seconds: float = 0.0  # wall time of all seeds
    sent_bytes: int = 0  # what one client sends in a whole run
    execution: Mapping[str, Any] = field(default_factory=dict)  # how the first seed was computed: docs/reference/report-json.md
    reference: bool = False  # True: nothing a federation could do (all data pooled in one place); never the headline


@dataclass(frozen=True, kw_only=True)
class NoisedRow:
    """A row that was trained with differential privacy: what its plan promises, in each run of it."""

    row: str
    epsilon: float  # by privacy loss distributions, of the client for which it is largest
    epsilon_by_rdp: float  # the same by Rényi differential privacy, a second bound
    noise_multiplier: float
    asked: float | None = None  # the ε that the noise was chosen for, if it was


@dataclass(frozen=True, kw_only=True)
class PrivacyCost:
    """What differential privacy promises and costs: rows of one algorithm with more and less noise."""

    unit: Literal["record", "client"]
    delta: float
    max_norm: float
    clear: str  # the row of the same algorithm without noise; "": there is none
    points: tuple[NoisedRow, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Rows measured on the same clients with the same seeds, against the row `baseline` (training alone).

    `test_share` is test / train examples, for clients whose own counts are not known. `splits`: "repeated" if every seed
    splits anew, "fixed" if the test sets are the same for all seeds. `noun`: what a client is called, singular and plural.
    """

    study: str
    title: str
    problem: Problem
    metric: str
    higher_is_better: bool
    clients: tuple[ClientFacts, ...]
    rows: tuple[Row, ...]
    baseline: str = "local"
    test_share: float
    seeds: tuple[int, ...]
    splits: Splits
    command: str
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    noun: tuple[str, str] = ("client", "clients")
    privacy: PrivacyCost | None = None  # None: no row was trained with noise
    asked: str = ""  # the row that a plan is about, and the report leads with; "": none, all rows are alike

    def __post_init__(self) -> None:
        if not all(word.isprintable() and word for word in self.noun):
            raise UsageError(
                f"A client is called {self.noun!r}, but both words must be of letters that can be seen.",
                hint="Give the singular and the plural, such as ('hospital', 'hospitals').",
            )
        for what, names in (("client", [client.name for client in self.clients]), ("row", [row.name for row in self.rows])):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise UsageError(
                    f"Two {what}s of the comparison are called {twice!r}, but names must differ.",
                    hint="Rename one of them.",
                )

    @property
    def participants(self) -> tuple[ClientFacts, ...]:
        """The clients that took part; means and verdicts are over these."""
        return tuple(client for client in self.clients if client.took_part)

    @property
    def newcomers(self) -> tuple[ClientFacts, ...]:
        """The clients that never took part."""
        return tuple(client for client in self.clients if not client.took_part)

    def row(self, name: str) -> Row | None:
        """The row called `name`, or None."""
        return next((row for row in self.rows if row.name == name), None)

    def __repr__(self) -> str:
        rows = ", ".join(row.name for row in self.rows)
        seeds = f"{len(self.seeds)} seed{'' if len(self.seeds) == 1 else 's'}"
        return f"Comparison({self.study!r}: {len(self.clients)} clients, {seeds}, rows {rows})"

    def to_json(self) -> dict[str, object]:
        """All of it as plain dicts, lists, strings and finite numbers: `freehold.report.to_json`."""
        from freehold.report.document import to_json  # it reads this module

        return to_json(self)

    def save(self, path: str | Path) -> None:
        """Write the report: as one web page if the name ends in .html, as JSON if it ends in .json. UsageError otherwise."""
        from freehold.report.document import dumps

        path = Path(path)
        if path.suffix == ".json":
            text = dumps(self)
        elif path.suffix == ".html":
            from freehold.report.page import page  # drawing needs matplotlib, looking at results does not

            text = page(self)
        else:
            raise UsageError(f"{path} ends neither in .html nor in .json.", hint="Name the form: report.html or report.json.")
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} could not be written: {error.strerror}.", hint="Write to a folder of yours.") from None

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from freehold.report.page import fragment  # drawing needs matplotlib, looking at results does not

        return fragment(self)
