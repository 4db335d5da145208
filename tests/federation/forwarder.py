"""A TCP forwarder between nodes and their coordinator, whose target changes, and which can become a black hole."""

from __future__ import annotations

import contextlib
import socket
import threading

PIECE_BYTES = 1 << 14


class Forwarder:
    """Listens on a port of its own, and passes bytes to and fro until it is told not to."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._passing = threading.Event()
        self._passing.set()
        self.swallowing = threading.Event()
        """Set once bytes of a node are held back."""
        self._spared = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def hold_after(self, spared: int) -> None:
        """Pass that many bytes more of each connection's next piece towards the coordinator, then none."""
        self._spared = spared
        self.swallowing.clear()
        self._passing.clear()

    def go_on(self) -> None:
        """Pass what was held back, and all that follows."""
        self._passing.set()

    def cut(self) -> None:
        """End every connection, with what was held back."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._passing.set()

    def close(self) -> None:
        """Listen no more."""
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            for source, sink, upwards in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass, args=(source, sink, upwards), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                if upwards and not self._passing.is_set():
                    sink.sendall(piece[: self._spared])
                    piece = piece[self._spared :]
                    self.swallowing.set()
                    self._passing.wait()
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open -= {source}
        source.close()
