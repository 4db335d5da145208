"""The honest report: who gains, who loses and for whom the data cannot tell, as tables, JSON and HTML.

HTML is in `freehold.report.page` (`page`, `fragment`), the only part that loads matplotlib and jinja2.
"""

from freehold.report.document import dumps, from_json, to_json
from freehold.report.intervals import Paired, Verdict
from freehold.report.result import ClientFacts, Comparison, NoisedRow, PrivacyCost, Row, SeedResult
from freehold.report.summary import ClientSummary, RowSummary, summarize
from freehold.report.tables import client_lines, facts_lines, lines
from freehold.report.tuning import (
    Searched,
    Tried,
    Tuned,
    Tuning,
    changes,
    chosen_lines,
    tuning_dumps,
    tuning_finding,
    tuning_json,
    tuning_lines,
)
from freehold.report.wording import finding

__all__ = [
    "ClientFacts",
    "ClientSummary",
    "Comparison",
    "NoisedRow",
    "Paired",
    "PrivacyCost",
    "Row",
    "RowSummary",
    "Searched",
    "SeedResult",
    "Tried",
    "Tuned",
    "Tuning",
    "Verdict",
    "changes",
    "chosen_lines",
    "client_lines",
    "dumps",
    "facts_lines",
    "finding",
    "from_json",
    "lines",
    "summarize",
    "to_json",
    "tuning_dumps",
    "tuning_finding",
    "tuning_json",
    "tuning_lines",
]
