"""Two networks and a router between them, in a user namespace of their own: no rights are needed, nothing outside is touched.

What the router drops vanishes without a word to either side, as behind a firewall or a broken cable far away.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

NEAR, FAR = "10.77.0.2", "10.77.1.2"
_ROUTER = {NEAR: "10.77.0.1", FAR: "10.77.1.1"}
_FORWARDING = "/proc/sys/net/ipv4/ip_forward"


def possible() -> bool:
    """Whether this user may make such namespaces here."""
    try:
        return subprocess.run(["unshare", "-Urn", "ip", "link", "show"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Networks:
    """The two, by the address of who lives there; they end with `close`."""

    def __init__(self) -> None:
        self._holders: list[subprocess.Popen[str]] = []
        self._router = self._hold(["unshare", "-Urn"])
        self._inside = {address: self._hold([*_entering(self._router), "unshare", "-n"]) for address in (NEAR, FAR)}
        for address, inside in self._inside.items():
            router, end = _ROUTER[address], f"to-{address.split('.')[2]}"
            self._ip(self._router, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", str(inside))
            self._ip(self._router, "address", "add", f"{router}/24", "dev", end)
            self._ip(self._router, "link", "set", end, "up")
            self._ip(inside, "address", "add", f"{address}/24", "dev", "eth0")
            for name in ("lo", "eth0"):
                self._ip(inside, "link", "set", name, "up")
            self._ip(inside, "route", "add", "default", "via", router)
        _run([*_entering(self._router), "sh", "-c", f"echo 1 > {_FORWARDING}"])

    def inside(self, address: str) -> list[str]:
        """What to put before a command that is to run at that address."""
        return _entering(self._inside[address])

    def drop(self, *destinations: str) -> None:
        """Drop whatever goes to these addresses."""
        for address in destinations:
            self._ip(self._router, "route", "add", "blackhole", f"{address}/32")

    def heal(self) -> None:
        """Drop nothing any more."""
        self._ip(self._router, "route", "flush", "type", "blackhole")

    def close(self) -> None:
        """End the namespaces, once their last process has ended."""
        for holder in reversed(self._holders):
            holder.communicate()

    def _hold(self, command: Sequence[str]) -> int:
        """A process that does nothing but keep namespaces alive; its number."""
        holder = subprocess.Popen(
            [*command, "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._holders.append(holder)
        assert holder.stdout is not None and holder.stdout.readline() == "\n"
        return holder.pid

    def _ip(self, inside: int, *arguments: str) -> None:
        _run([*_entering(inside), "ip", *arguments])


def _entering(pid: int) -> list[str]:
    return ["nsenter", "--preserve-credentials", "--user", "--net", f"--target={pid}"]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
