"""An algorithm from another package is a first-class one: listed, checked and under the laws, with no line here about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT

MODULE = '''
"""Tethered: FedAvg, and on each client finetuning that is held near the shared model. Doe, 2026."""

from freehold.core import Algorithm, Batch, ClientResult, Rate, Round, Steps, Strength, Task, Tree, descend, difference, proximal


def tethered(task: Task, *, lr: Rate = 0.1, lam: Strength = 1.0) -> Algorithm:
    """FedAvg; a client predicts with v, begun at shared, that minimizes `loss(v) + lam/2 ||v - shared||^2`."""

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        local = descend(task.objective, shared, steps, lr)
        return ClientResult(contribution=difference(local, shared), personal=personal)

    def adapt(shared: Tree, personal: Tree, steps: Steps, validation: Batch) -> Tree:
        return descend(proximal(task.objective, shared, lam), shared, steps, lr)

    return Algorithm(
        name="tethered",
        task=task,
        init=lambda: task.init,
        client_update=client_update,
        adapt=adapt,
        personalize=lambda shared, personal: personal,
    )


def telling(task: Task, *, lr: Rate = 0.1) -> Algorithm:
    """Breaks a law: it sends the model that stays, rather than a difference."""

    def client_update(round: Round, shared: Tree, personal: Tree, steps: Steps) -> ClientResult:
        own = descend(task.objective, personal, steps, lr)
        return ClientResult(contribution=own, personal=own)

    return Algorithm(
        name="telling",
        task=task,
        init=lambda: task.init,
        enroll=lambda shared: shared,
        client_update=client_update,
        personalize=lambda shared, personal: personal,
    )
'''
METADATA = "Metadata-Version: 2.1\nName: freehold-tethered\nVersion: 1.0\n"


def package(folder: Path, *functions: str) -> Path:
    """A package as pip leaves it: a module, and beside it what the distribution says of itself."""
    (folder / "tethered.py").write_text(MODULE, encoding="utf-8")
    information = folder / "freehold_tethered-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(METADATA, encoding="utf-8")
    points = "".join(f"{name} = tethered:{name}\n" for name in functions)
    (information / "entry_points.txt").write_text(f"[freehold.algorithms]\n{points}", encoding="utf-8")
    return folder


def python(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process that finds the package."""
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, *arguments]
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def laws(installed: Path, name: str) -> subprocess.CompletedProcess[str]:
    """The laws for one algorithm."""
    return python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/laws", "-k", name)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("site"), "tethered")


def test_it_is_listed_with_what_it_says_of_itself(installed: Path) -> None:
    code = (
        "from freehold.core import algorithm_entry, algorithm_names\n"
        "entry = algorithm_entry('tethered')\n"
        "assert {'tethered', 'ditto'} <= set(algorithm_names())\n"
        "print(entry.package, *entry.hyperparameters); print(entry.summary); print(entry.citation)"
    )
    done = python(installed, "-c", code)
    assert done.stdout.splitlines() == [
        "freehold-tethered lr lam",
        "FedAvg; a client predicts with v, begun at shared, that minimizes `loss(v) + lam/2 ||v - shared||^2`.",
        "Tethered: FedAvg, and on each client finetuning that is held near the shared model. Doe, 2026.",
    ], done.stderr


def test_its_hyperparameters_are_checked_against_their_ranges(installed: Path) -> None:
    code = (
        "from freehold.core import algorithm_entry\n"
        "from freehold.errors import HyperparameterError\n"
        "from tests.problems import plain\n"
        "entry = algorithm_entry('tethered')\n"
        "print(entry.build(plain(), lr=0.5, lam=0).name)\n"
        "for wrong in ({'lr': 0.0}, {'lam': -1.0}, {'lam': 'much'}, {'lamb': 1.0}):\n"
        "    try:\n"
        "        entry.build(plain(), **wrong)\n"
        "    except HyperparameterError as error:\n"
        "        print(error.message)"
    )
    done = python(installed, "-c", code)
    assert done.stdout.splitlines() == [
        "tethered",
        "tethered.lr is 0.0, but must be above 0.",
        "tethered.lam is -1.0, but must be at least 0.",
        "tethered.lam is 'much', but must be of type float.",
        "tethered has no hyper-parameter 'lamb'.",
    ], done.stderr


def test_the_laws_run_over_it_and_it_keeps_them(installed: Path) -> None:
    done = laws(installed, "tethered")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "failed" not in done.stdout


def test_the_laws_catch_one_that_breaks_them(tmp_path: Path) -> None:
    done = laws(package(tmp_path, "telling"), "telling")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_differences.py" in done.stdout and "test_personal_stays.py" in done.stdout
