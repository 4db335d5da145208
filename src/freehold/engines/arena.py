"""Personal states of a million clients, in a memory-mapped file that is sparse until it is touched.

A folder holds `arena.json` (what lies where), `states` (three rows for each client: each tensor is an array [3, clients, ...],
a client's tensors side by side, so that a client is one stretch of bytes) and `stamps` (for each row the number of the settled
round that wrote it, and a checksum). Of a client's rows one is what the last checkpoint knows, one what the last settled round
left, and one is free: so a round writes in place of neither, commits by counting one further, and a checkpoint costs what
changed since the one before. It counts once its `Sealed` is named in the study's own checkpoint, which is replaced as a whole;
what has a later stamp is forgotten when the arena is opened again. So nothing that a `kill -9` leaves half-written is read.

States are written by `pwrite`, not through the mapping: a full disk is then an error, and no SIGBUS.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freehold import durable
from freehold.core import Tree, at, stack
from freehold.engines.disk import anonymous_file, damaged, mapped, opened, using
from freehold.engines.layout import Layout
from freehold.engines.stamps import COLUMNS, SLOTS, free, latest
from freehold.errors import ArenaError
from freehold.failpoints import failpoint

HEADER, STATES, STAMPS = "arena.json", "states", "stamps"
VERSION = 1
MAPPED_BYTES = 256 << 20
"""Pages that may be mapped at a time; they are counted as this process's memory, though the kernel can take them back."""

PAGES_AROUND = 64 << 10
"""What the kernel maps around a page that is touched, at most, if it is in the page cache."""

SCRATCH_BYTES = 16 << 20
"""Memory that is kept to copy rows through, at most."""

CHUNK = 1024
"""Rows whose checksums are computed at a time."""


class Sealed(NamedTuple):
    """What a checkpoint remembers of an arena: enough to find its states again, and to notice that they are others."""

    arena: str
    generation: int
    digest: str


