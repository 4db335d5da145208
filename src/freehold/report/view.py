"""What the page and the notebook show, ready for the templates: words, tables of words, and pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from freehold.report import figures
from freehold.report.intervals import FEWEST_SEEDS
from freehold.report.lead import lead
from freehold.report.learning import Curves, learning_curves
from freehold.report.result import ClientFacts, Comparison, Row
from freehold.report.summary import SHARES, RowSummary, summarize
from freehold.report.tables import (
    SERVED,
    balanced_lines,
    by_client,
    client_lines,
    columns_of,
    explain,
    facts_lines,
    label_shares,
    lines,
)
from freehold.report.wording import (
    CAUTION,
    DOMINANT,
    FIGURES,
    MARKS,
    NOTHING,
    against_baseline,
    balanced_change,
    change,
    clean,
    counted,
    finding,
    lopsided,
    percent,
    setting,
    tally,
)

MANY = 40  # above this many clients, pictures and tables no longer name each one
_EXTREMES = 10
_SHADES = 4
_FOLDED = 6  # with more rows than this, learning curves are folded away
_MORE = ("±", "lowest", "mean over examples", "at the round")  # columns for a second table
_LOOK_AT = "Accuracy says little there: look at balanced accuracy and log-loss."


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One row's picture of who gains and who loses."""

    title: str
    tally: str
    mean: str
    picture: str
    extremes: tuple[str, ...]  # and what is to be said beside the picture


@dataclass(frozen=True, kw_only=True)
class Part:
    """One class in a bar of label shares."""

    width: str
    shade: int
    title: str


@dataclass(frozen=True, kw_only=True)
class DataLine:
    """One line of the table of data sizes, with the parts of its bar."""

    cells: tuple[str, ...]
    parts: tuple[Part, ...] = ()


