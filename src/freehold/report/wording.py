"""Numbers, names and findings in words, the same on the terminal, in HTML and in a notebook."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence

from freehold.report.intervals import FEWEST_SEEDS, Paired, Verdict
from freehold.report.lead import Lead, lead, luckiest
from freehold.report.result import ClientFacts, Comparison, Row
from freehold.report.summary import SHARES, RowSummary

MARKS: dict[Verdict, str] = {"gain": "▲", "loss": "▼", "cannot tell": "○"}
NOTHING = "–"
CAUTION = "⚠"  # beside a verdict on accuracy that must not stand alone
DOMINANT = 0.85  # a class with this share or more makes accuracy say little
LOPSIDED = 0.9  # above this share, a verdict on accuracy is marked, and balanced accuracy stands beside it
ENOUGH_SEEDS = 10
FIGURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "log_loss": "log-loss",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "MAE",
}
_NAMED = 5  # clients listed by name in a sentence
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # invisible too, but part of how Persian, Hindi and emoji are written


def clean(name: str, width: int = 0) -> str:
    """`name` without invisible, control and direction characters, cut to `width` terminal cells if that is given."""
    text = "".join(
        "\ufffd" if unicodedata.category(character) in _UNSAFE and character not in _JOINERS else character for character in name
    )
    if width <= 0 or sum(map(_cells, text)) <= width:
        return text
    kept, used = [], 1
    for character in text:
        used += _cells(character)
        if used > width:
            break
        kept.append(character)
    return "".join(kept).rstrip() + "…"


def label(figure: str) -> str:
    """A figure's name with its unit: 'accuracy, %'."""
    return f"{FIGURES.get(figure, clean(figure))}{', %' if figure in SHARES else ''}"


def value(figure: str, number: float | None, *, like: float | None = None) -> str:
    """A figure without its unit: shares in percent, others with about three digits (as many as `like` has, if given)."""
    if number is None:
        return NOTHING
    if figure in SHARES:
        return _minus(f"{100 * number:.1f}")
    return _minus(f"{number:,.{_digits(number if like is None else like)}f}".replace(",", "\u202f"))


def change(figure: str, number: float | None, *, like: float | None = None) -> str:
    """A difference with its sign: points for shares, else with as many digits as `like`."""
    text = value(figure, number, like=like)
    return f"+{text}" if number is not None and number > 0 and any(digit in text for digit in "123456789") else text


def percent(share: float) -> str:
    """A share in whole percent; what is not quite nothing or all never reads 0 % or 100 %."""
    whole = round(100 * share)
    if whole == 0 and share > 0:
        return "< 1 %"
    if whole == 100 and share < 1:
        return "> 99 %"
    return f"{whole} %"


def signed(number: float) -> str:
    """A tick of an axis, with its sign."""
    text = f"{number:+g}".replace("-", "−")
    return "0" if number == 0 else text


def against_baseline(figure: str, paired: Paired | None, *, like: float | None = None) -> str:
    """'+3.8 (+1.0 to +6.6) ▲', or the difference and ○ if there is no interval."""
    if paired is None or paired.difference is None:
        return NOTHING
    interval = ""
    if paired.low is not None and paired.high is not None:
        interval = f" ({change(figure, paired.low, like=like)} to {change(figure, paired.high, like=like)})"
    return f"{change(figure, paired.difference, like=like)}{interval} {MARKS[paired.verdict]}"


def counted(number: int, noun: tuple[str, str]) -> str:
    """'1 hospital', '4 hospitals'."""
    return f"{number} {noun[0] if number == 1 else noun[1]}"


def setting(comparison: Comparison) -> str:
    """'10 seeds, each with its own split'."""
    seeds = counted(len(comparison.seeds), ("seed", "seeds"))
    if len(comparison.seeds) == 1:
        return seeds
    return f"{seeds}, {'each with its own split' if comparison.splits == 'repeated' else 'all with the same test sets'}"


def headline(comparison: Comparison, summaries: Sequence[RowSummary]) -> Row | None:
    """The row that the report speaks of: see `freehold.report.lead`."""
    found = lead(comparison, summaries)
    return found.row if found else None