class Arena:
    """A `PersonalStore` on disk, for clients that are known beforehand; any process has its own, for its own clients.

    `clients` may be a part of a population; others are read as newcomers. Every state is shaped `like` one of them.
    """

    def __init__(self, clients: Sequence[str], enroll: Callable[[Tree], Tree], *, like: Tree, folder: Path | None) -> None:
        """Use `create`, `open` or `temporary`."""
        self._clients, self._enroll, self._layout, self._folder = clients, enroll, Layout.of(like), folder
        self._index = {client: i for i, client in enumerate(clients)}
        self._settled = self._kept = 0
        self._pending: list[Tensor] = []
        self._changed = torch.zeros(len(clients), dtype=torch.bool)
        self._mapped = 0
        self._spare: Tensor | None = None
        self._files: list[int] = []
        self.id = secrets.token_hex(8)

    @classmethod
    def temporary(
        cls, clients: Sequence[str], enroll: Callable[[Tree], Tree], *, like: Tree, asked: int, folder: Path = Path("/var/tmp")
    ) -> Arena:
        """An arena without a name, which ends with this process; `asked` as in `create`."""
        made = cls(clients, enroll, like=like, folder=None)
        with using(folder):
            made._refuse_without_room(folder, asked, slots=SLOTS - 1)
            made._map(new=True, anonymous=folder)
        return made

    @classmethod
    def create(
        cls, folder: Path, clients: Sequence[str], enroll: Callable[[Tree], Tree], *, like: Tree, asked: int | None = None
    ) -> Arena:
        """A new arena in `folder`, in place of what is there; at most `asked` clients will ever be written (None: all).

        Raises ArenaError, before anything is written, where the disk has no room for these, or another process uses it.
        """
        made = cls(clients, enroll, like=like, folder=folder)
        with using(folder):
            there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
            made._refuse_without_room(there, len(clients) if asked is None else asked, slots=SLOTS)
            folder.mkdir(parents=True, exist_ok=True)
            made._map(new=True)
            durable.write(folder / HEADER, json.dumps(made._header()).encode(), point="study.arena")
        return made

    @classmethod
    def open(cls, folder: Path, clients: Sequence[str], enroll: Callable[[Tree], Tree], *, like: Tree, at: Sealed) -> Arena:
        """The arena as it was when `at` was sealed; all its states are read, and held against their checksums.

        Raises ArenaError where it is damaged, of other clients or states, or used by another process.
        """
        made = cls(clients, enroll, like=like, folder=folder)
        with using(folder):
            if not all((folder / name).is_file() for name in (HEADER, STATES, STAMPS)):
                raise damaged(folder, "it is not all there")
            made.id = at.arena
            made._map(new=False)
            try:
                made._go_back(at)
            except BaseException:
                made.close()
                raise
        return made

    def close(self) -> None:
        """Let go of files and mappings."""
        for name in ("_rows", "_table", "_mapping"):
            self.__dict__.pop(name, None)
        while self._files:
            os.close(self._files.pop())

    def read(self, client: str, shared: Tree) -> Tree:
        """The committed state, or a first one, which is not kept: reading changes nothing."""
        return at(self.gather([client], shared), 0)

    def stage(self, client: str, personal: Tree) -> None:
        """Keep a new state as pending."""
        self.scatter([client], stack([personal]))

    def gather(self, clients: Sequence[str], shared: Tree) -> Tree:
        """What `read` gives for each, as one tree with a leading client axis."""
        index = torch.tensor([self._index.get(client, -1) for client in clients], dtype=torch.int64)
        slot, stamp = latest(self._table[index.clamp(min=0)], self._settled)
        known = ((stamp > 0) & (index >= 0)).nonzero().flatten()
        if len(known) == len(index):
            return self._layout.unpack(self._read(index, slot))
        rows = self._layout.pack(stack([self._enroll(shared)]), self._scratch(1)).repeat(len(index), 1)
        if len(known):  # others are not even looked at: the kernel would make pages of what was never written
            rows[known] = self._read(index[known], slot[known])
        return self._layout.unpack(rows)

    def scatter(self, clients: Sequence[str], stacked: Tree) -> None:
        """`stage` for each, from one tree with a leading client axis; it is on its way to the disk at once."""
        try:
            index = torch.tensor([self._index[client] for client in clients], dtype=torch.int64)
        except KeyError as unknown:
            raise ArenaError(f"The arena has no client {unknown.args[0]}.", hint="It was made for others.") from None
        rows = self._layout.pack(stacked, self._scratch(len(clients)))
        slot = free(self._table[index], self._settled, self._kept)
        with using(self._folder or Path("/var/tmp")):
            self._write(index, slot, rows)
        self._pending.append(index)
        self._table[index, slot] = self._settled + 1

    def settle(self, counted: bool) -> None:
        """Commit what is pending, or drop it."""
        failpoint("study.arena.settling")
        for index in self._pending:
            if counted:
                self._changed[index] = True
            else:
                stamps = self._table[index, :SLOTS]
                self._table[index, :SLOTS] = torch.where(stamps > self._settled, 0, stamps)
        self._settled += int(counted and bool(self._pending))
        self._pending = []
        failpoint("study.arena.settled")

    def committed(self) -> Mapping[str, Tree]:
        """All committed states, each read when it is asked for: a view, which the next `settle` changes."""
        return _Committed(self)

    def restore(self, states: Mapping[str, Tree]) -> None:
        """Start from these states; what was sealed before cannot be opened any more."""
        self._table.zero_()
        self._pending, self._settled, self._kept = [], 0, 0
        for client, state in states.items():
            self.stage(client, state)
        self.settle(counted=True)

    def seal(self) -> Sealed:
        """Put all that is committed on the disk, for a checkpoint: once that names it, say `keep`."""
        if self._folder is None:
            raise ArenaError("A temporary arena has no checkpoint.", hint="Give it a folder.")
        changed = self._changed.nonzero().flatten()
        for part in changed.split(CHUNK):
            slot, stamp = latest(self._table[part], self._settled)
            self._table[part, SLOTS + slot] = self._checksums(part, slot, stamp)
        self._changed[changed] = False
        failpoint("study.arena.sealing")
        with using(self._folder):
            durable.sync(self._folder / STATES)
            durable.sync(self._folder / STAMPS)
        failpoint("study.arena.sealed")
        return Sealed(self.id, self._settled, self._digest())

    def keep(self, sealed: Sealed) -> None:
        """A checkpoint names this: its rows are not written over until the next one is kept."""
        self._kept = sealed.generation

    def _header(self) -> dict[str, Any]:
        names = hashlib.blake2b("\0".join(self._clients).encode(), digest_size=16).hexdigest()
        return {
            "format": "freehold arena",
            "version": VERSION,
            "id": self.id,
            "clients": len(self._clients),
            "names": names,
            "row_bytes": self._layout.row_bytes,
            "tensors": self._layout.told(),
        }

    def _check_header(self) -> None:
        assert self._folder is not None
        try:
            found = json.loads((self._folder / HEADER).read_bytes())
        except (ValueError, RecursionError):
            raise damaged(self._folder, f"{HEADER} is not JSON") from None
        wanted = self._header()
        if not isinstance(found, dict) or found.keys() != wanted.keys():
            raise damaged(self._folder, f"{HEADER} has other fields")
        for name, value in wanted.items():
            if found[name] != value:
                raise damaged(self._folder, f"{name} is not that of this study")

    def _map(self, *, new: bool, anonymous: Path | None = None) -> None:
        """Open, lock and map the files; empty ones where `new`."""
        folder = self._folder or Path()
        sizes = (SLOTS * len(self._clients) * self._layout.row_bytes, len(self._clients) * COLUMNS * 8)
        try:
            for name in (STATES, STAMPS):
                self._files.append(anonymous_file(anonymous) if anonymous else opened(folder / name))
            self._lock()
            if new and self._folder:
                durable.remove(folder / HEADER, point="study.arena")
            if not new:
                self._check_header()
            for fd, size in zip(self._files, sizes, strict=True):
                if new:
                    os.ftruncate(fd, 0)
                    os.ftruncate(fd, size)
                elif os.fstat(fd).st_size != size:
                    raise damaged(folder, f"a file has {os.fstat(fd).st_size} bytes instead of {size}")
            if new and sizes[1]:
                os.posix_fallocate(self._files[1], 0, sizes[1])  # written as memory, where a full disk would be a SIGBUS
            self._mapping = mapped(self._files[0], sizes[0])
            self._rows = torch.frombuffer(self._mapping, dtype=torch.uint8)[: sizes[0]].view(-1, self._layout.row_bytes or 1)
            table = mapped(self._files[1], sizes[1])
            self._table = torch.frombuffer(table, dtype=torch.int64)[: sizes[1] // 8].view(-1, COLUMNS)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._files[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArenaError(
                f"The personal states in {self._folder} are in use by another process.",
                hint="Wait until it has ended, or choose another folder: --checkpoint DIR.",
            ) from None

    def _refuse_without_room(self, there: Path, asked: int, *, slots: int) -> None:
        clients = min(asked, len(self._clients))
        need = clients * slots * self._layout.row_bytes + len(self._clients) * COLUMNS * 8
        found = os.statvfs(there)
        free = found.f_bavail * found.f_frsize
        if need > free:
            raise ArenaError(
                f"The personal states of {clients} clients may need {need / 2**30:.1f} GiB on disk, but {there} has only "
                f"{free / 2**30:.1f} GiB of free space.",
                hint="Make room, choose a folder on another disk (--checkpoint DIR), or ask fewer clients or a smaller model.",
            )

    def _go_back(self, to: Sealed) -> None:
        assert self._folder is not None
        self._settled = self._kept = to.generation
        stamps = self._table[:, :SLOTS]
        later = ((stamps > to.generation) | (stamps < 0)).nonzero()
        self._table[later[:, 0], later[:, 1]] = 0
        if self._digest() != to.digest:
            raise damaged(self._folder, "its stamps are not those of the checkpoint")
        there = latest(self._table, self._settled)[1].nonzero().flatten()
        for part in there.split(CHUNK):
            slot, stamp = latest(self._table[part], self._settled)
            if not torch.equal(self._table[part, SLOTS + slot], self._checksums(part, slot, stamp)):
                raise damaged(self._folder, "a state differs from what was written")

    def _digest(self) -> str:
        """Of the stamps and checksums of all committed states."""
        slot, stamp = latest(self._table, self._settled)
        sums = torch.where(stamp > 0, self._table.gather(1, SLOTS + slot.unsqueeze(1)).squeeze(1), 0)
        return hashlib.sha256(torch.stack([stamp, sums]).numpy().data).hexdigest()

    def _checksums(self, index: Tensor, slot: Tensor, stamp: Tensor) -> Tensor:
        rows = self._read(index, slot).numpy()
        return torch.tensor(
            [zlib.crc32(row, s & 0xFFFFFFFF) for row, s in zip(rows, stamp.tolist(), strict=True)], dtype=torch.int64
        )

    def _read(self, index: Tensor, slot: Tensor) -> Tensor:
        if not self._layout.row_bytes:
            return torch.empty(len(index), 0, dtype=torch.uint8)
        rows = self._scratch(len(index))
        torch.index_select(self._rows, 0, slot * len(self._clients) + index, out=rows)
        self._mapped += len(index) * (self._layout.row_bytes + PAGES_AROUND)
        if self._mapped > MAPPED_BYTES:
            self._mapping.madvise(mmap.MADV_DONTNEED)  # of a shared mapping: nothing is lost, the kernel has the pages
            self._mapped = 0
        return rows

    def _scratch(self, count: int) -> Tensor:
        """Rows to work in until the next call: new memory is dear, because the kernel clears it."""
        width = self._layout.row_bytes
        if count * width > SCRATCH_BYTES:
            return torch.zeros(count, width, dtype=torch.uint8)
        if self._spare is None or len(self._spare) < count:
            self._spare = torch.zeros(count, width, dtype=torch.uint8)
        return self._spare[:count]

    def _write(self, index: Tensor, slot: Tensor, rows: Tensor) -> None:
        width = self._layout.row_bytes
        if not width:
            return
        content, fd = rows.numpy().reshape(-1).data, self._files[0]
        for i, row in enumerate((slot * len(self._clients) + index).tolist()):
            failpoint("study.arena.staging")
            rest, place = content[i * width : (i + 1) * width], row * width
            while rest:
                done = os.pwrite(fd, rest, place)
                rest, place = rest[done:], place + done


class _Committed(Mapping[str, Tree]):
    """client -> committed state, read when it is asked for."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def __getitem__(self, client: str) -> Tree:
        if client not in self:
            raise KeyError(client)
        return self._arena.read(client, {})

    def __contains__(self, client: object) -> bool:
        index = self._arena._index.get(client, -1) if isinstance(client, str) else -1
        return index >= 0 and bool(latest(self._arena._table[index : index + 1], self._arena._settled)[1] > 0)

    def __iter__(self) -> Iterator[str]:
        return (self._arena._clients[i] for i in self._there().tolist())

    def __len__(self) -> int:
        return len(self._there())

    def _there(self) -> Tensor:
        return latest(self._arena._table, self._arena._settled)[1].nonzero().flatten()
