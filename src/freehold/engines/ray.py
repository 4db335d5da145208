"""A crew on a Ray cluster that is there already: each worker keeps the personal states of its own clients, hears the shared
state once a round, and answers with a partial tally.

Ray copies Python objects between its processes by pickle, so a cluster is to be one's own: whoever can reach its ports can run
code on it. Freehold itself puts bytes and layouts in its hands, nothing that came from elsewhere.

A worker's states are lost with it. The driver has a copy, `MIRRORED_EVERY` rounds old at most, and the shared states of the
rounds since: the clients of a lost worker go to another one with that copy, which repeats those rounds for them.
"""

from __future__ import annotations

import logging
import signal
import socket
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from freehold.core import Algorithm, Round, Tree, leaves
from freehold.engines.feed import Feed
from freehold.engines.loop import LoopEngine
from freehold.engines.packed import Layout, layout_of, looking_into, write
from freehold.engines.shards import Answer, Ask, Build, Lost, ShardedEngine, answered, answers, balanced
from freehold.engines.table import Table, table_of
from freehold.errors import ClusterUnfit, MissingExtra, SimulationError, WorkersLost

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError
except ImportError as error:
    raise MissingExtra("--engine ray needs ray, which is not installed.", hint="pip install 'freehold[ray]'") from error

MIRRORED_EVERY = 10
"""Rounds after which the driver fetches what states have changed; what is lost with a worker is repeated from there."""

_START_S = 120.0
_CONNECT_S = 5.0


class _Packed(NamedTuple):
    """A tree as Ray carries it: one array of bytes, which it neither copies nor looks into on one machine."""

    data: Any
    layout: Layout


def _packed(tree: Tree) -> _Packed:
    layout = layout_of(tree)
    data = torch.zeros(max(1, layout.size), dtype=torch.uint8).numpy()
    write(looking_into(data, layout), tree)
    return _Packed(data, layout)


