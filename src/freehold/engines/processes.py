"""A crew of processes on this machine, one thread each: the table, the shared state, personal states and partial tallies lie in
memory that they share; through pipes go names, numbers and layouts."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import NamedTuple

import torch

from freehold.core import Algorithm, Tree
from freehold.engines.feed import Feed
from freehold.engines.loop import LoopEngine
from freehold.engines.packed import Layout, Memory, layout_of, shared_copy, write
from freehold.engines.shards import MOST_LOSSES, Answer, Ask, Build, Lost, ShardedEngine, answered
from freehold.engines.slots import SlotStates, SlotStore, slots_in, slots_layout
from freehold.engines.table import Table, table_of
from freehold.errors import FreeholdError, SimulationError, WorkersLost


class _Load(NamedTuple):
    """To a worker: be ready for this engine. Two descriptors follow: the table and the personal states."""

    build: bytes
    table: Layout
    clients: tuple[str, ...]
    splits: tuple[str, ...]
    seed: int
    states: Layout


class _Broadcast(NamedTuple):
    """To a worker: the shared state lies in the memory whose descriptor follows."""

    layout: Layout


class _Said(NamedTuple):
    """From a worker: an answer. The descriptor of its memory follows, unless it lies where the last one of its kind lay."""

    layout: Layout | None
    weight: float
    clients: int


@dataclass(kw_only=True)
class _Worker:
    """A process, as the parent sees it."""

    process: SpawnProcess
    channel: Connection
    tally: Tree | None = None
    """Where its partial tallies lie."""


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """What a worker is to know, and one that takes its place too."""

    message: _Load
    table: Memory
    states: Memory


class Processes:
    """So many processes, kept from cell to cell. They hold nothing that would be lost with them: a killed one costs what it was
    just computing, and the time to start another."""

    noun, remedy = "worker process", "Most often there was not enough memory: run with fewer --processes, and --resume."

    def __init__(self, places: int) -> None:
        self.places = places
        self._workers: dict[int, _Worker] = {}
        self._loaded: _Loaded | None = None
        self._kept: tuple[Feed, Table, Memory, Layout] | None = None
        self._shared: tuple[Memory, Layout, Tree] | None = None

    def engine(self, algorithm: Algorithm, feed: Feed, build: Build) -> ShardedEngine:
        """The engine of a cell: its workers are told to build theirs, and the one of the cell before is of no more use.

        Raises what `build` raises there.
        """
        table, memory, layout = self._table(feed)
        personal = algorithm.enroll(algorithm.broadcast(algorithm.init()))
        states_layout = slots_layout(personal, len(table.clients))
        states = Memory.new(states_layout.size)
        message = _Load(_dumped(build), layout, table.clients, table.splits, feed.seed, states_layout)
        self._loaded, self._shared = _Loaded(message=message, table=memory, states=states), None
        try:
            self._ready()
        except BaseException:
            self.abandon(range(self.places))  # nobody would read what the others say
            raise
        costs = {c: len(feed.rows[c]["train"]) for c in table.clients}
        slots = SlotStates(slots_in(states, states_layout), table.clients, lambda c: float(1 + costs[c]), self.places)
        return ShardedEngine(algorithm, feed, self, slots)

    def close(self) -> None:
        """End all processes; they keep nothing, so whatever they do is ended at once."""
        self.abandon(tuple(self._workers))
        self._loaded = self._kept = self._shared = None

    def broadcast(self, shared: Tree) -> None:
        """Write the shared state to where all workers read it."""
        layout = layout_of(shared)
        if self._shared is None or self._shared[1] != layout:
            memory = Memory.new(layout.size)
            self._shared = memory, layout, memory.tree(layout)
            for place in self._workers:
                self._tell_shared(place)
        write(self._shared[2], shared)

    def send(self, place: int, ask: Ask) -> None:
        """Ask one worker."""
        if place in self._workers:
            self._tell(place, ask)

    def receive(self, places: Collection[int]) -> tuple[int, Answer | Lost | Exception]:
        """The next answer of one of these, or what was raised there."""
        for place in places:
            if place not in self._workers:
                return place, Lost("it was ended")
        channels = {self._workers[place].channel: place for place in places}
        channel = wait(list(channels))[0]
        assert isinstance(channel, Connection)
        return channels[channel], self._received(self._workers[channels[channel]])

    def renew(self, place: int) -> None:
        """Start another process in the place of a lost one."""
        for _ in range(MOST_LOSSES):
            self.abandon([place])
            self._start(place)
            self._load(place)
            if self._is_ready(place):
                break
        else:
            self.abandon([place])
            raise WorkersLost(f"A {self.noun} ended {MOST_LOSSES} times while it started.", hint=self.remedy)
        if self._shared is not None:
            self._tell_shared(place)

    def abandon(self, places: Collection[int]) -> None:
        """End these; others are started when they are needed."""
        gone = [self._workers.pop(place) for place in places if place in self._workers]
        for worker in gone:
            worker.process.kill()
        for worker in gone:
            worker.process.join()
            worker.channel.close()

    def _ready(self) -> None:
        """All workers have their engine; they start and build side by side."""
        for place in range(self.places):
            if place not in self._workers:
                self._start(place)
        for place in range(self.places):
            self._load(place)
        for place in range(self.places):
            if not self._is_ready(place):
                self.renew(place)

    def _table(self, feed: Feed) -> tuple[Table, Memory, Layout]:
        """The feed's table in shared memory; the cells of a seed have one."""
        if self._kept is None or self._kept[0].x is not feed.x or self._kept[0].rows is not feed.rows:
            table = table_of(feed)
            self._kept = feed, table, *shared_copy(table.tree)
        return self._kept[1:]

    def _start(self, place: int) -> None:
        context = multiprocessing.get_context("spawn")  # torch has threads, which do not survive a fork
        ours, theirs = multiprocessing.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True, name=f"freehold-worker-{place}")
        with _without_interrupts():
            process.start()
        theirs.close()
        self._workers[place] = _Worker(process=process, channel=ours)

    def _load(self, place: int) -> None:
        assert self._loaded is not None
        self._workers[place].tally = None
        self._tell(place, self._loaded.message, self._loaded.table, self._loaded.states)

    def _tell_shared(self, place: int) -> None:
        assert self._shared is not None
        self._tell(place, _Broadcast(self._shared[1]), self._shared[0])

    def _tell(self, place: int, message: object, *memories: Memory) -> None:
        worker = self._workers[place]
        try:
            worker.channel.send(message)
            for memory in memories:
                send_handle(worker.channel, memory.descriptor, worker.process.pid)
        except OSError:
            pass  # it is gone, which shows when its answer is received

    def _is_ready(self, place: int) -> bool:
        """Whether it has its engine; False: it is gone."""
        said = self._received(self._workers[place])
        if isinstance(said, Exception):
            raise said
        return not isinstance(said, Lost)

    def _received(self, worker: _Worker) -> Answer | Lost | Exception:
        try:
            said: _Said | Exception = worker.channel.recv()
            if isinstance(said, Exception):
                return said
            if said.layout is not None:
                tree = Memory(recv_handle(worker.channel), said.layout.size).tree(said.layout)
                worker.tally = tree if said.clients else worker.tally
            else:
                tree = worker.tally or {}
        except (EOFError, OSError):
            worker.process.join()
            return Lost(_ending(worker.process.exitcode))
        return Answer(tree, said.weight, said.clients)


