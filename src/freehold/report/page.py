"""The report as HTML: one page that needs nothing else, or a fragment for a notebook. No script, no network, no file."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import jinja2

from freehold.report.cost import cost_lines, heading
from freehold.report.learning import cost_curve
from freehold.report.result import Comparison
from freehold.report.view import View


class Piece(NamedTuple):
    """A piece of a table cell; `kind` is the class of a mark, or "" for plain text."""

    kind: str
    text: str


_KINDS = {"▲": "gain", "▼": "loss", "○": "unsure", "⚠": "caution"}


def page(comparison: Comparison) -> str:
    """A whole page, UTF-8: the same comparison gives the same bytes. All names are escaped."""
    cost = {"heading": heading(comparison), "lines": cost_lines(comparison), "curve": cost_curve(comparison)}
    return _environment().get_template("page.html.j2").render(report=View(comparison), cost=cost)


def fragment(comparison: Comparison) -> str:
    """A part of a page, with its own style: the finding, the table of rows, and who gains and who loses."""
    return _environment().get_template("fragment.html.j2").render(report=View(comparison))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("freehold.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["marks"] = _marks
    return environment


def _marks(text: str) -> list[Piece]:
    pieces = re.split(r"([▲▼○](?: \d+)?|⚠ bal\. \S+)", text)
    return [Piece(_KINDS.get(piece[0], ""), piece) for piece in pieces if piece]