class View:
    """Everything the templates name `report.…`, computed from one comparison when it is first asked for."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._summaries = summarize(comparison)
        self._by_name: Mapping[str, RowSummary] = {summary.name: summary for summary in self._summaries}
        found = lead(comparison, self._summaries)
        self._lead = found.row if found else None
        self._odd = lopsided(comparison)
        self.many = len(comparison.participants) > MANY
        self.title = clean(comparison.title) or clean(comparison.study)
        self.subtitle = " · ".join(
            (
                counted(len(comparison.participants), comparison.noun),
                setting(comparison),
                f"{FIGURES.get(comparison.metric, clean(comparison.metric))} on test data",
            )
        )
        self.finding = finding(comparison, self._summaries)
        self.warnings = [clean(warning) for warning in comparison.warnings]
        every = lines(comparison, self._summaries)
        self.lead = comparison.rows.index(found.highlighted) if found else -1
        self.helps = {header: explain(header) for header in every[0]}
        self.rows = columns_of(every, lambda header: not header.startswith(_MORE))
        self.more = columns_of(every, lambda header: not header or header.startswith(_MORE))
        self.panels, self.clipped = self._draw_gains()

    @property
    def row_notes(self) -> list[str]:
        """What to know to read the table of rows."""
        notes = []
        if len(self._comparison.participants) <= 10:
            notes.append(f"With so few {self._comparison.noun[1]} the lowest decile is the worst one.")
        if self._odd:
            notes.append(
                f"▲, ▼ and ○ are verdicts on accuracy, which says little at {len(self._odd)} of "
                f"{counted(len(self._comparison.clients), self._comparison.noun)} ({CAUTION}): look at balanced accuracy there."
            )
        references = [clean(row.title) for row in self._comparison.rows if row.reference]
        if references:
            notes.append(f"{', '.join(references)}: for reference only, it needs all data in one place.")
        if any(summary.paired is not None and summary.paired.low is not None for summary in self._summaries):
            notes.append(
                f"The interval of a mean is about these {self._comparison.noun[1]} with other data of theirs, "
                f"not about other {self._comparison.noun[1]}."
            )
        return notes

    @cached_property
    def _extreme_clients(self) -> tuple[ClientFacts, ...]:
        """All clients; of very many, those with the lowest and the highest difference in the leading row."""
        participants = self._comparison.participants
        if not self.many or self._lead is None:
            return participants[:MANY]
        per_client = self._by_name[self._lead.name].per_client
        paired = {client.name: per_client[client.name].paired for client in participants}
        known = {name: each.difference for name, each in paired.items() if each is not None and each.difference is not None}
        ordered = sorted((client for client in participants if client.name in known), key=lambda each: known[each.name])
        return (*ordered[:_EXTREMES], *ordered[-_EXTREMES:]) if len(ordered) > 2 * _EXTREMES else tuple(ordered)

    @cached_property
    def clients(self) -> list[list[str]]:
        """The table of clients: a header, then each client's figures by row, or turned, as many as there are."""
        return by_client(client_lines(self._comparison, self._summaries, clients=self._extreme_clients))

    @cached_property
    def balanced(self) -> list[list[str]]:
        """The table of balanced accuracy, of the same clients; empty where accuracy is not what is compared."""
        found = balanced_lines(self._comparison, self._summaries, clients=self._extreme_clients)
        return by_client(found) if found else []

    @property
    def fold_curves(self) -> bool:
        """Whether there are too many rows for learning curves to be read at once."""
        return len(self._comparison.rows) > _FOLDED

    @property
    def clients_title(self) -> str:
        """The heading of the table of clients."""
        if self.many and self._lead is not None:
            return f"The {_EXTREMES} lowest and the {_EXTREMES} highest, by {clean(self._lead.title, 60)} against alone"
        return f"Each {self._comparison.noun[0]}"

    @property
    def clients_note(self) -> str:
        """What the cells of the table of clients mean."""
        metric = self._comparison.metric
        unit = "points" if metric in SHARES else f"units of {FIGURES.get(metric, clean(metric))}, positive is better"
        note = f"Mean {FIGURES.get(metric, clean(metric))} over seeds{', in %' if metric in SHARES else ''}"
        note += f"; in brackets the difference to training alone, in {unit}, each rounded by itself."
        if self._odd:
            note += (
                f" {CAUTION}: accuracy says little there, and “bal.” is the difference to training alone "
                "in balanced accuracy, in points."
            )
        chooses = [each for each in self._comparison.notes if each.startswith("What each would serve")]
        note += "".join(f" {clean(each)}" for each in chooses)
        return note if not self.many else f"{note} All {len(self._comparison.participants)} are in the JSON report."

    @property
    def served_columns(self) -> tuple[int, ...]:
        """The columns of the table of clients that say what the node would serve; none if it is turned."""
        return tuple(index for index, header in enumerate(self.clients[0]) if header.startswith(SERVED))

    @property
    def dominated(self) -> list[str]:
        """Warnings where one class makes accuracy say little."""
        found = [
            (client, *max(client.labels.items(), key=lambda item: item[1]))
            for client in self._comparison.clients
            if client.labels and max(client.labels.values()) >= DOMINANT
        ]
        if len(found) > 5:
            names = ", ".join(clean(client.name, 28) for client, _, _ in found[:5])
            return [
                f"In {len(found)} of {counted(len(self._comparison.clients), self._comparison.noun)} ({names}, …) one class has "
                f"{percent(DOMINANT)} of the examples or more. {_LOOK_AT}"
            ]
        return [
            f"{clean(client.name, 60)}: {percent(share)} are “{clean(label, 60)}”; saying so always is right as often. {_LOOK_AT}"
            for client, label, share in found
        ]

    @property
    def data_note(self) -> str:
        """How many examples there are, and how they are spread."""
        sizes = [client.examples for client in self._comparison.clients]
        if not sizes:
            return "There are no clients."
        about = "About " if any(client.estimated for client in self._comparison.clients) else ""
        text = f"{about}{sum(sizes):,} examples of {counted(len(sizes), self._comparison.noun)}".replace(",", "\u202f")
        if len(sizes) > 1:
            text += f"; the smallest has {min(sizes)}, the median {statistics.median(sizes):.0f}, the largest {max(sizes)}"
        when = " Sizes are those of the first seed." if len(self._comparison.seeds) > 1 else ""
        return f"{text}.{when}{f' Below are the {_EXTREMES} smallest.' if len(sizes) > MANY else ''}"

    @property
    def has_labels(self) -> bool:
        """Whether there are label shares to draw."""
        return any(client.labels for client in self._shown_facts)

    @property
    def label_key(self) -> list[Part]:
        """What the shades of the bars mean, if there are few classes."""
        names = list(dict.fromkeys(label for client in self._shown_facts for label in client.labels))
        if len(names) > _SHADES:
            return []
        return [Part(width="", shade=place + 1, title=clean(name, 40)) for place, name in enumerate(names)]

    @cached_property
    def data(self) -> list[DataLine]:
        """The table of data sizes: a header, then each client with its bar."""
        header, *body = facts_lines(self._comparison, clients=self._shown_facts)
        shown = zip(body, self._shown_facts, strict=True)
        return [
            DataLine(cells=tuple(header)),
            *(DataLine(cells=tuple(cells), parts=_parts(client.labels)) for cells, client in shown),
        ]

    @cached_property
    def _shown_facts(self) -> Sequence[ClientFacts]:
        clients = self._comparison.clients
        return clients if len(clients) <= MANY else sorted(clients, key=lambda client: client.examples)[:_EXTREMES]

    @property
    def newcomers(self) -> list[list[str]]:
        """The table of clients that never took part; empty without them."""
        clients = self._comparison.newcomers[:MANY]
        return client_lines(self._comparison, self._summaries, clients=clients) if clients else []

    @property
    def newcomers_note(self) -> str:
        """What newcomers are."""
        count = len(self._comparison.newcomers)
        text = f"{counted(count, self._comparison.noun)} held out of every round and of every mean above"
        text += ": what a newcomer would get."
        return text if count <= MANY else f"{text} The first {MANY} are shown, all are in the JSON report."

    @cached_property
    def curves(self) -> Curves | None:
        """The learning curves; None if no row was evaluated during training."""
        return learning_curves(self._comparison, lead=self._lead)

    @property
    def reading(self) -> str:
        """How to read the figures, the marks and the intervals."""
        noun = self._comparison.noun[0]
        if self._comparison.splits == "fixed":
            how = (
                "which covers chance in training and in the test examples; all seeds share one split, "
                "so it speaks of models trained on these very training sets"
            )
        else:
            how = "of Nadeau and Bengio, which allows for splits of the same data overlapping"
        few = f" With fewer than {FEWEST_SEEDS} seeds there is no interval." if len(self._comparison.seeds) < FEWEST_SEEDS else ""
        return (
            f"Every number is from test examples that training did not see, after the last round, and every difference is to "
            f"training alone at the same {noun} with the same seed. A gain (▲) or a loss (▼) has its whole interval on one "
            f"side of zero, an interval {how}. All differences of a report are judged together: of its gains and losses at most "
            f"one in ten is expected to be false, and no interval is narrower than 95 %. “Cannot tell” (○) does not mean that "
            f"there is no difference, but that data of "
            f"this size could show it by chance: more examples or more seeds may decide.{few}"
        )

    @property
    def command(self) -> str:
        """The command that makes this report again."""
        return "\n".join(clean(line) for line in self._comparison.command.splitlines())

    @property
    def seeds(self) -> str:
        """The seeds, in words."""
        word = "Seed" if len(self._comparison.seeds) == 1 else "Seeds"
        return f"{word} {', '.join(str(seed) for seed in self._comparison.seeds)}."

    @property
    def settings(self) -> list[list[str]]:
        """The table of settings: a header, then each row's."""
        body = [
            [
                clean(row.title, 60),
                clean(row.algorithm),
                ", ".join(f"{clean(name)} = {clean(str(each))}" for name, each in sorted(row.hyperparameters.items())) or NOTHING,
                f"{row.seconds:.1f} s" if row.seconds else NOTHING,
                _size(row.sent_bytes) if row.sent_bytes else NOTHING,
            ]
            for row in self._comparison.rows
        ]
        return [["row", "algorithm", "hyper-parameters", "time, all seeds", f"sent by one {self._comparison.noun[0]}"], *body]

    @property
    def notes(self) -> list[str]:
        """What was decided while reading the data, in plain words."""
        return [clean(note) for note in self._comparison.notes]

    @property
    def versions(self) -> str:
        """The versions that the figures were made with."""
        listed = [f"{clean(name)} {clean(version)}" for name, version in sorted(self._comparison.versions.items())]
        return " · ".join(listed)

    def _draw_gains(self) -> tuple[list[Panel], bool]:
        comparison = self._comparison
        drawn = [(row, points) for row in comparison.rows if (points := self._points(row))]
        every = [point for _, points in drawn for point in points]
        limits = figures.limits_of(every)
        clipped = any(end is not None and not limits[0] <= end <= limits[1] for point in every for end in (point.low, point.high))
        return [self._panel(row, points, limits, number) for number, (row, points) in enumerate(drawn)], clipped

    def _points(self, row: Row) -> list[figures.Gain]:
        scale, end_of_scale = (100, 1.0) if self._comparison.metric in SHARES else (1, math.inf)
        points = []
        for client in self._comparison.participants:
            own = self._by_name[row.name].per_client[client.name]
            paired = own.paired
            if paired is not None and paired.difference is not None:
                low, high = (  # no two shares differ by more than 1, whatever an interval of few seeds may reach
                    None if end is None else scale * min(max(end, -end_of_scale), end_of_scale)
                    for end in (paired.low, paired.high)
                )
                points.append(
                    figures.Gain(
                        name=client.name,
                        written=change(self._comparison.metric, paired.difference, like=own.mean),
                        difference=scale * paired.difference,
                        low=low,
                        high=high,
                        verdict=paired.verdict,
                        caution=CAUTION if client.name in self._odd else "",
                    )
                )
        return points

    def _cautions(self, row: Row) -> tuple[str, ...]:
        """What balanced accuracy says where a verdict on accuracy must not stand alone."""
        alone = self._by_name.get(self._comparison.baseline)
        if self.many or row.name == self._comparison.baseline:
            return ()
        return tuple(
            f"{CAUTION} {clean(client.name, 28)}: balanced accuracy "
            f"{balanced_change(self._comparison, self._by_name[row.name], alone, client.name)}"
            for client in self._comparison.participants
            if client.name in self._odd
        )

    def _panel(self, row: Row, points: Sequence[figures.Gain], limits: tuple[float, float], number: int) -> Panel:
        summary = self._by_name[row.name]
        unit = "points" if self._comparison.metric in SHARES else FIGURES.get(self._comparison.metric, "")
        counts = {name: summary.verdicts.get(name, 0) for name in MARKS}
        label = (
            f"{clean(row.title, 60)} against training alone: {counts['gain']} gain, {counts['loss']} lose, "
            f"for {counts['cannot tell']} the data cannot tell."
        )
        draw = figures.strip if self.many else figures.gains
        paired = summary.paired
        return Panel(
            title=clean(row.title, 80),
            tally=tally(summary),
            mean=against_baseline(self._comparison.metric, paired, like=summary.mean) if paired is not None else "",
            picture=draw(points, limits=limits, unit=unit, key=f"row{number}", description=label),
            extremes=(*(figures.extremes(points) if self.many else ()), *self._cautions(row)),
        )


def _parts(labels: Mapping[str, float]) -> tuple[Part, ...]:
    return tuple(
        Part(width=f"{100 * share:.2f}", shade=place % _SHADES + 1, title=label_shares({name: share}))
        for place, (name, share) in enumerate(labels.items())
        if share > 0
    )


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