def finding(comparison: Comparison, summaries: Sequence[RowSummary]) -> tuple[str, ...]:
    """What the numbers say, in a few sentences, the most important first."""
    found = lead(comparison, summaries)
    by_name = {summary.name: summary for summary in summaries}
    if found is None:
        return ("Nothing was compared: there is no row besides training alone.",)
    if comparison.baseline not in by_name:
        return (
            "Training alone is not among the rows, so nobody can say who gains and who loses. "
            f"Add the row {clean(comparison.baseline)!r}.",
        )
    row, summary, alone = found.row, by_name[found.row.name], by_name[comparison.baseline]
    sentences = [_who(comparison, row, summary), _mean(comparison, summary, alone), _why(comparison, summaries, found, summary)]
    if found.alone is not None:
        best = luckiest(comparison, summaries)
        of_all = best is not None and best.name == comparison.baseline
        sentences.insert(1 if found.why == "asked" else 0, _alone(found, summary, of_all=of_all))
    losers = [
        f"{_names(lost, lopsided(comparison))[2:-1]} with {clean(other.title)}{_beside(comparison, by_name, other, lost)}"
        for other in comparison.rows
        if other.name != row.name and not other.reference
        if 0 < len(lost := _group(comparison, by_name[other.name], "loss")) <= _NAMED
    ]
    if 0 < len(losers) <= _NAMED:
        sentences.append(f"Losing against training alone: {'; '.join(losers)}.")
    sentences += balanced_sentences(comparison, by_name, row)
    if (
        FEWEST_SEEDS <= len(comparison.seeds) < ENOUGH_SEEDS
        and comparison.splits == "repeated"
        and summary.verdicts.get("cannot tell", 0)
    ):
        sentences.append(
            f"More seeds narrow the intervals: these are {len(comparison.seeds)}, "
            "and --seeds 10 (in Python: seeds=10; in a federation's plan: repeats = 10) is a good start."
        )
    return tuple(sentence for sentence in sentences if sentence)


def lopsided(comparison: Comparison) -> dict[str, tuple[str, float]]:
    """Client -> (class, share), of the clients of which one class has so much that a verdict on accuracy must not stand alone.

    Empty unless rows are compared by accuracy.
    """
    if comparison.metric != "accuracy":
        return {}
    largest = {
        client.name: max(client.labels.items(), key=lambda item: item[1]) for client in comparison.clients if client.labels
    }
    return {name: item for name, item in largest.items() if item[1] > LOPSIDED}


def balanced_change(comparison: Comparison, summary: RowSummary, alone: RowSummary | None, client: str) -> str:
    """'+22.4', the difference of balanced accuracy to training alone; '–' if one of the two is not known."""
    mine, other = (
        None if each is None else each.per_client[client].figures.get("balanced_accuracy") for each in (summary, alone)
    )
    return NOTHING if mine is None or other is None else change("balanced_accuracy", mine - other)


def balanced_sentences(comparison: Comparison, by_name: Mapping[str, RowSummary], row: Row) -> list[str]:
    """What balanced accuracy says of each client where accuracy says little, of a few such clients."""
    taking_part = {client.name for client in comparison.participants}
    found = {name: item for name, item in lopsided(comparison).items() if name in taking_part}
    if len(found) > _NAMED:
        return [
            f"{CAUTION} In {len(found)} of {counted(len(taking_part), comparison.noun)} one class has more than "
            f"{100 * LOPSIDED:.0f} % of the examples: no gain or loss there stands without balanced accuracy."
        ]
    alone, summary = by_name[comparison.baseline], by_name[row.name]
    sentences = []
    for name, (class_name, share) in found.items():
        figures = [each.per_client[name].figures.get("balanced_accuracy") for each in (alone, summary)]
        head = f"{CAUTION} {clean(name, 60)}: {percent(share)} are “{clean(class_name, 60)}”, so accuracy says little there"
        if None in figures:
            sentences.append(f"{head}, and balanced accuracy is not known.")
            continue
        sentences.append(
            f"{head}. Balanced accuracy is {value('balanced_accuracy', figures[0])} % alone and "
            f"{value('balanced_accuracy', figures[1])} % with {clean(row.title)}."
        )
    return sentences


def tally(summary: RowSummary) -> str:
    """'▲ 2 ▼ 0 ○ 2'."""
    return " ".join(f"{mark} {summary.verdicts.get(name, 0)}" for name, mark in MARKS.items())


def _who(comparison: Comparison, row: Row, summary: RowSummary) -> str:
    groups = {name: _group(comparison, summary, name) for name in MARKS}
    total = sum(len(group) for group in groups.values())
    if total == 0:
        return f"{clean(row.title)} and training alone were never measured on the same {comparison.noun[0]} and seed."
    of_all = counted(total, comparison.noun)
    title = clean(row.title)
    odd = lopsided(comparison)
    if len(groups["cannot tell"]) == total:
        why = ""
        if len(comparison.seeds) < FEWEST_SEEDS:
            few = counted(len(comparison.seeds), ("seed", "seeds"))
            why = f" With {few} there is no telling effect from chance: ten seeds are a good start."
        whom = f"this {of_all[2:]}" if total == 1 else f"any of {of_all}"
        return f"The data cannot tell for {whom} whether {title} is better or worse than training alone.{why}"
    gain, loss, unclear = groups["gain"], groups["loss"], groups["cannot tell"]
    gains = f"{len(gain) or 'None'} of {of_all} {'gains' if len(gain) < 2 else 'gain'} with {title}{_names(gain, odd)}"
    parts = [gains, f"{len(loss) or 'none'} {'loses' if len(loss) < 2 else 'lose'}{_names(loss, odd)}"]
    if unclear:
        parts.append(f"for {len(unclear)}{_names(unclear)} the data cannot tell")
    return f"{', '.join(parts[:-1])}{',' if len(parts) > 2 else ''} and {parts[-1]}, each compared with training alone."


