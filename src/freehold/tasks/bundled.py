"""Tasks that come with a plan: a bundle's modules are imported from memory, in the process that is to run them and no other.

On a node and on a coordinator that process is in a sandbox. Nothing else of Freehold imports a bundle's code.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

from freehold.core import Task
from freehold.data import Prepared
from freehold.errors import BundleFailed, FreeholdError
from freehold.plan import Plan
from freehold.plan.bundle import ENTRY, unpack
from freehold.tasks.definition import TaskDefinition, task_definition

ROOT: Final = "/bundle"
"""Where a bundle's files seem to lie, in tracebacks."""


class _Modules(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads modules in path -> text."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Of a module or package of the bundle."""
        place = self._place(fullname)
        if place is None:
            return None
        package = place.endswith("/__init__.py")
        spec = ModuleSpec(fullname, self, origin=f"{ROOT}/{place}", is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [f"{ROOT}/{place.removesuffix('/__init__.py')}"]
        return spec

    def get_source(self, fullname: str) -> str:
        """The text of a module."""
        place = self._place(fullname)
        if place is None:
            raise ImportError(f"the bundle has no module {fullname}")
        return self._files[place]

    def get_filename(self, fullname: str) -> str:
        """Where it seems to lie."""
        return f"{ROOT}/{self._place(fullname)}"

    def get_code(self, fullname: str) -> object:  # type: ignore[override]
        """What runs, with a name for tracebacks."""
        return self.source_to_code(self.get_source(fullname), self.get_filename(fullname))

    def get_data(self, path: str) -> bytes:
        """Another file of the bundle, for `pkgutil.get_data`."""
        try:
            return self._files[path.removeprefix(f"{ROOT}/")].encode()
        except KeyError:
            raise OSError(f"the bundle has no file {path}") from None

    def _place(self, fullname: str) -> str | None:
        start = fullname.replace(".", "/")
        return next((place for place in (f"{start}.py", f"{start}/__init__.py") if place in self._files), None)


def definition_of(plan: Plan, bundle: bytes | None = None) -> TaskDefinition:
    """The plan's task: installed, or of this bundle, whose code is then imported here.

    Raises UnknownName, BundleUnfit for a bundle that the plan does not name, and BundleFailed for code that does not work.
    """
    said = plan.task
    if said.bundle is None:
        return task_definition(said.name)
    if bundle is None:
        raise BundleFailed(
            f"The plan's task {said.name} is code that comes along, and none came.",
            hint="Add --bundle FILE, as `freehold bundle` wrote it.",
        )
    found = imported(unpack(bundle, said.bundle))
    if (found.name, found.version) != (said.name, said.version):
        raise BundleFailed(
            f"The bundle defines version {found.version} of the task {found.name}; "
            f"the plan names version {said.version} of {said.name}.",
            hint="Write into the plan what the bundle defines.",
        )
    return found


def described(plan: Plan) -> TaskDefinition:
    """What is known of the plan's task without running code that comes with it: a report needs no more."""
    if plan.task.bundle is None:
        return task_definition(plan.task.name)

    def build(prepared: Prepared, seed: int) -> Task:
        raise BundleFailed("The code of this task is not here.", hint="Add --bundle FILE.")

    return TaskDefinition(
        name=plan.task.name, version=plan.task.version, title=plan.task.name, build=build, training=plan.training
    )


def imported(files: Mapping[str, str]) -> TaskDefinition:
    """Run the bundle's code in this process, for good, and return what its `task()` does. Raises BundleFailed."""
    sys.meta_path.insert(0, _Modules(files))
    for name in {path.partition("/")[0].removesuffix(".py") for path in files}:
        for loaded in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            del sys.modules[loaded]  # of another bundle, or a module that has the same name by chance
    try:
        found = importlib.import_module(ENTRY.removesuffix(".py")).task()
    except FreeholdError:
        raise
    except Exception as error:  # foreign code may raise anything; its text may quote data
        raise BundleFailed(
            f"The bundle's task() raised {type(error).__name__}.", hint="`freehold bundle --check FOLDER` says where."
        ) from error
    if not isinstance(found, TaskDefinition):
        raise BundleFailed(
            f"The bundle's task() returned {type(found).__name__[:80]}, not a TaskDefinition.",
            hint="Return freehold.tasks.TaskDefinition(…), as docs/how-to/bring-your-own-code.md shows.",
        )
    return found
