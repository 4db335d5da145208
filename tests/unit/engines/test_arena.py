"""An arena is a PersonalStore on disk: the same answers, and what a kill leaves half-written is never read."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.core import Tree, flatten, stack, tree_map
from freehold.engines import Arena, PersonalStore, Sealed
from freehold.engines import arena as module
from freehold.errors import ArenaError
from freehold.failpoints import arm
from tests.unit.engines import killed

CLIENTS = tuple(f"c{i}" for i in range(7))
MAKING = [f"study.arena.{step}" for step in ("removing", "removed", "writing", "written", "named")]
WORKING = [f"study.arena.{step}" for step in ("staging", "settling", "settled", "sealing", "sealed")]
POINTS = [*MAKING, *WORKING]
LIKE: Tree = {
    "model": {"w": torch.zeros(3, 2), "deep": {"half": torch.zeros(5, dtype=torch.bfloat16)}},
    "flag": torch.zeros((), dtype=torch.bool),
    "double": torch.zeros(1, dtype=torch.float64),
    "count": torch.zeros(2, dtype=torch.int64),
    "phase": torch.zeros(1, dtype=torch.complex128),
    "none": torch.zeros(0, 4),
    "empty": {},
}


def shared(value: float = 1.0) -> Tree:
    return {"s": torch.tensor(value)}


def state(value: float) -> Tree:
    return tree_map(lambda t: torch.full_like(t, value), LIKE)


def enroll(shared: Tree) -> Tree:
    return state(float(shared["s"]) * 3)


def created(folder: Path, clients: Sequence[str] = CLIENTS, like: Tree = LIKE) -> Arena:
    return Arena.create(folder, clients, enroll, like=like)


def opened(folder: Path, at: Sealed, clients: Sequence[str] = CLIENTS, like: Tree = LIKE) -> Arena:
    return Arena.open(folder, clients, enroll, like=like, at=at)


def same(a: Tree, b: Tree) -> bool:
    x, y = flatten(a), flatten(b)
    return list(x) == list(y) and all(x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x) and set(a) == set(b)


def holds(arena: Arena, states: dict[str, Tree]) -> bool:
    found = arena.committed()
    return (
        set(found) == set(states)
        and len(found) == len(states)
        and all(same(found[c], s) and same(arena.read(c, shared()), s) for c, s in states.items())
    )


def write(arena: Arena, round_: int, clients: Sequence[str], *, counted: bool = True) -> None:
    arena.scatter(clients, stack([state(10 * round_ + CLIENTS.index(c)) for c in clients]))
    arena.settle(counted)


ROUND = st.tuples(
    st.just("round"), st.lists(st.sampled_from(CLIENTS), unique=True, min_size=1), st.integers(0, 99), st.booleans()
)
ACTION = st.one_of(
    ROUND,
    ROUND,
    st.tuples(st.just("seal"), st.booleans()),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("restage"), st.sampled_from(CLIENTS), st.integers(0, 99)),
    st.tuples(st.just("restore"), st.lists(st.sampled_from(CLIENTS), unique=True)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTION, max_size=25))
def test_any_sequence_of_rounds_checkpoints_and_crashes_is_that_of_a_store_in_memory(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, ...]]
) -> None:
    """`reopen` is a crash: the arena goes back to the last checkpoint that was kept, as a store that is restored from it."""
    folder = tmp_path_factory.mktemp("arena")
    arena, model = created(folder), PersonalStore(enroll)
    kept: tuple[Sealed, dict[str, Tree]] | None = None
    for name, *given_ in actions:
        if name == "round":
            clients, value, counted = given_
            for c, store in ((c, store) for c in clients for store in (arena, model)):
                store.stage(c, state(float(value) + CLIENTS.index(c)))
            arena.settle(bool(counted))
            model.settle(bool(counted))
        elif name == "restage":
            for value in (float(given_[1]) + 1, float(given_[1])):
                arena.stage(given_[0], state(value))
                model.stage(given_[0], state(value))
        elif name == "seal":
            sealed = arena.seal()
            if given_[0]:  # else the checkpoint could not be written
                arena.keep(sealed)
                kept = sealed, dict(model.committed())
        elif name == "restore":
            states = {c: state(100.0 + CLIENTS.index(c)) for c in given_[0]}
            arena.restore(states)
            model.restore(states)
            kept = None
        else:
            arena.close()
            arena = opened(folder, kept[0]) if kept else created(folder)
            model = PersonalStore(enroll)
            model.restore(kept[1] if kept else {})
        assert holds(arena, dict(model.committed())), name
        assert same(arena.gather(CLIENTS, shared(2)), model.gather(CLIENTS, shared(2)))
    arena.close()


@pytest.mark.parametrize("like", [LIKE, {}, {"v": torch.zeros(3)}, {"v": torch.zeros(0)}])
def test_states_of_any_shape_come_back_to_the_bit_and_by_themselves(tmp_path: Path, like: Tree) -> None:
    arena = Arena.create(tmp_path / "a", CLIENTS, lambda s: like, like=like)
    value = tree_map(lambda t: (torch.arange(t.numel()) + 1).reshape(t.shape).to(t.dtype), like)
    arena.stage("c3", value)
    assert not arena.committed() and "c3" not in arena.committed()
    arena.settle(counted=True)
    assert set(arena.committed()) == {"c3"} and same(arena.committed()["c3"], value)
    gathered = arena.gather(["c3", "c0", "a newcomer"], {})
    assert same(gathered, stack([value, like, like]))
    for t in flatten(arena.read("c3", {})).values():
        t.zero_()
    assert same(arena.read("c3", {}), value), "what was read is a copy"
    with pytest.raises(KeyError):
        arena.committed()["c0"]
    sealed = arena.seal()
    arena.close()
    again = Arena.open(tmp_path / "a", CLIENTS, lambda s: like, like=like, at=sealed)
    assert same(again.read("c3", {}), value)
    again.close()


def test_a_temporary_arena_needs_no_folder_and_leaves_nothing(tmp_path: Path) -> None:
    arena = Arena.temporary(CLIENTS, enroll, like=LIKE, asked=3, folder=tmp_path)
    write(arena, 1, CLIENTS[:3])
    write(arena, 2, CLIENTS[1:3], counted=False)
    assert holds(arena, {c: state(10 + i) for i, c in enumerate(CLIENTS[:3])}) and not list(tmp_path.iterdir())
    with pytest.raises(ArenaError, match="temporary"):
        arena.seal()
    arena.close()
    arena.close()


def test_it_is_sparse_until_it_is_touched(tmp_path: Path) -> None:
    many = [str(i) for i in range(2000)]
    like = {"v": torch.zeros(25_000)}
    arena = Arena.create(tmp_path / "a", many, lambda s: like, like=like, asked=1)
    arena.stage("7", {"v": torch.ones(25_000)})
    arena.settle(counted=True)
    assert arena.gather(many[5:9], {})["v"].sum() == 25_000
    file = (tmp_path / "a" / "states").stat()
    assert file.st_size == 3 * 2000 * 100_000 and file.st_blocks * 512 < 10 * 100_000
    arena.close()


def test_many_pages_are_not_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With so low a limit each read lets go of all pages, and nothing that was written is lost by it."""
    monkeypatch.setattr(module, "MAPPED_BYTES", 0)
    arena = created(tmp_path / "a")
    for round_ in range(3):
        write(arena, round_, CLIENTS)
        assert holds(arena, {c: state(10 * round_ + i) for i, c in enumerate(CLIENTS)})
    arena.close()