def _mean(comparison: Comparison, summary: RowSummary, alone: RowSummary) -> str:
    like = summary.mean
    metric, unit = comparison.metric, " %" if comparison.metric in SHARES else ""
    text = (
        f"Mean {FIGURES.get(metric, clean(metric))} over {comparison.noun[1]}: {value(metric, summary.mean)}{unit} "
        f"against {value(metric, alone.mean)}{unit} alone"
    )
    paired = summary.paired
    if paired is not None and paired.low is not None and paired.high is not None and paired.difference is not None:
        points = " points" if metric in SHARES else ""
        says = {"gain": "a gain", "loss": "a loss", "cannot tell": "the data cannot tell"}[paired.verdict]
        better = "better" if paired.difference >= 0 else "worse"
        rounded = "" if _agrees(metric, summary.mean, alone.mean, paired.difference) else ", each figure rounded by itself"
        text += (
            f", {value(metric, abs(paired.difference), like=like)}{points} {better}{rounded} "
            f"(interval {change(metric, paired.low, like=like)} to {change(metric, paired.high, like=like)}): {says}"
        )
    return f"{text}."


def _agrees(metric: str, mean: float | None, alone: float | None, difference: float) -> bool:
    """Whether the shown difference is that of the shown figures."""
    if mean is None or alone is None:
        return True
    digits = 1 if metric in SHARES else _digits(mean)
    scale = 100 if metric in SHARES else 1
    shown = abs(round(scale * mean, digits) - round(scale * alone, digits))
    return bool(abs(shown - round(scale * abs(difference), digits)) < 0.5 * 10.0**-digits)


def _alone(found: Lead, summary: RowSummary, *, of_all: bool) -> str:
    gains = summary.verdicts.get("gain", 0) or (summary.paired is not None and summary.paired.verdict == "gain")
    brought = "" if gains else ": joining brought nothing that these data can show"
    best = "is best here"
    if found.why == "asked":
        best = "does at least as well here"
    elif found.why == "usual" and not of_all:
        best = "is best of the usual few here"
    return f"Training alone {best}, by validation data{brought}."


def _why(comparison: Comparison, summaries: Sequence[RowSummary], found: Lead, summary: RowSummary) -> str:
    title = clean(found.row.title)
    if found.why == "asked":
        return ""
    if found.why == "usual":
        best = luckiest(comparison, summaries)
        if best is not None and best.name == comparison.baseline:
            return f"{found.compared} algorithms were compared; of the usual few among them, {title} did best on validation data."
        named = f" ({clean(best.title)})" if best is not None else ""
        return (
            f"{found.compared} algorithms were compared: the best of so many on validation data{named} is partly the luckiest, "
            f"so this speaks of {title}, the best on validation data of the usual few."
        )
    if found.alone is not None:
        return f"Of the others, {title} did best on validation data."
    chosen = "validation data" if summary.validation is not None else "the test data, which flatters it"
    return f"{title} leads here because it did best on {chosen}."


def _beside(comparison: Comparison, by_name: Mapping[str, RowSummary], row: Row, clients: Sequence[ClientFacts]) -> str:
    """' (balanced accuracy +11.1)' for those of `clients` where accuracy says little."""
    odd = [client.name for client in clients if client.name in lopsided(comparison)]
    changes = [balanced_change(comparison, by_name[row.name], by_name[comparison.baseline], name) for name in odd]
    return f" (balanced accuracy {', '.join(changes)})" if changes else ""


def _group(comparison: Comparison, summary: RowSummary, verdict: str) -> list[ClientFacts]:
    found = []
    for client in comparison.participants:
        paired = summary.per_client[client.name].paired
        if paired is not None and paired.difference is not None and paired.verdict == verdict:
            found.append(client)
    return found


def _names(clients: Sequence[ClientFacts], odd: Collection[str] = ()) -> str:
    """' (Cleveland, Switzerland ⚠)', with the mark of those in `odd`."""
    if not 0 < len(clients) <= _NAMED:
        return ""
    named = (f"{clean(client.name, 28)}{f' {CAUTION}' if client.name in odd else ''}" for client in clients)
    return f" ({', '.join(named)})"


def _digits(number: float) -> int:
    size = abs(number)
    return 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3


def _cells(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _minus(text: str) -> str:
    if not any(digit in text for digit in "123456789"):
        text = text.removeprefix("-")
    return text.replace("-", "−")
