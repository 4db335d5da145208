"""The node's side of the wire: one TLS connection to the coordinator, blocking, from the standard library and msgspec alone."""

from __future__ import annotations

import hashlib
import http.client
import math
import re
import ssl
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, TypeVar

import msgspec

from freehold.errors import (
    BodyRefused,
    CertificateRefused,
    CoordinatorError,
    FreeholdError,
    PinMismatch,
    TooLarge,
    Unreachable,
    UsageError,
    WireError,
    by_code,
)
from freehold.wire import spki
from freehold.wire.link import CUT, PIECE_BYTES, Http, Pieces, Resolve, blind, reach, resolve, trusting
from freehold.wire.local import Memory
from freehold.wire.messages import VERSION, Message, Problem, decode, encode
from freehold.wire.routes import CA, SHA256_HEADER, VERSION_HEADER

REPLY_LIMIT_BYTES: Final = 1 << 23
"""Of a JSON message; anything larger is a blob."""

NO_HEADERS: Final[Mapping[str, str]] = {}
Meter: TypeAlias = Callable[[str, str, int], object]
"""Told of each request before it is sent, and again if it is sent again: method, path, bytes of the body."""

__all__ = ["Connection", "Meter", "Resolve", "Timeouts", "fetch_roots", "resolve", "retry", "trusting"]

M = TypeVar("M", bound=Message)
T = TypeVar("T")


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait for a connection and its handshake, and for the next bytes."""

    connect_s: float = 10.0
    read_s: float = 30.0


def fetch_roots(
    url: str, pin: str, *, timeouts: Timeouts | None = None, find: Resolve = resolve, meter: Meter | None = None
) -> str:
    """The root (PEM) whose public key has the SHA-256 `pin`; raises PinMismatch if the coordinator shows none.

    Nothing is sent but the question. A certificate that only imitates the root is of no use to who lacks the root's key.
    """
    connection = Connection(url, blind, timeouts=timeouts, find=find, meter=meter)
    try:
        shown = spki.certificates(connection.get(CA.path).decode("ascii", "replace"))
    finally:
        connection.close()
    for pem in shown:
        if spki.digest(pem) == pin:
            return pem
    raise PinMismatch(
        f"The coordinator at {connection.url} does not have the key that the join token names.",
        hint="Do not go on: ask the operator for the address and a new token, over another way than this network.",
    )


def retry(
    attempt: Callable[[], T],
    *,
    sleep: Callable[[float], object],
    random: Callable[[], float],
    clock: Callable[[], float],
    first_s: float = 1.0,
    most_s: float = 60.0,
    give_up_s: float = math.inf,
) -> T:
    """What `attempt` returns, as soon as the coordinator can be reached: after each Unreachable, wait and try again.

    The n-th pause is random between 0 and `first_s * 2**n`, at most `most_s`, so that many nodes do not come back at once.
    The last Unreachable is raised rather than waiting beyond `give_up_s` from the start.
    """
    begun, longest = clock(), first_s
    while True:
        try:
            return attempt()
        except Unreachable:
            pause = random() * min(longest, most_s)
            if clock() + pause - begun > give_up_s:
                raise
        sleep(pause)
        longest = min(2 * longest, most_s)


def parts_of(url: str) -> tuple[str, int]:
    """Host and port of a coordinator's address; raises UsageError where it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        raise UsageError(f"{url!r} is not a coordinator's address.", hint="It looks like https://host:port.") from None
    if parts.scheme != "https" or not host or parts.path.strip("/") or parts.query:
        bare = bool(re.fullmatch(r"[\w.-]+(:\d+)?", url))
        hint = f"Say https://{url}." if bare else "It looks like https://host:port."
        raise UsageError(f"{url!r} is not a coordinator's address.", hint=hint)
    return host, port