def test_a_state_of_another_shape_or_of_nobody_is_refused(tmp_path: Path) -> None:
    arena = created(tmp_path / "a", like={"v": torch.zeros(3)})
    for wrong in ({"v": torch.zeros(4)}, {"v": torch.zeros(3, dtype=torch.float64)}, {"w": torch.zeros(3)}, {}):
        with pytest.raises(ArenaError, match="on disk"):
            arena.stage("c1", wrong)
    with pytest.raises(ArenaError, match="no client x"):
        arena.stage("x", {"v": torch.zeros(3)})
    arena.settle(counted=True)
    assert not arena.committed()
    arena.close()


def test_no_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:3], 10, 10, *real[5:10]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    many = [str(i) for i in range(100_000)]
    with pytest.raises(ArenaError, match="GiB on disk, but") as refused:
        created(tmp_path / "new" / "a", many)
    assert "--checkpoint" in refused.value.hint and not list(tmp_path.iterdir())
    with pytest.raises(ArenaError, match="GiB on disk"):
        Arena.temporary(many, enroll, like=LIKE, asked=10**9, folder=tmp_path)


def test_a_disk_that_gets_full_in_a_round_is_an_error_and_the_checkpoint_stays_whole(
    tmp_path: Path,
) -> None:
    arena = created(tmp_path / "a")
    write(arena, 1, CLIENTS)
    sealed = arena.seal()
    arena.keep(sealed)
    write(arena, 2, CLIENTS)
    arm("study.arena.staging=full@4")
    try:
        with pytest.raises(ArenaError, match=os.strerror(errno.ENOSPC)) as refused:
            write(arena, 3, CLIENTS)
    finally:
        arm("")
    assert "--resume" in refused.value.hint
    arena.settle(counted=False)
    assert holds(arena, {c: state(20 + i) for i, c in enumerate(CLIENTS)})
    arena.close()
    again = opened(tmp_path / "a", sealed)
    assert holds(again, {c: state(10 + i) for i, c in enumerate(CLIENTS)})
    again.close()