def _ending(code: int | None) -> str:
    return f"killed by signal {-code}" if code is not None and code < 0 else f"it exited with {code}"


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started in here never see a Ctrl-C: the parent alone decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Desk:
    """A worker's side of the pipe."""

    def __init__(self, channel: Connection) -> None:
        self._channel = channel
        self._engine: LoopEngine | None = None
        self._shared: Tree = {}
        self._tally: tuple[Layout, Tree, Memory] | None = None

    def serve(self) -> None:
        """Answer until the parent is gone."""
        try:
            while True:
                message = self._channel.recv()
                memories = {_Load: 2, _Broadcast: 1}.get(type(message), 0)
                descriptors = [recv_handle(self._channel) for _ in range(memories)]
                try:
                    answer = self._done(message, descriptors)
                except Exception as error:  # algorithms and models are others' code; the parent raises it
                    self._channel.send(_sendable(error))
                else:
                    if answer is not None:
                        self._say(answer)
        except (EOFError, OSError):
            return

    def _done(self, message: object, descriptors: list[int]) -> Answer | None:
        """What a message is answered with, if at all."""
        if isinstance(message, _Broadcast):
            self._shared = Memory(descriptors[0], message.layout.size).tree(message.layout)
            return None
        if isinstance(message, Ask) and self._engine is not None:
            return answered(self._engine, self._shared, message)
        assert isinstance(message, _Load)
        table, states = (Memory(d, at.size) for d, at in zip(descriptors, (message.table, message.states), strict=True))
        self._engine = self._tally = None
        found = Table(table.tree(message.table), message.clients, message.splits)
        engine = _loaded(message.build)(found.feed(message.seed))
        engine.store = SlotStore(engine.algorithm.enroll, slots_in(states, message.states), message.clients)
        self._engine = engine
        return Answer({})

    def _say(self, answer: Answer) -> None:
        layout = layout_of(answer.tree)
        if answer.clients and self._tally is not None and self._tally[0] == layout:
            write(self._tally[1], answer.tree)
            self._channel.send(_Said(None, answer.weight, answer.clients))
            return
        memory, _ = shared_copy(answer.tree)
        if answer.clients:
            self._tally = layout, memory.tree(layout), memory
        self._channel.send(_Said(layout, answer.weight, answer.clients))
        send_handle(self._channel, memory.descriptor, os.getppid())


def _serve(channel: Connection) -> None:
    """What a worker process runs."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_the_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    _Desk(channel).serve()


def _dumped(build: Build) -> bytes:
    try:
        return pickle.dumps(build)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise _no_traveler(error) from error


def _loaded(build: bytes) -> Build:
    """From the parent, and nobody else."""
    try:
        found: Build = pickle.loads(build)
    except (ImportError, AttributeError) as error:
        raise _no_traveler(error) from error
    return found


def _no_traveler(error: Exception) -> SimulationError:
    return SimulationError(
        f"The task's code cannot be had in another process ({error}).", hint="Install it as a package, or run with --processes 1."
    )


def _sendable(error: Exception) -> Exception:
    if not isinstance(error, FreeholdError):
        error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign exception does when it is copied
        return SimulationError(f"{type(error).__name__} in a worker: {error}", hint="Run with --processes 1 to see where.")
    return error
