"""The may-import table, as data; what is not listed is forbidden. ARCHITECTURE.md shows the same table to people."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.imports import GOLDEN, ROOT, imports, modules, package_of, third_parties

EVERYWHERE = frozenset({"errors", "plan", "events", "drawing"})

MAY_IMPORT: dict[str, frozenset[str]] = {
    # In this order: a package only imports what stands above it.
    "errors": frozenset(),
    "events": frozenset(),
    "drawing": frozenset({"errors"}),
    "plan": frozenset({"errors"}),
    "hours": frozenset({"errors"}),
    "signing": frozenset({"errors"}),
    "policy": frozenset({"errors", "plan", "hours", "signing"}),
    "settings": frozenset({"errors"}),
    "logs": frozenset({"events"}),
    "systemd": frozenset(),
    "failpoints": frozenset(),
    "durable": frozenset({"failpoints"}),
    "sandbox": frozenset({"errors", "events"}),
    "wire": EVERYWHERE | {"durable", "failpoints"},
    "privacy": EVERYWHERE,
    "core": frozenset({"errors", "drawing"}),
    "algorithms": EVERYWHERE | {"core"},
    "models": EVERYWHERE | {"core"},
    "data": EVERYWHERE | {"core"},
    "tasks": EVERYWHERE | {"core", "data", "models"},
    "engines": EVERYWHERE | {"durable", "failpoints", "core", "algorithms", "data"},
    "report": EVERYWHERE,
    "tracking": EVERYWHERE,
    "study": EVERYWHERE
    | {"durable", "core", "algorithms", "models", "data", "tasks", "engines", "privacy", "report", "tracking", "wire"},
    "node": EVERYWHERE
    | {"hours", "policy", "settings", "logs", "durable", "failpoints", "sandbox", "wire"}
    | {"core", "algorithms", "data", "tasks", "engines", "privacy"},
    "coordinator": EVERYWHERE
    | {"signing", "durable", "failpoints", "sandbox", "wire", "core", "algorithms", "data", "tasks", "engines"},
    "freehold": EVERYWHERE | {"core", "data", "report", "study"},
    "testing": EVERYWHERE | {"failpoints", "wire", "node", "coordinator", "tasks"},
    "cli": EVERYWHERE
    | {"signing", "policy", "settings", "logs", "systemd", "durable", "sandbox", "wire", "node", "coordinator"}
    | {"freehold", "core", "algorithms", "models", "data", "tasks", "engines", "privacy", "report", "tracking", "study"},
}

THIRD_PARTIES: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "events": frozenset({"msgspec"}),
    "plan": frozenset({"msgspec", "tomli_w"}),
    "drawing": frozenset(),
    "hours": frozenset(),
    "signing": frozenset({"cryptography"}),
    "policy": frozenset({"msgspec"}),
    "settings": frozenset(),
    "logs": frozenset(),
    "systemd": frozenset(),
    "failpoints": frozenset(),
    "durable": frozenset(),
    "wire": frozenset({"aiohttp", "msgspec", "numpy", "torch", "zstandard"}),  # torch in tensors.py, which children import
    "sandbox": frozenset(),
    "privacy": frozenset({"dp_accounting", "msgspec"}),
    "core": frozenset({"torch"}),
    "algorithms": frozenset({"torch"}),
    "models": frozenset({"torch"}),
    "data": frozenset({"msgspec", "numpy", "pandas", "polars", "scipy", "sklearn", "tomli_w", "torch"}),
    "tasks": frozenset({"numpy", "polars", "torch"}),
    "engines": frozenset({"ray", "torch"}),  # ray in ray.py alone
    "report": frozenset({"jinja2", "matplotlib", "msgspec", "numpy", "scipy"}),
    "tracking": frozenset({"mlflow", "tensorboard"}),
    "study": frozenset({"msgspec", "numpy", "polars", "safetensors", "scipy", "torch"}),
    "node": frozenset({"cryptography", "msgspec", "numpy", "torch"}),  # the agent: msgspec alone, see tests/unit/enrolment
    "coordinator": frozenset(
        {"aiohttp", "alembic", "cryptography", "msgspec", "obstore", "prometheus_client", "sqlalchemy", "torch"}
    ),
    "freehold": frozenset(),
    "testing": frozenset({"sklearn", "torch"}),
    "cli": frozenset({"msgspec", "rich", "typer"}),
}

HEAVY = ("torch", "numpy", "polars", "matplotlib", "scipy", "sklearn", "pandas", "jinja2")


def test_each_package_imports_only_what_the_table_allows() -> None:
    wrong = [
        f"{item.place}: {item.package} may not import {item.target}"
        for item in imports()
        if item.inside and item.inside != item.package and item.inside not in MAY_IMPORT[item.package]
    ]
    assert not wrong, "\n".join(wrong)


def test_each_third_party_module_is_imported_only_where_the_table_allows() -> None:
    wrong = [
        f"{item.place}: {item.package} may not import {item.target}"
        for item in imports()
        if item.third_party and item.third_party not in THIRD_PARTIES[item.package]
    ]
    assert not wrong, "\n".join(wrong)


def test_ray_is_imported_in_one_place_only() -> None:
    places = {item.place.partition(":")[0] for item in imports() if item.third_party == "ray"}
    assert places == {"src/freehold/engines/ray.py"}


def test_the_table_has_every_package_and_no_cycle() -> None:
    assert {package_of(path) for path in modules()} <= MAY_IMPORT.keys() == THIRD_PARTIES.keys()
    order = list(MAY_IMPORT)
    for package, allowed in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(package) for other in allowed), package


def test_there_is_no_drawer_for_the_rest() -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "base", "misc", "manager"}
    assert not [path for path in modules() if drawers & {part.removesuffix(".py") for part in path.parts}]


def test_the_dependencies_are_those_that_were_reviewed() -> None:
    assert third_parties() == GOLDEN.read_text(encoding="utf-8"), (
        "If the change is meant: make regold, and say why in the commit."
    )


@pytest.mark.parametrize("module", ["freehold", "freehold.cli", "freehold.plan", "freehold.events"])
def test_what_every_command_loads_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.split()


def test_help_loads_few_modules() -> None:
    code = (
        "import sys\n"
        "from freehold.cli import main\n"
        "sys.argv = ['freehold', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(len(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stderr) < 560
