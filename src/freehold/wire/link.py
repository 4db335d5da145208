"""Below the client: a name is found, a proxy passed, a TLS connection made, and HTTP/1.1 spoken over it."""

from __future__ import annotations

import base64
import http.client
import os
import select
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

from freehold.errors import NotJoined, UsageError

PIECE_BYTES: Final = 1 << 16

Path: TypeAlias = str | os.PathLike[str]
Pieces: TypeAlias = Iterable[bytes | memoryview]
Address: TypeAlias = tuple[int, tuple[str, int] | tuple[str, int, int, int]]
Resolve: TypeAlias = Callable[[str, int], list[Address]]

CUT: Final = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""A connection that the other side closed, as opposed to one that stalls or speaks nonsense."""


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, as the system knows them now."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def trusting(roots: str, certificate: tuple[Path, Path] | None = None) -> Callable[[], ssl.SSLContext]:
    """TLS 1.3 with peers that these roots (PEM) vouch for, and no others; `certificate` is the node's chain and its key.

    The files are read at each new connection, so that a renewed certificate counts from then on; making one raises NotJoined
    when they cannot be used.
    """

    def context() -> ssl.SSLContext:
        made = _context()
        made.load_verify_locations(cadata=roots)
        if certificate is not None:
            try:
                made.load_cert_chain(*certificate)
            except OSError as error:
                raise NotJoined(
                    f"This node's certificate or key cannot be used: {error.strerror or error}.",
                    hint="Join again with a new token.",
                ) from error
        return made

    return context


def _context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    return made


def blind() -> ssl.SSLContext:
    """Trusts whoever answers: only for what is then held against a pin."""
    made = _context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def reach(host: str, port: int, find: Resolve, connect_s: float) -> socket.socket:
    """A TCP connection to a host, through the proxy that the environment names for it; raises OSError.

    Each call finds the name anew, and tries all its addresses.
    """
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    proxy = urllib.request.getproxies().get("https")
    if not proxy or urllib.request.proxy_bypass(target):
        return _dial(find(host, port), connect_s)
    proxy_host, proxy_port, greeting = _proxied(proxy, target)
    raw = _dial(find(proxy_host, proxy_port), connect_s)
    try:
        _tunnel(raw, greeting)
    except BaseException:
        raw.close()
        raise
    return raw


def _dial(addresses: list[Address], connect_s: float) -> socket.socket:
    failure = OSError("the name has no address")
    for family, address in addresses:
        raw = socket.socket(family, socket.SOCK_STREAM)
        try:
            raw.settimeout(connect_s)
            raw.connect(address)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A long poll is silent: without probes, a NAT box that forgot it would be noticed only after minutes.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
                raw.setsockopt(socket.IPPROTO_TCP, option, value)
            return raw
        except OSError as error:
            raw.close()
            failure = error
    raise failure


def _proxied(proxy: str, target: str) -> tuple[str, int, bytes]:
    """Where the proxy is, and what to say to it."""
    parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError("HTTPS_PROXY does not name a proxy.", hint="It looks like http://host:port.")
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if parts.username is not None:
        secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(secret.encode()).decode()}")
    return parts.hostname, parts.port or 80, "\r\n".join([*lines, "", ""]).encode()


def _tunnel(raw: socket.socket, greeting: bytes) -> None:
    raw.sendall(greeting)
    answer = http.client.HTTPResponse(raw, method="CONNECT")
    try:
        answer.begin()
        if answer.status != 200:
            raise OSError(f"the proxy refuses the connection with status {answer.status}")
    finally:
        answer.close()


class Http(http.client.HTTPConnection):
    """One HTTP/1.1 connection over a TLS socket that is there already."""

    default_port = 443
    auto_open = 0

    def __init__(self, host: str, port: int, tls: ssl.SSLSocket) -> None:
        super().__init__(host, port)
        self.sock: ssl.SSLSocket = tls

    def alive(self) -> bool:
        """Whether it can be used again: there is nothing to be read from an idle connection but its end."""
        if self.sock is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not self.sock.pending() and not poll.poll(0)

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], pieces: Pieces, read_s: float, wait_s: float
    ) -> http.client.HTTPResponse:
        """Send a request; its answer, of which the body is still to be read. `wait_s` is added for the first byte alone."""
        self.sock.settimeout(read_s)
        self.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            self.putheader(name, value)
        try:
            self.endheaders()
            for piece in pieces:
                view = memoryview(piece)
                for begin in range(0, len(view), PIECE_BYTES):  # a timeout holds for one call, however much it sends
                    self.send(view[begin : begin + PIECE_BYTES])
        except CUT:
            pass  # the coordinator may have said why before it hung up
        tls = self.sock
        tls.settimeout(read_s + wait_s)
        response = self.getresponse()
        tls.settimeout(read_s)
        return response
