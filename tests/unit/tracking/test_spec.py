from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.errors import MissingExtra, UsageError
from freehold.tracking import listener


def test_another_tracker_is_a_usage_error_with_the_near_miss() -> None:
    with pytest.raises(UsageError, match="Did you mean 'tensorboard'"):
        listener("tensorbord:runs")


@pytest.mark.parametrize("spec", ["mlflow", "mlflow:", "tensorboard", "tensorboard:"])
def test_a_tracker_without_a_place_is_a_usage_error_with_an_example(spec: str) -> None:
    with pytest.raises(UsageError, match=f"For example {spec.partition(':')[0]}:"):
        listener(spec)


@pytest.mark.parametrize("name", ["mlflow", "tensorboard"])
def test_without_the_extra_the_message_names_the_command_that_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Without(name), *sys.meta_path])
    with pytest.raises(MissingExtra, match=rf"pip install 'freehold\[{name}\]'"):
        listener(f"{name}:runs")


class Without:
    """An import path on which one package is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, module: str, path: object = None, target: object = None) -> None:
        if module.split(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def test_naming_the_trackers_imports_neither() -> None:
    code = "import sys, freehold.tracking; print(*({'mlflow', 'tensorboard', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.split()


def test_tracking_with_mlflow_sends_no_telemetry_and_leaves_no_id_of_the_installation(tmp_path: Path) -> None:
    """In a process of its own that does not look like a test, where MLflow would turn its telemetry off by itself."""
    code = (
        "from freehold.tracking import listener\n"
        "listener('mlflow:http://localhost:1')\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "from mlflow.telemetry.utils import _IS_IN_CI_ENV_OR_TESTING\n"
        "print(get_telemetry_client(), _IS_IN_CI_ENV_OR_TESTING)\n"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]
    assert not list(tmp_path.rglob("*"))