def test_two_processes_do_not_share_an_arena_and_a_dead_one_lets_go(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom tests.unit.engines.test_arena import created\n"
        "held = created(Path(sys.argv[1]))\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        before = sorted((p.name, p.stat().st_size) for p in (tmp_path / "a").iterdir())
        for use in (lambda: created(tmp_path / "a"), lambda: opened(tmp_path / "a", Sealed("id", 1, ""))):
            with pytest.raises(ArenaError, match="another process"):
                use()
        assert before == sorted((p.name, p.stat().st_size) for p in (tmp_path / "a").iterdir()), "nothing was touched"
        other.kill()
    created(tmp_path / "a").close()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _grown(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 8)


def _flipped(at: int) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 4
        path.write_bytes(content)

    return flip


def _header(**changed: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **changed}), encoding="utf-8")

    return write


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("states", _cut),
        ("states", _grown),
        ("states", Path.unlink),
        ("states", _flipped(5)),
        ("stamps", _cut),
        ("stamps", Path.unlink),
        ("stamps", _flipped(0)),
        ("stamps", _flipped(7)),
        ("stamps", _flipped(24)),
        ("arena.json", Path.unlink),
        ("arena.json", _cut),
        ("arena.json", lambda path: path.write_bytes(b"[" * 100_000)),
        ("arena.json", lambda path: path.write_bytes(b"\xff")),
        ("arena.json", lambda path: path.write_text("[]", encoding="ascii")),
        ("arena.json", _header(version=2)),
        ("arena.json", _header(extra=1)),
        ("arena.json", _header(clients=8)),
        ("arena.json", _header(id="0")),
    ],
)
def test_what_was_changed_or_cut_off_is_refused(tmp_path: Path, name: str, harm: Callable[[Path], object]) -> None:
    arena = created(tmp_path / "a")
    write(arena, 1, CLIENTS)
    sealed = arena.seal()
    arena.close()
    harm(tmp_path / "a" / name)
    with pytest.raises(ArenaError) as refused:
        opened(tmp_path / "a", sealed)
    assert "--resume" in refused.value.hint


def test_an_arena_of_others_is_refused(tmp_path: Path) -> None:
    arena = created(tmp_path / "a")
    write(arena, 1, CLIENTS)
    sealed = arena.seal()
    arena.close()
    with pytest.raises(ArenaError, match="names"):
        opened(tmp_path / "a", sealed, clients=[*CLIENTS[:-1], "other"])
    with pytest.raises(ArenaError, match="clients"):
        opened(tmp_path / "a", sealed, clients=CLIENTS[:-1])
    with pytest.raises(ArenaError, match="row_bytes"):
        opened(tmp_path / "a", sealed, like={"v": torch.zeros(2)})
    with pytest.raises(ArenaError, match="stamps"):
        opened(tmp_path / "a", sealed._replace(generation=0))
    with pytest.raises(ArenaError, match="id"):
        opened(tmp_path / "a", sealed._replace(arena="another"))
    (tmp_path / "file").touch()
    with pytest.raises(ArenaError, match="cannot be used"):
        created(tmp_path / "file" / "a")


def test_each_process_may_have_its_own_for_some_of_the_clients(tmp_path: Path) -> None:
    parts = [created(tmp_path / str(k), CLIENTS[k::2]) for k in range(2)]
    for k, part in enumerate(parts):
        write(part, 1, CLIENTS[k::2])
        assert holds(part, {c: state(10 + CLIENTS.index(c)) for c in CLIENTS[k::2]})
        assert same(part.read(CLIENTS[1 - k], shared()), enroll(shared())), "others are newcomers here"
        part.close()


@pytest.fixture(scope="module")
def dying() -> Iterator[Callable[..., int]]:
    """Lets a process work on an arena; how it ended."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.unit.engines.killed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:

        def run(folder: Path, seed: int, *, failpoints: str = "", cpu_s: float = 0.0) -> int:
            assert program.stdin is not None and program.stdout is not None
            program.stdin.write(
                json.dumps({"folder": str(folder), "seed": seed, "failpoints": failpoints, "cpu_s": cpu_s}) + "\n"
            )
            program.stdin.flush()
            return int(program.stdout.readline())

        yield run
        program.stdin.close()  # type: ignore[union-attr]


def whole(folder: Path, seed: int) -> int:
    """The rounds that the checkpoint has, after it was held against what it must hold."""
    arena, done = killed.resumed(folder)
    found, wanted = dict(arena.committed()), killed.expected(seed, done)
    arena.close()
    assert set(found) == set(wanted) and all(same(found[c], wanted[c]) for c in wanted), done
    return done


@pytest.mark.parametrize(("point", "at"), [*((p, 1) for p in MAKING), *((p, at) for p in WORKING for at in (1, 2, 13))])
def test_a_kill_at_any_step_leaves_the_last_checkpoint_whole_and_the_study_goes_on(
    tmp_path: Path, dying: Callable[..., int], point: str, at: int
) -> None:
    assert dying(tmp_path, 5, failpoints=f"{point}=kill@{at}") == -signal.SIGKILL
    before = whole(tmp_path, 5)
    killed.work(tmp_path, 5, until=before + 20)
    assert before <= whole(tmp_path, 5) <= before + 20


def test_a_kill_at_any_moment_leaves_the_last_checkpoint_whole(tmp_path: Path, dying: Callable[..., int]) -> None:
    drawn, furthest = random.Random(3), 0
    for _ in range(40):
        ended = dying(tmp_path, 7, cpu_s=drawn.uniform(0.002, 0.06))
        assert ended in (0, -signal.SIGVTALRM)
        done = whole(tmp_path, 7)
        assert done >= furthest, "what was kept stays kept"
        furthest = done
    assert furthest > 0
