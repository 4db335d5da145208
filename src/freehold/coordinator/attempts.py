"""How often an address may fail: a bucket of attempts for each, which fills again with time."""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable


class Attempts:
    """Counts failures by address. Memory is bounded: beyond `addresses`, the one that failed longest ago is forgotten."""

    def __init__(self, clock: Callable[[], float], *, burst: int = 10, every_s: float = 30.0, addresses: int = 4096) -> None:
        self._clock, self._burst, self._every_s, self._addresses = clock, burst, every_s, addresses
        self._failed: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> failures that still count, when
        self._lock = threading.Lock()

    def wait_s(self, address: str) -> float:
        """How long this address has to wait before it may try again; 0 when it may now."""
        with self._lock:
            return max(0.0, (self._counting(_network(address)) + 1 - self._burst) * self._every_s)

    def failed(self, address: str) -> None:
        """Count a failure."""
        network = _network(address)
        with self._lock:
            self._failed[network] = (self._counting(network) + 1, self._clock())
            self._failed.move_to_end(network)
            if len(self._failed) > self._addresses:
                self._failed.popitem(last=False)

    def _counting(self, network: str) -> float:
        count, when = self._failed.get(network, (0.0, 0.0))
        return max(0.0, count - max(0.0, self._clock() - when) / self._every_s)


def _network(address: str) -> str:
    """The address, or of IPv6 the /64, all of which one machine may use. What is no address (a Unix socket) counts as itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