def _unpacked(packed: _Packed, *, copy: bool = True) -> Tree:
    """The tree; without a copy it must not be written to."""
    if copy:
        return looking_into(packed.data.copy(), packed.layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that the memory is read-only; nobody writes to it
        return looking_into(packed.data, packed.layout)


class _Worker:
    """An actor. It has a place of clients at first, and those of lost workers as time goes on."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._engines: dict[int, LoopEngine] = {}

    def about(self) -> str:
        """The version of Freehold here."""
        return version("freehold")

    def load(self, place: int, build: Build, table: _Packed, names: tuple[tuple[str, ...], tuple[str, ...]], seed: int) -> None:
        """Build the engine of a place, without states."""
        self._engines[place] = build(Table(_unpacked(table, copy=False), *names).feed(seed))

    def unload(self) -> None:
        """The cell is done."""
        self._engines = {}

    def answer(self, place: int, ask: Ask, shared: _Packed) -> tuple[_Packed, float, int]:
        """Answer about the clients of a place."""
        said = answered(self._engines[place], _unpacked(shared), ask)
        return _packed(said.tree), said.weight, said.clients

    def restore(self, place: int, states: _Packed) -> None:
        """Start from these states."""
        self._engines[place].store.restore(_unpacked(states))

    def repeat(self, place: int, round: Round, clients: tuple[str, ...], shared: _Packed) -> None:
        """Do again what a lost worker did in a round that counted."""
        self._engines[place].collect(round, _unpacked(shared), clients)
        self._engines[place].settle(counted=True)


class _Loaded(NamedTuple):
    """What a worker is told of a cell."""

    build: Any
    table: Any
    names: tuple[tuple[str, ...], tuple[str, ...]]
    seed: int


class RayCluster:
    """Workers on a cluster, one for each processor that is free, or as many as are asked for; kept from cell to cell."""

    noun, remedy = "worker on Ray", "Look at `ray status`; then the same command with --resume goes on from the last checkpoint."

    def __init__(self, address: str | None, workers: int | None = None) -> None:
        """Connects when the first engine is asked for. `address`: as `ray.init` takes it."""
        self._address, self._wanted = address, workers
        self._workers: list[Any] = []
        self.hosts: list[int] = []
        """By place: the number of the worker that has it."""
        self._loaded: _Loaded | None = None
        self._table: tuple[Feed, Any, Table] | None = None
        self._answers: dict[int, Any] = {}
        self._ours = False
        self.places = 0
        self.shared: Any = None
        """Ray's reference to what was broadcast last."""
        self.verdicts: dict[int, bool] = {}
        """Place -> whether its last round counted: the next question tells it."""

    def engine(self, algorithm: Algorithm, feed: Feed, build: Build) -> ShardedEngine:
        """The engine of a cell. Raises ClusterUnfit, and what `build` raises on a worker."""
        if not self._workers:
            self._connect()
        if self._table is None or self._table[0].x is not feed.x or self._table[0].rows is not feed.rows:
            table = table_of(feed)
            self._table = feed, ray.put(_packed(table.tree)), table
        _, reference, table = self._table
        self._loaded = _Loaded(ray.put(build), reference, (table.clients, table.splits), feed.seed)
        self.places = len(self._workers)
        self.hosts, self.verdicts, self._answers = list(range(self.places)), {}, {}
        for loading in [self._load(place) for place in range(self.places)]:
            with _told():
                ray.get(loading)
        personal = algorithm.enroll(algorithm.broadcast(algorithm.init()))
        return ShardedEngine(algorithm, feed, self, MirroredStates(self, feed, personal))

    def close(self) -> None:
        """End the workers, and leave the cluster as it was."""
        for worker in self._workers:
            with suppress(RayError):
                ray.kill(worker)
        self._workers, self._loaded, self._table, self.shared, self._answers = [], None, None, None, {}
        if self._ours and ray.is_initialized():
            ray.shutdown()

    def broadcast(self, shared: Tree) -> None:
        """Put the shared state where Ray fetches it for each machine once."""
        self.shared = ray.put(_packed(shared))

    def send(self, place: int, ask: Ask) -> None:
        """Ask one worker."""
        worker = self._workers[self.hosts[place]]
        told = Ask(**{**vars(ask), "counted": self.verdicts.pop(place, None)})
        self._answers[place] = worker.answer.remote(place, told, self.shared)

    def receive(self, places: Collection[int]) -> tuple[int, Answer | Lost | Exception]:
        """The next answer of one of these, or what was raised there."""
        by = {self._answers[place]: place for place in places}
        (ready,), _ = ray.wait(list(by), num_returns=1)
        try:
            packed, weight, clients = ray.get(ready)
        except RayTaskError as error:
            return by[ready], _cause(error)
        except RayError as error:
            return by[ready], Lost(type(error).__name__)
        return by[ready], Answer(_unpacked(packed), weight, clients)

    def renew(self, place: int) -> None:
        """Give a lost worker's place to the one that has fewest. Raises WorkersLost where none is left."""
        lost = self.hosts[place]
        with suppress(RayError):
            ray.kill(self._workers[lost])  # cut off is not dead, and would come back with states of another round
        self.verdicts.pop(place, None)
        left = {host: self.hosts.count(host) for host in range(len(self._workers)) if host != lost}
        while left:
            host = min(left, key=lambda h: left[h])
            self.hosts[place] = host
            try:
                ray.get(self._load(place))
                return
            except RayTaskError as error:
                raise _cause(error) from None
            except RayError:
                del left[host]
        raise WorkersLost("The last worker on Ray is lost.", hint=self.remedy)

    def abandon(self, places: Collection[int]) -> None:
        """Nobody waits for the answers of these any more."""
        for place in places:
            self._answers.pop(place, None)

    def bring_back(self, place: int, states: Mapping[str, Tree], rounds: Sequence[tuple[Round, tuple[str, ...], Any]]) -> None:
        """Restore a place and repeat rounds there. A worker that is lost over it shows when it is asked next."""
        worker = self._workers[self.hosts[place]]
        doing = [worker.restore.remote(place, ray.put(_packed(states)))]
        doing += [worker.repeat.remote(place, round, clients, shared) for round, clients, shared in rounds]
        try:
            ray.get(doing)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError:
            return

    def _load(self, place: int) -> Any:
        assert self._loaded is not None
        return self._workers[self.hosts[place]].load.remote(place, *self._loaded)

    def _connect(self) -> None:
        if not ray.is_initialized():
            _check_reachable(self._address)
            with _own_signals(), _told():
                ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
            self._ours = True
        free = int(ray.available_resources().get("CPU", 0))
        count = self._wanted or free
        if not 0 < count <= free:
            raise ClusterUnfit(
                f"The Ray cluster has {free} processors free, and {max(1, count)} are needed.",
                hint="Wait for its other work, add nodes, or say --processes N.",
            )
        actor = ray.remote(num_cpus=1, max_restarts=0)(_Worker)
        self._workers = [actor.remote() for _ in range(count)]
        with _told():
            found = set(ray.get([worker.about.remote() for worker in self._workers], timeout=_START_S))
        if found != {version("freehold")}:
            raise ClusterUnfit(
                f"The cluster has Freehold {', '.join(sorted(found))}; this is {version('freehold')}.",
                hint="Give all nodes the same image.",
            )


class MirroredStates:
    """Personal states that stay on their workers: who has whom is settled once, evenly by examples."""

    def __init__(self, cluster: RayCluster, feed: Feed, personal: Tree) -> None:
        clients = tuple(feed.rows)
        parts = balanced(clients, lambda c: 1.0 + feed.size(c), cluster.places)
        self._cluster = cluster
        self._home = {client: place for place, part in enumerate(parts) for client in part}
        self._empty = None if any(True for _ in leaves(personal)) else personal
        self._mirror: dict[str, Tree] = {}
        self._since: list[tuple[Round, tuple[str, ...], Any]] = []
        self._pending: tuple[Round, tuple[str, ...]] | None = None

    def parts(self, clients: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Each client where it is at home."""
        found: list[list[str]] = [[] for _ in range(self._cluster.places)]
        for client in clients:
            found[self._home[client]].append(client)
        return [tuple(part) for part in found]

    def collecting(self, round: Round, clients: Sequence[str]) -> None:
        """These are about to get new states."""
        self._pending = round, tuple(clients)

    def settle(self, counted: bool) -> None:
        """Their workers are told when they are asked next; of what counted the driver fetches a copy now and then."""
        if self._pending is None:
            return
        (round, clients), self._pending = self._pending, None
        for place, part in enumerate(self.parts(clients)):
            if part:
                self._cluster.verdicts[place] = counted
        if counted and self._empty is not None:
            self._mirror |= dict.fromkeys(clients, self._empty)
        elif counted:
            self._since.append((round, clients, self._cluster.shared))
            if len(self._since) >= MIRRORED_EVERY:
                self._fetch()

    def renewed(self, place: int) -> None:
        """Restore a lost worker's states elsewhere: the copy, and what was done since once more."""
        mine = {c: state for c, state in self._mirror.items() if self._home[c] == place}
        parts = [(round, self.parts(clients)[place], shared) for round, clients, shared in self._since]
        self._cluster.bring_back(place, mine, [each for each in parts if each[1]])

    def committed(self) -> Mapping[str, Tree]:
        """client -> its committed state."""
        self._fetch()
        return dict(self._mirror)

    def restore(self, states: Mapping[str, Tree]) -> None:
        """Start from these."""
        self._mirror, self._since, self._pending = dict(states), [], None
        for place in range(self._cluster.places):
            self.renewed(place)

    def _fetch(self) -> None:
        changed = tuple(dict.fromkeys(client for _, clients, _ in self._since for client in clients))
        asks = {p: Ask(about="states", clients=part) for p, part in enumerate(self.parts(changed)) if part}
        for answer in answers(self._cluster, asks, self.renewed).values():
            self._mirror |= answer.tree
        self._since = []


@contextmanager
def _told() -> Iterator[None]:
    """What Ray says while workers start, as an error of ours."""
    try:
        yield
    except RayTaskError as error:
        raise _cause(error) from None
    except GetTimeoutError:
        raise ClusterUnfit("The cluster's workers do not start.", hint="Look at `ray status`.") from None
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterUnfit(
            f"The Ray cluster cannot be used: {str(error).strip().splitlines()[0]}", hint="Run this on one of its nodes."
        ) from error


def _cause(error: RayTaskError) -> Exception:
    """What a worker raised."""
    cause = error.cause
    if isinstance(cause, Exception):
        return cause
    return SimulationError(str(error).strip().splitlines()[-1], hint="Run with --engine vector to see where.")


def _check_reachable(address: str | None) -> None:
    """Raise ClusterUnfit at once where nobody listens: Ray would try for a minute."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError):
        raise ClusterUnfit(
            f"Nobody answers at {address}.", hint="Look at the address with `ray status`; the port is 6379 unless it was changed."
        ) from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM over, which is to end a study between two rounds."""
    before: Callable[..., Any] | int | None = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            with suppress(ValueError):  # not in the main thread, where Ray takes nothing over
                signal.signal(signal.SIGTERM, before)
