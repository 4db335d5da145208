"""What other coordinators over the same PostgreSQL have written, as they commit it: LISTEN and NOTIFY, in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from freehold.coordinator.store import CHANNEL, Store

Told = Callable[[str, list[str]], None]
"""(kind, arguments). Kind "everything": changes may have been missed."""

_TICK_S = 1.0
_AGAIN_S = 0.5


class Watch:
    """Listens until it is closed. Its own announcements are left out."""

    def __init__(self, store: Store, told: Told) -> None:
        """`told` is called in the thread."""
        self._store, self._told = store, told
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(sa.exc.SQLAlchemyError, OSError, self._store.engine.dialect.loaded_dbapi.Error):
                self._listen()
            self._stop.wait(_AGAIN_S)

    def _listen(self) -> None:
        pooled = self._store.engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        try:
            connection.autocommit = True
            connection.execute(f"listen {CHANNEL}")
            self._told("everything", [])
            while not self._stop.is_set():
                for note in connection.notifies(timeout=_TICK_S):
                    sender, kind, *arguments = note.payload.split(" ")
                    if sender != self._store.name:
                        self._told(kind, arguments)
                    if self._stop.is_set():
                        return
        finally:
            connection.close()
