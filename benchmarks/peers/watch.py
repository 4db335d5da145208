"""What processes take in memory and processor time while they run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType

from benchmarks.federation import children, cpu_s, rss_kb

EVERY_S = 0.05


def tree(pid: int) -> list[int]:
    """A process and all below it, as far as they still live."""
    try:
        return [pid, *(below for child in children(pid) for below in tree(child))]
    except OSError:
        return []


class Watch:
    """The most memory, in MB, that each of some trees of processes took together, from `start` on.

    Pages that two processes share count in each of them.
    """

    def __init__(self, roots: Callable[[], Mapping[str, int]]) -> None:
        """`roots()`: the first process of each tree."""
        self._roots = roots
        self.peak_mb: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}
        self._seen: dict[str, dict[int, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            for name, pid in self._roots().items():
                total = 0
                for each in tree(pid):
                    try:
                        total += rss_kb(each)
                        self._seen.setdefault(name, {})[each] = cpu_s(each)
                    except OSError:
                        continue
                self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), total / 1024)
                self.cpu_s[name] = sum(self._seen.get(name, {}).values())

    def most(self, prefix: str) -> float:
        """The largest peak of the trees whose names begin so, in MB."""
        return round(max((mb for name, mb in self.peak_mb.items() if name.startswith(prefix)), default=0.0), 1)
