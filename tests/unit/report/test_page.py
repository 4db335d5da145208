from __future__ import annotations

import dataclasses
import logging
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import pytest

from freehold.report import Comparison, lines
from freehold.report.page import fragment, page
from tests.unit.report.comparisons import TITLES, alone_is_best, hospitals, phones, stations

HOSTILE = ("<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "]]> & $\\frac{1}{0}$ @3@ #0a0b01", "x" * 200)
FOREIGN = ("東京大学病院", "מרכז רפואי", "\u202egnihtemos", "🏥 Ünï\x00cödé\n{{ 7 * 7 }}")
VOID = {"meta", "link", "br", "img", "path", "use", "line", "hr", "input", "rect"}


class Outline(HTMLParser):
    """What a page is made of; fails on a tag that does not close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


REALISTIC = [hospitals(), hospitals(seeds=1), stations(), phones(50), phones(100)]


@pytest.fixture(params=REALISTIC, ids=lambda each: f"{each.study}-{len(each.clients)}-{len(each.seeds)}", scope="module")
def comparison(request: pytest.FixtureRequest) -> Comparison:
    found: Comparison = request.param
    return found


@pytest.fixture(scope="module")
def text(comparison: Comparison) -> str:
    return page(comparison)


@pytest.fixture(scope="module")
def outline(text: str) -> Outline:
    return Outline(text)


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(outline: Outline) -> None:
    tags = {tag for tag, _ in outline.tags}
    assert not tags & {"script", "link", "iframe", "img", "object", "embed", "form"}
    for _, attributes in outline.tags:
        assert not any(name.startswith("on") or name in ("src", "action") for name in attributes)
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert all("url(" not in text or "url(#" in text for text in outline.text)
    assert any((attributes.get("content") or "").startswith("default-src 'none'") for _, attributes in outline.tags)


def test_ids_are_unique_and_every_reference_has_its_target(text: str, outline: Outline) -> None:
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    referred = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'xlink:href="#([^"]+)"', text))
    assert referred | set(re.findall(r'aria-labelledby="([^"]+)"', text)) <= set(ids)


def test_the_page_can_be_read_without_seeing_it(outline: Outline) -> None:
    for tag, attributes in outline.tags:
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
        if tag == "svg":
            assert attributes.get("aria-hidden") or (attributes.get("role") == "img" and attributes.get("aria-label"))
    assert [attributes.get("lang") for tag, attributes in outline.tags if tag == "html"] == ["en"]
    assert len([tag for tag, _ in outline.tags if tag == "h1"]) == 1


def test_no_color_is_fixed_so_that_dark_and_light_both_work(text: str) -> None:
    for picture in re.findall(r"<svg class.*?</svg>", text, flags=re.DOTALL):
        assert not re.findall(r"(?:fill|stroke)[:=]\s*\"?#\w+", picture)
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_the_terminals_table(comparison: Comparison, outline: Outline) -> None:
    words = outline.words().replace(" ", "")
    for line in lines(comparison):
        assert all(cell.replace(" ", "") in words for cell in line)


def test_the_same_comparison_gives_the_same_bytes(comparison: Comparison, text: str) -> None:
    assert page(comparison) == text


def test_another_process_and_other_settings_give_the_same_bytes() -> None:
    here = page(hospitals())
    with matplotlib.rc_context(
        {"axes.grid": True, "font.size": 30, "figure.constrained_layout.use": True, "svg.fonttype": "path"}
    ):
        assert page(hospitals()) == here
    code = (
        "from tests.unit.report.comparisons import hospitals; from freehold.report.page import page; import sys;"
        "sys.stdout.buffer.write(page(hospitals()).encode())"
    )
    there = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, check=True, timeout=60)
    assert there.stdout.decode() == here
    assert not there.stderr


def test_the_page_has_all_that_the_issue_asks_for() -> None:
    words = Outline(page(hospitals())).words()
    for expected in (
        "2 of 4 hospitals gain with Ditto", "Learning curves", "node would serve", "personal 8×", "VA Long Beach",
        "ill: 93 %", "Seeds 42, 43,", "torch 2.13.0", "freehold compare heart --seeds 10", "How to read this",
        "Switzerland: 93 % are “ill”", "chol = 0 was read as missing", "68.5 ± 2.8", "lam = 1.0", "48.0 kB",
    ):  # fmt: skip
        assert expected in words, expected


def test_newcomers_have_their_own_table() -> None:
    words = Outline(page(phones(50, newcomers=3))).words()
    assert "Never took part" in words and "phone 0052" in words
    assert "Never took part" not in page(hospitals())


def test_many_clients_are_drawn_without_names_but_the_extremes_are_named() -> None:
    text = page(phones(100))
    assert "Lowest: phone" in text and "Highest: phone" in text
    assert "each line one of 100" in text
    assert len(re.findall(r"phone \d{4}", text)) < 120


def test_a_thousand_clients_give_a_page_of_readable_size() -> None:
    text = page(phones(1000, seeds=3))
    Outline(text)
    assert len(text) < 1_500_000
    assert len(re.findall(r"<tr", text)) < 100


@pytest.mark.parametrize("names", [HOSTILE, FOREIGN], ids=["hostile", "foreign"])
@pytest.mark.parametrize("draw", [page, fragment], ids=["page", "fragment"])
def test_names_are_shown_and_never_obeyed(names: tuple[str, ...], draw: object) -> None:
    rows = {"local": names[0], "fedavg": names[1], "ditto": names[2], "intercept": names[3]}
    comparison = dataclasses.replace(
        hospitals(names=names, rows=rows), title=names[0], study=names[1], command=names[2], notes=names, warnings=names,
        versions={names[0]: names[1]}, noun=(names[0], names[1]),
    )  # fmt: skip
    text = page(comparison) if draw is page else fragment(comparison)
    outline = Outline(text)
    assert not {tag for tag, _ in outline.tags} & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    assert "\x00" not in text and "\u202e" not in text
    assert names is HOSTILE or "cödé\ufffd{{ 7 * 7 }}" in text  # not 49
    text.encode("utf-8")
    shown = outline.words()
    assert (names[0] if names is HOSTILE else "東京大学病院") in shown


def test_hostile_names_reach_the_pictures_unchanged() -> None:
    names = ("$x_1$", "@0@", "#0a0b01", "a < b")
    words = Outline(page(hospitals(names=names))).words()
    assert all(f" {name} " in words for name in names)


def test_nothing_is_logged_while_drawing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        page(hospitals(names=FOREIGN))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_notebook_shows_the_fragment_and_a_short_text() -> None:
    comparison = hospitals()
    assert comparison._repr_html_() == fragment(comparison)
    assert "<html" not in fragment(comparison) and len(repr(comparison)) < 200


def test_looking_at_numbers_loads_no_drawing() -> None:
    code = "import sys, freehold.report; print([name for name in ('matplotlib', 'jinja2', 'torch') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def without_baseline() -> Comparison:
    return dataclasses.replace(hospitals(), rows=hospitals().rows[1:])


def only_baseline() -> Comparison:
    return dataclasses.replace(hospitals(), rows=hospitals().rows[:1])


def one_client() -> Comparison:
    return dataclasses.replace(hospitals(), clients=hospitals().clients[:1])


def no_rows() -> Comparison:
    return dataclasses.replace(hospitals(), rows=())


def no_clients() -> Comparison:
    return dataclasses.replace(hospitals(), clients=())


def no_results() -> Comparison:
    return dataclasses.replace(hospitals(), rows=tuple(dataclasses.replace(row, results=()) for row in hospitals().rows))


def fixed() -> Comparison:
    return dataclasses.replace(hospitals(), splits="fixed")


def newcomers_only() -> Comparison:
    clients = tuple(dataclasses.replace(client, took_part=False) for client in hospitals().clients)
    return dataclasses.replace(hospitals(), clients=clients)


def many_rows() -> Comparison:
    comparison = hospitals(seeds=3)
    ditto = comparison.rows[-1]
    more = tuple(dataclasses.replace(ditto, name=f"row{place}", title=f"Row {place}") for place in range(20))
    return dataclasses.replace(comparison, rows=(*comparison.rows, *more))


@pytest.mark.parametrize(
    "odd", [without_baseline, only_baseline, one_client, no_rows, no_clients, no_results, fixed, newcomers_only, many_rows]
)
def test_odd_comparisons_still_give_a_whole_page(odd: object) -> None:
    assert callable(odd)
    Outline(page(odd()))
    Outline(fragment(odd()))


def test_the_titles_of_all_rows_are_in_the_legend() -> None:
    legend = re.findall(r'<ul class="fh-legend">.*?</ul>', page(hospitals()), flags=re.DOTALL)[0]
    assert all(title in legend for title in TITLES.values())


def test_the_rows_come_first_and_curves_are_folded_only_among_many_rows() -> None:
    few, many = page(hospitals()), page(many_rows())
    for text in (few, many):
        places = [text.index(f'id="{name}"') for name in ("rows", "who", "clients", "data", "curves", "reading")]
        assert places == sorted(places)
    folded = r'id="curves">[^<]*</h2>\s*<details>'
    assert re.search(folded, many) and not re.search(folded, few)


def test_wide_tables_say_that_they_go_on_and_the_table_of_clients_is_turned() -> None:
    many = page(many_rows())
    assert "scroll it sideways" in many
    section = many[many.index('id="clients"') : many.index('id="data"')]
    header = re.findall(r"<thead>.*?</thead>", section, flags=re.DOTALL)[0]
    assert "Switzerland" in header and "Row 7" not in header


def test_balanced_accuracy_of_each_client_is_on_the_page_and_stands_beside_a_verdict_that_says_little() -> None:
    words = Outline(page(hospitals())).words()
    assert "Balanced accuracy, %" in words
    assert "(−22.6) ▼ ⚠ bal. −22.6" in words
    assert "⚠ Switzerland: balanced accuracy −22.6" in words  # beside the picture


def test_the_row_to_choose_is_highlighted_even_if_it_is_training_alone() -> None:
    text = page(alone_is_best())
    assert re.findall(r'<tr class="fh-lead">\s*<th scope="row"><bdi>([^<]*)', text)[0] == "Alone"


def test_the_picture_of_shares_ends_at_a_hundred_points() -> None:
    wild = hospitals(seeds=3)
    local, fedavg, *_ = wild.rows
    swings = [
        dataclasses.replace(result, paired_se={}, figures={name: {"accuracy": right} for name in result.figures})
        for result, right in zip(fedavg.results, (0.0, 1.0, 0.0), strict=True)
    ]
    text = page(dataclasses.replace(wild, rows=(local, dataclasses.replace(fedavg, results=tuple(swings)))))
    pictures = "".join(re.findall(r"<svg class.*?</svg>", text, flags=re.DOTALL))
    assert ">−100<" in pictures and ">+100<" in pictures
    assert not re.findall(r">[−+](?:1[1-9]|[2-9]\d)\d<", pictures)