class Connection:
    """A connection to a coordinator, made when it is first needed and made anew, name and all, when it broke.

    Everything raises Unreachable when there is no answer, and the coordinator's own error when it refuses. Not for use by two
    threads at once. Proxies are those of HTTPS_PROXY and NO_PROXY.
    """

    def __init__(
        self,
        url: str,
        trust: Callable[[], ssl.SSLContext],
        *,
        timeouts: Timeouts | None = None,
        find: Resolve = resolve,
        any_error: bool = False,
        meter: Meter | None = None,
    ) -> None:
        """`any_error`: raise whichever error the coordinator names, as people want it who may do more than a node may."""
        self._host, self._port = parts_of(url)
        self.url = url.rstrip("/")
        self._trust = trust
        self._timeouts = timeouts or Timeouts()
        self._find, self._any_error, self._meter = find, any_error, meter
        self._http: Http | None = None
        self._stale = False

    def refresh(self) -> None:
        """Have the next request open another connection, since the certificate files are new. Any thread may say so."""
        self._stale = True

    def close(self) -> None:
        """Close the connection; the next request opens another, with the certificate files as they are then."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def post(
        self,
        path: str,
        message: Message | bytes,
        reply: type[M],
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        wait_s: float = 0.0,
        repeatable: bool = True,
    ) -> M:
        """Send a message, or the bytes of one; the answer, which the coordinator may hold back for `wait_s`.

        Where an idle connection turns out to be broken the message is sent once more, if it is `repeatable`.
        """
        body = message if isinstance(message, bytes) else encode(message)
        headers = {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
        return decode(self._exchange("POST", path, headers, [body], wait_s=wait_s, repeatable=repeatable), reply)

    def put(
        self,
        path: str,
        headers: Mapping[str, str],
        length: int,
        pieces: Pieces,
        *,
        sha256: str,
        reply: type[M],
        wait_s: float = 0.0,
    ) -> M:
        """Send `length` bytes that the other side holds against `sha256`; the answer. Only pieces that can be iterated
        twice, a list, are sent once more over a new connection.
        """
        fixed = {
            VERSION_HEADER: str(VERSION),
            SHA256_HEADER: sha256,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(length),
        }
        again = iter(pieces) is not pieces
        return decode(self._exchange("PUT", path, {**headers, **fixed}, pieces, wait_s=wait_s, repeatable=again), reply)

    def get(self, path: str) -> bytes:
        """A small body of any kind."""
        return self._exchange("GET", path, {}, [])

    def get_blob(self, path: str, length: int, sha256: str, sink: Memory) -> None:
        """Write a body to `sink`; raises BodyRefused unless it has that length and digest, and `sink` is then of no use."""
        response = self._ask("GET", path, {}, [], wait_s=0.0, repeatable=True)
        if response.status != 200:
            self._read(response)
        if response.length != length:
            self.close()
            raise BodyRefused(f"{length} bytes were announced, and {response.length} came.", hint=_TRY_AGAIN)
        digest, buffer = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
        rest = length
        try:
            while rest:
                count = response.readinto(buffer)
                if not count:
                    raise ConnectionResetError("the connection ended within a body")
                digest.update(buffer[:count])
                sink.write(buffer[:count])
                rest -= count
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._failure(error) from error
        if digest.hexdigest() != sha256:
            raise BodyRefused("Bytes came that do not have the announced digest.", hint=_TRY_AGAIN)

    def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        pieces: Pieces,
        *,
        wait_s: float = 0.0,
        repeatable: bool = True,
    ) -> bytes:
        return self._read(self._ask(method, path, headers, pieces, wait_s=wait_s, repeatable=repeatable))

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], pieces: Pieces, *, wait_s: float, repeatable: bool
    ) -> http.client.HTTPResponse:
        while True:
            if self._stale:
                self._stale = False
                self.close()
            used = self._http is not None and self._http.alive()
            try:
                if not used:
                    self.close()
                    self._http = self._open()
                assert self._http is not None
                if self._meter is not None:
                    self._meter(method, path, int(headers.get("Content-Length", 0)))
                return self._http.ask(method, path, headers, pieces, self._timeouts.read_s, wait_s)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if not (used and repeatable and isinstance(error, CUT)):
                    raise self._failure(error) from error
            except BaseException:
                self.close()
                raise

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """The body of a 200; raises what another status means."""
        if response.length is None or response.length > REPLY_LIMIT_BYTES:
            self.close()
            raise TooLarge(f"An answer is longer than {REPLY_LIMIT_BYTES} bytes, or does not say its length.", hint=_TRY_AGAIN)
        try:
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._failure(error) from error
        if response.status != 200:
            refusal = _refusal(response.status, body, any_error=self._any_error)
            if isinstance(refusal, CertificateRefused):
                self.close()  # there may be a newer one
            raise refusal
        return body

    def _open(self) -> Http:
        context = self._trust()
        raw = reach(self._host, self._port, self._find, self._timeouts.connect_s)
        try:
            # The timeout of the dialing holds for the handshake too.
            return Http(self._host, self._port, context.wrap_socket(raw, server_hostname=self._host))
        except BaseException:
            raw.close()
            raise

    def _failure(self, error: Exception) -> FreeholdError:
        """What a failed connection means to the node."""
        if isinstance(error, ssl.SSLCertVerificationError):
            if error.verify_code in _OUT_OF_DATE:
                return Unreachable(
                    f"By this machine's clock the certificate that {self.url} shows does not hold: {error.verify_message}.",
                    hint="Set the clock, here or there: `freehold doctor` compares them. A running node tries again by itself.",
                )
            why = error.verify_message.rstrip(".")
            if error.verify_code in OTHER_NAME:
                return PinMismatch(
                    f"The certificate that {self.url} shows is for another name: {why}.",
                    hint="Use an address that is in it, or have the operator start the coordinator with this one as --name, too.",
                )
            return PinMismatch(
                f"{self.url} shows a certificate that is not of this federation: {why}.",
                hint="Check the address; if it is right, tell the operator: somebody may be in between.",
            )
        reason = str(getattr(error, "reason", "") or "")
        if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            return CertificateRefused(
                f"The coordinator at {self.url} does not accept this node's certificate.", hint="Join again with a new token."
            )
        return Unreachable(
            f"The coordinator at {self.url} does not answer: {str(error) or type(error).__name__}.",
            hint="Check the address, the network and HTTPS_PROXY; a running node tries again by itself.",
        )


def _refusal(status: int, body: bytes, *, any_error: bool = False) -> FreeholdError:
    """The error that the coordinator names; of any other kind than those that it may cause a node, a plain one."""
    try:
        found = decode(body, Problem)
    except WireError:
        if status >= 500:  # a gateway in between
            return Unreachable(f"The coordinator's gateway answers with status {status}.", hint=_TRY_AGAIN)
        return WireError(f"The coordinator answers with status {status}.", hint="Check that it runs the same release.")
    kind = by_code(found.code)
    if kind is None or not (any_error or 400 <= kind.code < 600 or kind.code == 114):
        kind = CoordinatorError
    return kind(_plain(found.message), hint=_plain(found.hint))


def _plain(text: str) -> str:
    """Text from elsewhere, fit for a terminal and a log."""
    return "".join(letter for letter in text[:2000] if letter.isprintable())


OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH
_OUT_OF_DATE = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED: a clock, or a renewal that is late
_TRY_AGAIN = "It is tried again; if it stays, look at the coordinator's log."
