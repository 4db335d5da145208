"""Every durable write has a failpoint of a literal name, and a test kills a process there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.federation import test_kills, test_more_kills, test_replicas, test_schedules
from tests.unit.engines import test_arena
from tests.unit.enrolment import test_joining
from tests.unit.node import (
    test_admission,
    test_budget,
    test_bundles,
    test_checkpoints,
    test_claims,
    test_ledger,
    test_tpm,
    test_vault,
)
from tests.unit.study import test_states

SOURCE = Path(__file__).parents[2] / "src" / "freehold"
WRITERS = {"write", "write_alike", "append", "name", "remove", "commit", "put", "put_file", "_transaction", "_write", "failpoint"}
POINT = re.compile(r"(coordinator|node|agent|guard|trainer|study)(\.[a-z_-]+)+")
STEPS = re.compile(r"\.(writing|written|named|committing|committed|removing|removed)$")

ELSEWHERE = {"durable.py", "study/checkpoint.py", "cli/output.py"}  # the checkpoint renames folders
"""Who may call fsync and replace files: durable, and what writes files that a user names."""

NOT_KILLED = {
    "node.left": "a receipt",
    "node.outside": "where files lie, which the next start says again",
    "node.sample-policy": "for sample data, at the first start; without it plans wait",
    "node.settings": "written once at the first start, and without it the command line says the same again",
    "coordinator.settings": "written by the command line, before there is anything to lose",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            yield (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")), node


def points(path: Path) -> set[str]:
    found = set()
    for name, call in calls(path):
        if name in WRITERS:
            given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "point")]
            found |= {
                a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str) and POINT.fullmatch(a.value)
            }
    return found


def killed() -> set[str]:
    listed = [
        *test_joining.POINTS,
        *test_more_kills.POINTS,
        *test_schedules.POINTS,
        *test_kills.COORDINATOR_POINTS,
        *test_kills.FILE_POINTS,
        *test_vault.POINTS,
        *test_tpm.POINTS,
        *test_tpm.ERASED,
        *test_admission.POINTS,
        *test_bundles.POINTS,
        *test_ledger.POINTS,
        *test_checkpoints.POINTS,
        *test_claims.POINTS,
        *test_ledger.KEY_POINTS,
        *test_budget.POINTS,
        *test_replicas.POINTS,
        *test_replicas.LEASE_POINTS,
        *test_kills.AGENT_POINTS,
        *test_kills.GUARD_POINTS,
        *test_kills.ANSWERS,
        *test_arena.POINTS,
        *test_states.POINTS,
    ]
    return {STEPS.sub("", point) for point in listed}


def test_each_point_is_one_where_a_test_kills() -> None:
    found = set().union(*(points(path) for path in SOURCE.rglob("*.py")))
    assert found - NOT_KILLED.keys() == killed()
    assert found >= NOT_KILLED.keys()


def test_each_durable_write_says_its_point() -> None:
    """A literal, or the parameter `point` of who passes it on."""
    for path in SOURCE.rglob("*.py"):
        for name, call in calls(path):
            owner = call.func.value if isinstance(call.func, ast.Attribute) else None
            written = ast.unparse(owner) if owner is not None else ""
            if (written == "durable" and name in ("write", "append", "name", "commit", "remove")) or (
                written.endswith("store") and written != "obstore" and name in ("write", "put", "put_file")
            ):
                given = [*call.args, *(keyword.value for keyword in call.keywords)]
                literal = any(isinstance(a, ast.Constant) and POINT.fullmatch(str(a.value)) for a in given)
                assert literal or "point" in ast.unparse(call), f"{path.name}:{call.lineno}"


def test_nothing_else_replaces_files() -> None:
    for path in SOURCE.rglob("*.py"):
        if str(path.relative_to(SOURCE)) in ELSEWHERE:
            continue
        for name, call in calls(path):
            told = ast.unparse(call.func)
            assert told not in ("os.fsync", "os.replace", "os.rename", "os.fdatasync", "shutil.move"), f"{path}:{call.lineno}"
            assert name != "rename", f"{path}:{call.lineno}"
