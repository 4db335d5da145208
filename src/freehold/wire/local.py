"""Between processes of one machine: messages over a socket pair, and bytes in sealed memory that nobody can change any more."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final

import msgspec

from freehold.errors import PeerGone

LIMIT_BYTES: Final = 180_000
"""Of one message; bytes of any size travel as sealed memory."""

PIECE_BYTES: Final = 1 << 18

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MOST_FDS = 8


class Channel:
    """One end of a pair of sockets that keep message boundaries and pass file descriptors."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send a message with descriptors, which stay open here; raises PeerGone."""
        body = msgspec.json.encode(message)
        if len(body) > LIMIT_BYTES:
            raise ValueError(f"a message of {len(body)} bytes")
        try:
            socket.send_fds(self.socket, [body], list(fds))
        except OSError as error:
            raise PeerGone("The process at the other end of a channel has ended.", hint="It will be started again.") from error

    def receive(self, kind: type[msgspec.Struct] | object, *, timeout_s: float | None = None) -> tuple[object, list[int]]:
        """The next message, and its descriptors, which the receiver closes; raises PeerGone, TimeoutError, ValidationError."""
        self.socket.settimeout(timeout_s)
        try:
            body, fds, flags, _ = socket.recv_fds(self.socket, LIMIT_BYTES, _MOST_FDS)
        except TimeoutError:
            raise
        except OSError as error:
            raise PeerGone("The process at the other end of a channel has ended.", hint="It will be started again.") from error
        finally:
            self.socket.settimeout(None)
        try:
            if not body:
                raise PeerGone("The process at the other end of a channel has ended.", hint="It will be started again.")
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise msgspec.ValidationError("a message longer than the limit")
            try:
                return msgspec.json.decode(body, type=kind), list(fds)
            except RecursionError as error:  # brackets in brackets; no message here is like that
                raise msgspec.ValidationError("a message that is nested too deeply") from error
        except BaseException:
            close(fds)
            raise

    def close(self) -> None:
        """Close this end; the other one's `receive` then raises PeerGone."""
        self.socket.close()


def pair() -> tuple[Channel, socket.socket]:
    """A channel, and the raw other end to hand to a new process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * LIMIT_BYTES)
    return Channel(ours), theirs


def channel_from(fd: int) -> Channel:
    """The channel whose descriptor was handed to this process."""
    return Channel(socket.socket(fileno=fd))


def close(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


class Memory:
    """Bytes being written to memory that is sealed before it is handed over."""

    def __init__(self, name: str) -> None:
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append."""
        rest = memoryview(piece).cast("B")
        while rest:
            rest = rest[os.write(self.fd, rest) :]

    def seal(self) -> int:
        """Forbid every change for ever; the descriptor, which the caller closes."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        return self.fd


def sealed(body: bytes | memoryview, name: str) -> int:
    """Sealed memory with these bytes; the caller closes the descriptor."""
    memory = Memory(name)
    memory.write(body)
    return memory.seal()


def is_sealed(fd: int) -> bool:
    """Whether nobody can change what the descriptor shows."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False


class Pieces:
    """What a descriptor shows, piece by piece and as often as needed; it is never mapped, so it takes no memory."""

    def __init__(self, fd: int) -> None:
        self.fd, self.length = fd, os.fstat(fd).st_size

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        while at < self.length:
            piece = os.pread(self.fd, min(PIECE_BYTES, self.length - at), at)
            at += len(piece)
            yield piece


class Mapped:
    """What a descriptor shows, mapped for reading; use as a context manager."""

    def __init__(self, fd: int) -> None:
        self._length = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, self._length, prot=mmap.PROT_READ) if self._length else None

    def __enter__(self) -> memoryview:
        self._view = memoryview(self._map if self._map is not None else b"")
        return self._view

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # An array may still look at it; the map then goes when the array does.
        try:
            self._view.release()
            if self._map is not None:
                self._map.close()
        except BufferError:
            pass


def read(fd: int) -> bytes:
    """A copy of what a descriptor shows."""
    with Mapped(fd) as view:
        return bytes(view)
