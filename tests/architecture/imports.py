"""Who imports whom, read off the source: the facts that the architecture tests hold against the table.

As a program it writes `dependencies.txt` anew (`make regold`).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "freehold"
GOLDEN = Path(__file__).with_name("dependencies.txt")
TOP = "freehold"


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement: who (a package), from where, what."""

    package: str
    place: str
    target: str
    names: tuple[str, ...] = ()

    @property
    def inside(self) -> str | None:
        """The Freehold package that is imported; None for others' modules."""
        parts = self.target.split(".")
        if parts[0] != TOP:
            return None
        if len(parts) > 1:
            return parts[1]
        inner = [name for name in self.names if (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file()]
        return inner[0] if inner else TOP

    @property
    def third_party(self) -> str | None:
        """The distribution's top module; None for Freehold's own and the standard library's."""
        module = self.target.split(".")[0]
        return None if module == TOP or module in sys.stdlib_module_names else module


def package_of(path: Path) -> str:
    """`core` for src/freehold/core/trees.py, `errors` for src/freehold/errors.py, `freehold` for the package itself."""
    first = path.relative_to(SOURCE).parts[0]
    return TOP if first == "__init__.py" else first.removesuffix(".py")


def modules() -> list[Path]:
    """All source files."""
    return sorted(SOURCE.rglob("*.py"))


def imports() -> Iterator[Import]:
    """Every import in the source: at the top, in functions, for type checkers only, and by `import_module("...")`."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target, names in _targets(node, path):
                place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                yield Import(package=package_of(path), place=place, target=target, names=names)


def _targets(node: ast.AST, path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, ()) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            home = [TOP, *path.relative_to(SOURCE).with_suffix("").parts[: -node.level or None]]
            module = ".".join([*home, module]).rstrip(".")
        yield module, tuple(alias.name for alias in node.names)
    elif (
        isinstance(node, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in {"import_module", "__import__"}:
            yield node.args[0].value, ()


def third_parties() -> str:
    """Third-party modules per package, a line each: what `dependencies.txt` holds."""
    found: dict[str, set[str]] = {package_of(path): set() for path in modules()}
    for item in imports():
        if item.third_party:
            found[item.package].add(item.third_party)
    return "".join(f"{package}: {' '.join(sorted(found[package])) or '-'}\n" for package in sorted(found))


if __name__ == "__main__":
    GOLDEN.write_text(third_parties(), encoding="utf-8")
