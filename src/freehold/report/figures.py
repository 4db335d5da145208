"""Pictures of the report: matplotlib, as SVG to stand inline in HTML. The same values give the same bytes.

Text never goes through matplotlib's fonts or mathtext: it draws tokens, which are replaced by escaped text afterwards,
so names may hold any character. Colors are CSS variables (`--fh-ink`, ...), so that the page decides on light or dark.
"""

from __future__ import annotations

import html
import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

_logger = logging.getLogger("matplotlib")
_level = _logger.level
_logger.setLevel(logging.ERROR)  # no word about building a font cache: no font is used
import matplotlib  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator  # noqa: E402

_logger.setLevel(_level)

from freehold.report.intervals import Verdict  # noqa: E402
from freehold.report.wording import MARKS, clean, signed  # noqa: E402

INK, MUTED, GRID, GAIN, LOSS, UNSURE, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06", "#0a0b07"
SERIES = tuple(f"#0a0b{number}" for number in range(11, 18))
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (4, 1)), (0, (1, 1)), (0, (9, 3)))
_VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", GAIN: "gain", LOSS: "loss", UNSURE: "unsure", PAPER: "paper",
    **{color: f"series-{number}" for number, color in enumerate(SERIES, 1)},
}  # fmt: skip
_COLORS: dict[Verdict, str] = {"gain": GAIN, "loss": LOSS, "cannot tell": UNSURE}
_MARKERS: dict[Verdict, str] = {"gain": "^", "loss": "v", "cannot tell": "o"}
_NOISE = tuple(
    (re.compile(pattern, re.DOTALL), instead)
    for pattern, instead in (
        (r"^<defs>\s*<style.*?</style>\s*</defs>\s*", ""),  # would style the whole page
        (r"<!--.*?-->\s*", ""),
        (r'<g id="[^"]*"', "<g"),  # the same in every figure
        (r"<g/>\s*", ""),
        (r' transform="rotate\(-0 [^"]*\)"', ""),
        (r" font-family: [^;\"]*;", ""),
        (r"(\d\.\d\d)\d+", r"\1"),
        (r"\n\s*", "\n"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One client's difference to training alone, in units of the picture, with its interval (None: unknown)."""

    name: str
    written: str  # the difference as it is to be read
    difference: float
    low: float | None
    high: float | None
    verdict: Verdict
    caution: str = ""  # a mark beside the verdict


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Mean over seeds by round (or by ε), and the range over seeds; `series` picks color and dashes, None is drawn faintly."""

    points: tuple[tuple[float, float], ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    series: int | None = None


@contextmanager
def _own_style(key: str) -> Iterator[None]:
    """Matplotlib's defaults, whatever the user has set for figures of their own; `key` keeps the ids of several pictures
    on one page apart."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("svg", fonttype="none", hashsalt=key)
        matplotlib.rc("text", parse_math=False)
        matplotlib.rc("font", size=11, family=["DejaVu Sans"])  # matplotlib's own
        yield


@dataclass
class _Sheet:
    """A figure of `width` x `height` CSS pixels and the texts its tokens stand for."""

    width: float
    height: float
    figure: Figure = field(init=False)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72)
        self.figure.patch.set_visible(False)
        FigureCanvasSVG(self.figure)

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Axes with these margins, in pixels, and nothing but a grid-colored frame at the bottom."""
        box = (left, bottom, self.width - left - right, self.height - top - bottom)
        axes = self.figure.add_axes((box[0] / self.width, box[1] / self.height, box[2] / self.width, box[3] / self.height))
        axes.patch.set_visible(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0, colors=MUTED, pad=4)
        return axes

    def token(self, text: str) -> str:
        """The token that stands for `text` until the SVG is written."""
        self.texts.append(text)
        return f"@{len(self.texts) - 1}@"

    def ticks(self, axes: Axes, which: str, positions: Sequence[float], texts: Sequence[str]) -> None:
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_major_locator(FixedLocator(list(positions)))
        axis.set_major_formatter(FixedFormatter([self.token(text) for text in texts]))

    def svg(self, description: str) -> str:
        """The finished picture."""
        written = io.StringIO()
        self.figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        text = written.getvalue()
        text = text[text.index("<defs>") :]
        for noise, instead in _NOISE:
            text = noise.sub(instead, text)
        for color, name in _VARIABLES.items():
            text = text.replace(color, f"var(--fh-{name})")
        text = re.sub(r"@(\d+)@", lambda match: html.escape(self.texts[int(match[1])]), text)
        opening = f'<svg class="fh-figure" role="img" aria-label="{html.escape(description)}"'
        return f'{opening} viewBox="0 0 {self.width:g} {self.height:g}">\n{text}'


def gains(points: Sequence[Gain], *, limits: tuple[float, float], unit: str, key: str, description: str) -> str:
    """A dot and its interval for each client by name, and the zero line of training alone."""
    with _own_style(key):
        sheet = _Sheet(width=400, height=64 + 25 * len(points))
        axes = sheet.axes(left=128, top=8, right=68, bottom=48)
        axes.set_ylim(len(points) - 0.5, -0.5)
        _scale(sheet, axes, limits, "x")
        axes.axvline(0, color=INK, linewidth=1.2)
        sheet.ticks(axes, "y", range(len(points)), [clean(point.name, 18) for point in points])
        axes.tick_params(axis="y", colors=INK, pad=8)
        for place, point in enumerate(points):
            _whisker(axes, place, point, limits)
            at = min(max(point.difference, limits[0]), limits[1])
            _dots(axes, [at], [place], point.verdict, 7)
            text = sheet.token(f"{point.written} {MARKS[point.verdict]}{point.caution}")
            axes.annotate(
                text, (1, place), xycoords=axes.get_yaxis_transform(), xytext=(62, 0), textcoords="offset points",
                ha="right", va="center", color=_COLORS[point.verdict],
            )  # fmt: skip
        _axis_words(sheet, axes, unit)
        return sheet.svg(description)


def strip(points: Sequence[Gain], *, limits: tuple[float, float], unit: str, key: str, description: str) -> str:
    """Many clients without names: losses, cannot tell and gains, each group in ascending order, one line a client."""
    order: tuple[Verdict, ...] = ("loss", "cannot tell", "gain")
    groups = {name: sorted((p for p in points if p.verdict == name), key=lambda p: p.difference) for name in order}
    gap = max(len(points) * 0.02, 0.6)
    with _own_style(key):
        sheet = _Sheet(width=400, height=250)
        axes = sheet.axes(left=44, top=22, right=8, bottom=30)
        _scale(sheet, axes, limits, "y")
        thin = min(max(260 / max(len(points), 1), 0.35), 2.0)
        start = 0.0
        for name, group in groups.items():
            if not group:
                continue
            places = [start + index for index in range(len(group))]
            known = [(x, p) for x, p in zip(places, group, strict=True) if p.low is not None and p.high is not None]
            axes.vlines(
                [x for x, _ in known],
                [max(p.low, limits[0]) for _, p in known if p.low is not None],
                [min(p.high, limits[1]) for _, p in known if p.high is not None],
                color=_COLORS[name], linewidth=thin, alpha=0.45 if len(points) <= 200 else 0.25,
            )  # fmt: skip
            heights = [min(max(p.difference, limits[0]), limits[1]) for p in group]
            _dots(axes, places, heights, name, min(max(500 / len(points), 1.6), 5))
            text, middle = sheet.token(f"{MARKS[name]} {len(group)}"), (places[0] + places[-1]) / 2
            axes.annotate(
                text, (middle, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, 5), textcoords="offset points",
                ha="center", va="bottom", color=_COLORS[name], annotation_clip=False,
            )  # fmt: skip
            start = places[-1] + 1 + max(gap, 0.1 * len(points) - len(group) / 2 if len(group) < 0.1 * len(points) else 0)
        axes.set_xlim(-gap, max(start, 1))
        axes.axhline(0, color=INK, linewidth=1.2)
        axes.set_xticks([])
        axes.set_xlabel(sheet.token(f"each line one of {len(points)}; up is better than alone, {unit}"), color=MUTED, labelpad=8)
        return sheet.svg(description)


def curves(
    lines: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    description: str,
    at: Sequence[tuple[float, str]] = (),
    key: str = "curves",
) -> str:
    """Learning curves; the legend is the page's. `at`: the axis is logarithmic, and marked there."""
    with _own_style(key):
        sheet = _Sheet(width=460, height=270)
        axes = sheet.axes(left=48, top=26, right=12, bottom=40)
        if at:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(FixedLocator([]))
        for line in sorted(lines, key=lambda each: (each.series is not None, -(each.series or 0))):
            places, values = [point[0] for point in line.points], [point[1] for point in line.points]
            if line.series is None:
                axes.plot(places, values, color=GRID, linewidth=1, solid_capstyle="round")
                continue
            color, dashes = SERIES[line.series % len(SERIES)], DASHES[line.series % len(DASHES)]
            if line.low and line.high:
                axes.fill_between(places, line.low, line.high, color=color, alpha=0.13, linewidth=0)
            marker = "o" if len(places) == 1 or (at and line.series == 0) else ""
            axes.plot(places, values, color=color, linestyle=dashes, linewidth=2, marker=marker, markersize=6)
        heights, rounds = _round_numbers(axes.get_ylim(), 6), _round_numbers(axes.get_xlim(), 7, integer=True)
        sheet.ticks(axes, "y", heights, [signed(tick).removeprefix("+") for tick in heights])
        marks = at or [(tick, f"{tick:.0f}") for tick in rounds]
        sheet.ticks(axes, "x", [tick for tick, _ in marks], [text for _, text in marks])
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel(sheet.token(xlabel), color=MUTED, labelpad=6)
        axes.annotate(
            sheet.token(ylabel), (0, 1), xycoords="axes fraction", xytext=(-44, 10), textcoords="offset points", color=MUTED
        )
        return sheet.svg(description)


def extremes(points: Sequence[Gain]) -> tuple[str, ...]:
    """The three lowest and the three highest, in words."""
    ordered = sorted(points, key=lambda point: (point.difference, point.name))
    ends = (("Lowest", ordered[:3]), ("Highest", ordered[-3:][::-1]))
    return tuple(
        f"{word}: "
        + ", ".join(f"{clean(point.name, 24)} {point.written} {MARKS[point.verdict]}{point.caution}" for point in group)
        for word, group in ends
    )


def limits_of(points: Sequence[Gain]) -> tuple[float, float]:
    """Limits shared by several pictures: all dots, zero, and intervals up to three times as long as nine in ten of them."""
    ends = sorted(abs(end) for point in points for end in (point.low, point.high) if end is not None)
    reach = 3 * ends[min(int(0.9 * len(ends)), len(ends) - 1)] if ends else 0.0
    seen = [point.difference for point in points]
    seen += [max(min(end, reach), -reach) for point in points for end in (point.low, point.high) if end is not None]
    low, high = min([0.0, *seen]), max([0.0, *seen])
    span = (high - low) or 1.0
    return min(low, -0.2 * span) - 0.06 * span, max(high, 0.2 * span) + 0.06 * span


def _scale(sheet: _Sheet, axes: Axes, limits: tuple[float, float], which: str) -> None:
    ticks = _round_numbers(limits, 6)
    sheet.ticks(axes, which, ticks, [signed(tick) for tick in ticks])
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    axes.grid(axis="x" if which == "x" else "y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _round_numbers(limits: tuple[float, float], most: int, *, integer: bool = False) -> list[float]:
    low, high = limits
    found = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=integer).tick_values(low, high)
    return [float(tick) for tick in found if low <= tick <= high]


def _whisker(axes: Axes, place: int, point: Gain, limits: tuple[float, float]) -> None:
    if point.low is None or point.high is None:
        return
    color = _COLORS[point.verdict]
    low, high = max(point.low, limits[0]), min(point.high, limits[1])
    axes.plot([low, high], [place, place], color=color, linewidth=2, solid_capstyle="butt")
    for end, cut, arrow in ((low, point.low < limits[0], "<"), (high, point.high > limits[1], ">")):
        axes.plot([end], [place], marker=arrow if cut else "|", markersize=6, color=color, markeredgewidth=1.6, clip_on=False)


def _dots(axes: Axes, x: Sequence[float], y: Sequence[float], verdict: Verdict, size: float) -> None:
    """Gain points up, loss points down, cannot tell is a hollow circle: never color alone."""
    color = _COLORS[verdict]
    axes.plot(
        x, y, linestyle="", marker=_MARKERS[verdict], markersize=size, zorder=3, color=color, clip_on=False,
        markerfacecolor=PAPER if verdict == "cannot tell" and size > 3 else color, markeredgewidth=min(size / 5, 1.5),
    )  # fmt: skip


def _axis_words(sheet: _Sheet, axes: Axes, unit: str) -> None:
    for side, text, align in ((0, "← worse", "left"), (1, f"better than alone, {unit} →", "right")):
        axes.annotate(
            sheet.token(text), (side, 0), xycoords="axes fraction", xytext=(0, -24), textcoords="offset points",
            ha=align, va="top", color=MUTED, annotation_clip=False,
        )  # fmt: skip
