"""Code of a bundle is imported from memory; what does not define the plan's task is told by number."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from freehold import study
from freehold.errors import BundleFailed, BundleUnfit, TaskError, UnknownName
from freehold.plan import Plan, TaskRef, parse
from freehold.plan.bundle import digest_of, pack
from freehold.study.federated import federated_plan
from freehold.tasks.bundled import definition_of, described, imported

TASK = """
import dataclasses, json, pkgutil
from freehold.tasks.heart import heart
from freehold_test_own import model
from freehold_test_own.deeper import thing

def task():
    told = json.loads(pkgutil.get_data("freehold_test_own", "told.json"))
    assert thing.NAME == "freehold_test_own.deeper.thing"
    return dataclasses.replace(heart(), name=told["name"], build=model.build)
"""
FILES = {
    "task.py": TASK,
    "freehold_test_own/__init__.py": "",
    "freehold_test_own/told.json": '{"name": "own"}',
    "freehold_test_own/model.py": "from freehold.tasks.tables import classifier as build\n",
    "freehold_test_own/deeper/__init__.py": "",
    "freehold_test_own/deeper/thing.py": "NAME = __name__\n",
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What is imported here is forgotten: in production that process ends."""
    modules, finders = set(sys.modules), list(sys.meta_path)
    yield
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        if name == "task" or name.startswith("freehold_test_own"):
            del sys.modules[name]


def plan_of(files: Mapping[str, str], name: str = "own") -> tuple[Plan, bytes]:
    body = pack(files)
    plan = federated_plan("heart", "fedavg", companions=[], rounds=1)
    return msgspec.structs.replace(plan, task=TaskRef(name=name, bundle=digest_of(body))), body


def test_packages_and_files_of_a_bundle_are_found_in_it() -> None:
    found = definition_of(*plan_of(FILES))
    assert found.name == "own" and found.build.__module__ == "freehold.tasks.tables"
    assert not Path("/bundle").exists()


def test_another_bundle_takes_the_place_of_the_first() -> None:
    imported(FILES)
    found = imported({**FILES, "freehold_test_own/told.json": '{"name": "other"}'})
    assert found.name == "other"


@pytest.mark.parametrize(
    "code",
    [
        "1 / 0\n",
        "x = 1\n",
        "def task(): return 5\n",
        "def task(): raise KeyError('row 7')\n",
        "def task(:\n",
        "import nowhere_x\n",
    ],
)
def test_code_that_fails_is_told_by_its_kind_alone(code: str) -> None:
    with pytest.raises(BundleFailed) as failed:
        definition_of(*plan_of({"task.py": code}))
    assert failed.value.code == 654 and "row 7" not in str(failed.value)


def test_what_the_plan_does_not_name_is_not_imported() -> None:
    plan, body = plan_of(FILES, name="heart")
    with pytest.raises(BundleFailed, match="defines version 1 of the task own"):
        definition_of(plan, body)
    with pytest.raises(BundleUnfit):
        definition_of(plan, pack({"task.py": "raise SystemExit"}))
    with pytest.raises(BundleFailed, match="none came"):
        definition_of(plan)


def test_an_error_of_freeholds_own_stays_itself() -> None:
    code = "from freehold.errors import TaskError\ndef task(): raise TaskError('a head that does not fit')\n"
    with pytest.raises(TaskError):
        definition_of(*plan_of({"task.py": code}))


def test_a_report_needs_no_code() -> None:
    plan, _ = plan_of(FILES)
    assert described(plan).name == "own" and "task" not in sys.modules
    with pytest.raises(UnknownName):
        described(msgspec.structs.replace(plan, task=TaskRef(name="own")))


def test_it_is_simulated_from_files_as_the_command_line_does(tmp_path: Path) -> None:
    """In the surroundings of a user: a folder, then a bundle, a plan and its report."""
    code = tmp_path / "code"
    for name, text in FILES.items():
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(text)

    def at(name: str) -> str:
        return str(tmp_path / name)

    def freehold(*arguments: str) -> str:
        command = [sys.executable, "-m", "freehold.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = json.loads(freehold("bundle", at("code"), "--output", at("own.bundle"), "--check", "--json"))
    assert made["task"] == {"name": "own", "version": "1"} and made["files"] == sorted(FILES)
    assert "freehold" in made["imports"] and "freehold_test_own" not in made["imports"]
    again = json.loads(freehold("bundle", at("code"), "--output", at("again.bundle"), "--json"))
    assert again["digest"] == made["digest"]
    new = ("study", "new", "own", "--bundle", at("own.bundle"), "--algorithm", "fedavg", "--companions", "none", "--rounds", "1")
    freehold(*new, "--repeats", "1", "--output", at("plan.toml"))
    plan = parse(Path(at("plan.toml")).read_text())
    assert plan.task.bundle == made["digest"] and plan.contribution.tensors
    freehold("simulate", at("plan.toml"), "--bundle", at("own.bundle"), "--jobs", "2", "--seeds", "2", "--json", at("found.json"))
    told = json.loads(Path(at("found.json")).read_text())
    assert [row["name"] for row in told["rows"]] == ["fedavg"]
    with pytest.raises(BundleFailed):
        study.simulate(plan)
