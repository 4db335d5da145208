"""The public face: every package says what it offers, all of it and nothing else, and each thing says what it is."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

from tests.architecture.imports import SOURCE, imports

PACKAGES = sorted(".".join(path.parent.relative_to(SOURCE.parent).parts) for path in SOURCE.rglob("__init__.py"))


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def public(package: ModuleType) -> list[tuple[str, object]]:
    return [(name, getattr(package, name)) for name in package.__all__]


def own(value: object) -> bool:
    """Whether a name is Freehold's: defined in it, or a constant or an alias, which do not know where they come from."""
    home = getattr(value, "__module__", None)
    return not isinstance(value, ModuleType) and (not isinstance(home, str) or home.split(".")[0] == "freehold")


def test_all_is_there_and_sorted(package: ModuleType) -> None:
    order = sorted(package.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert list(package.__all__) == order, "constants, then classes, then functions, each by name (ruff --fix sorts it)"


def test_all_is_complete_and_leaks_nothing(package: ModuleType) -> None:
    names = {name for name, value in vars(package).items() if not name.startswith("_") and own(value)}
    assert names <= set(package.__all__)
    assert not [name for name in package.__all__ if name.startswith("_") and name != "__version__"]


def test_a_package_offers_its_own_things_only(package: ModuleType) -> None:
    if package.__name__ == "freehold":
        return  # the front door, whose purpose is to offer others' things
    for name, value in public(package):
        home = getattr(value, "__module__", None)
        if isinstance(home, str) and home.split(".")[0] == "freehold":
            assert home.startswith(package.__name__), f"{name} lives in {home}: import it from there"


def test_everything_public_is_documented(package: ModuleType) -> None:
    assert package.__doc__, "a package says in a sentence what it is"
    bare = [f"{name}.{part}" if part else name for name, value in public(package) for part in undocumented(name, value)]
    assert not bare


def undocumented(name: str, value: object) -> list[str]:
    """The parts of a class or function without a docstring of their own; "" is the thing itself."""
    if inspect.isclass(value):
        written = bool(value.__doc__) and not str(value.__doc__).startswith((f"{name}(", "Alias for"))
        fields = {*getattr(value, "__dataclass_fields__", ()), *getattr(value, "__struct_fields__", ())}
        parts = [
            part
            for part, item in vars(value).items()
            if not part.startswith("_")
            and part not in fields
            and (inspect.isfunction(item) or isinstance(item, (property, classmethod, staticmethod)))
            and not inspect.getdoc(item)
        ]
        return parts if written else ["", *parts]
    return [""] if inspect.isfunction(value) and not value.__doc__ else []


def test_no_package_reaches_into_the_private_parts_of_another() -> None:
    reaching = [
        f"{item.place}: {item.target} {name}"
        for item in imports()
        for name in (*item.target.split("."), *item.names)
        if item.inside and item.inside != item.package and name.startswith("_") and name != "__version__"
    ]
    assert not reaching, "\n".join(reaching)
