"""The documentation keeps up: what exists is documented, what is documented exists, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest

from freehold import errors
from freehold.plan import Plan, digest, dumps, parse
from freehold.plan.strict import present
from tests.architecture.cli_docs import PAGE, render
from tests.architecture.imports import ROOT

DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"


def tracked() -> list[Path]:
    """What a commit of this tree would hold."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def pages() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


def sections(page: Path) -> dict[str, str]:
    """Heading -> text up to the next heading of any level."""
    parts = re.split(r"^#+ +(.*)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def without_code(text: str) -> str:
    """The text with the lines of fenced blocks indented, so that a comment in one is not taken for a heading."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(re.sub(r"^", " ", part, flags=re.MULTILINE) if index % 2 else part for index, part in enumerate(parts))


def all_errors() -> dict[int, str]:
    def below(kind: type[errors.FreeholdError]) -> Iterator[type[errors.FreeholdError]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    kinds = [kind for kind in below(errors.FreeholdError) if kind.__module__ == errors.__name__]
    numbers = [kind.code for kind in kinds]
    assert len(set(numbers)) == len(numbers), "an error number is used twice"
    return {kind.code: kind.__name__ for kind in kinds}


def test_every_error_number_has_its_section_and_every_section_its_error() -> None:
    found = {
        int(match[1]): match[2]
        for heading in sections(REFERENCE / "errors.md")
        if (match := re.fullmatch(r"(\d{3}) `(\w+)`", heading))
    }
    assert found == all_errors()


def test_every_error_section_says_what_it_means_and_what_to_do() -> None:
    for heading, text in sections(REFERENCE / "errors.md").items():
        if re.match(r"\d{3} ", heading):
            assert all(f"**{word}**" in text for word in ("Means", "Typical cause", "What to do")), heading


def test_the_tree_in_the_docstring_shows_every_error() -> None:
    shown = {int(number): name for name, number in re.findall(r"(\w+) +(\d{3})  ", errors.__doc__ or "")}
    assert shown == all_errors()


def test_every_algorithm_has_its_entry() -> None:
    names = {point.name for point in entry_points(group="freehold.algorithms") if point.value.startswith("freehold.")}
    lines = (REFERENCE / "algorithms.md").read_text(encoding="utf-8").splitlines()
    entries = {name for line in lines if line.startswith(("#", "|")) for name in re.findall(r"`([^`]+)`", line)}
    assert names
    assert names <= entries


def commands(command: Any, path: str) -> Iterator[tuple[str, list[str]]]:
    """(`freehold data check`, its flags) of a command and all below it."""
    flags = [option for param in command.params for option in (*param.opts, *param.secondary_opts) if option.startswith("--")]
    yield path, [flag for flag in flags if flag != "--help"]
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from commands(child, f"{path} {name}")


def command_line() -> dict[str, list[str]]:
    """Every command with its flags."""
    import typer.main

    from freehold.cli import app

    return dict(commands(typer.main.get_command(app), "freehold"))


def test_every_command_has_its_section_and_every_flag_stands_in_it() -> None:
    page = sections(REFERENCE / "cli.md")
    missing = []
    for path, flags in command_line().items():
        text = next((text for heading, text in page.items() if heading.strip("`") == path), None)
        if text is None:
            missing.append(f"a section headed `{path}`")
            continue
        missing += [f"{flag} in the section `{path}`" for flag in flags if not re.search(rf"{flag}(?![\w-])", text)]
    assert not missing


def test_every_flag_that_the_pages_mention_exists() -> None:
    known = {"--help", *(flag for flags in command_line().values() for flag in flags)}
    unknown = []
    for page in pages():
        for code in re.findall(
            r"^ *(?:\.venv/bin/)?(freehold .*)$|`((?:freehold |--)[^`]*)`", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", "".join(code)):
                if flag not in known:
                    unknown.append(f"{page.relative_to(ROOT)}: {flag}")
    assert not unknown


def plan_fields(kind: type[msgspec.Struct], path: str) -> Iterator[str]:
    """`training.rounds`, `contribution.tensors[].name`, ...: every field of a plan."""
    for name, hint in get_type_hints(kind).items():
        where = f"{path}{name}"
        hint = present(hint)
        item = get_args(hint)[0] if get_origin(hint) is tuple else hint
        if isinstance(item, type) and issubclass(item, msgspec.Struct) and name != "companions":
            yield from plan_fields(item, f"{where}[]." if item is not hint else f"{where}.")
        yield where


def test_every_field_of_a_plan_is_documented_and_every_documented_field_exists() -> None:
    rows = re.findall(r"^\| `([\w.\[\]]+)` \|", (REFERENCE / "plan.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(rows) == set(plan_fields(Plan, ""))


def test_the_example_plan_is_canonical_and_has_the_digest_that_the_page_gives() -> None:
    text = (REFERENCE / "plan.md").read_text(encoding="utf-8")
    example = re.findall(r"^```toml\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)[0]
    assert dumps(parse(example)) == example
    assert f"`{digest(parse(example))}`" in text


def test_the_how_to_on_algorithms_runs_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "how-to" / "write-an-algorithm.md").read_text(encoding="utf-8")
    room: dict[str, object] = {"__name__": "how_to"}
    for block in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        exec(compile(block, "write-an-algorithm.md", "exec"), room)
    accuracy = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(accuracy) == 5
    assert accuracy[-1] > 0.6


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchor(heading: str) -> str:
    """The anchor that a heading gets: lower case, dashes for spaces, other marks dropped."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_relative_links_lead_somewhere() -> None:
    broken = []
    for page in pages():
        for link in links(page):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, part = link.partition("#")
            path = (page.parent / target).resolve() if target else page
            if not path.exists() or (part and part not in {anchor(heading) for heading in sections(path)}):
                broken.append(f"{page.relative_to(ROOT)} -> {link}")
    assert not broken


def test_every_page_can_be_reached_from_the_index() -> None:
    reached: set[Path] = set()
    waiting = [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if not re.match(r"[a-z]+:", link)]
    assert not [str(page.relative_to(ROOT)) for page in pages() if page.is_relative_to(DOCS) and page not in reached]


# In pieces, so that this file does not match itself.
MACHINE = re.compile(
    r"(^|[^A-Za-z0-9_.])/("
    + "work|farm|root"
    + r")/|"
    + "|".join((r"pypi\." + "org", r"deb\.debian\." + "org", r"registry\." + "npmjs", "python" + "hosted"))
)


def test_no_file_names_this_machine_or_a_registry() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}" for number, line in enumerate(text.splitlines(), 1) if MACHINE.search(line)
        ]
    assert not found


@pytest.mark.parametrize("page", sorted((DOCS / "adr").glob("[0-9]*.md")), ids=lambda page: page.stem)
def test_a_decision_record_has_context_decision_and_consequences(page: Path) -> None:
    assert list(sections(page))[1:] == ["Context", "Decision", "Consequences"]
    assert "WILL " in sections(page)["Decision"]
    assert "will NOT " in sections(page)["Decision"]


def test_the_command_line_page_is_what_help_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "make regold"
