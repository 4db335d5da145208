"""The join token: which coordinator to trust, and the right to become one of its nodes, in one line of text.

`fh1.<SHA-256 of the root's public key>.<token's number>.<secret>`: the first is 32 bytes and the last 24, both in base64url
without padding; the number is 8 hexadecimal digits and no secret.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field

from freehold.errors import JoinTokenError

VERSION = "fh1"
SECRET_BYTES = 24
_PIN_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class JoinToken:
    """A join token; its `repr` and `str` leave the secret out. Raises JoinTokenError for malformed parts."""

    pin: str
    """SHA-256 of the root's SubjectPublicKeyInfo, in hexadecimal as `wire.spki` has it."""
    id: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.pin):
            raise _malformed(f"pin (its second part) is not {_PIN_BYTES} bytes")
        if not re.fullmatch(r"[0-9a-f]{8}", self.id):
            raise _malformed("number (its third part) is not 8 hexadecimal digits")
        _decode(self.secret, SECRET_BYTES, "secret (its last part)")

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """The token in `text`, surrounding white space aside; an error says which part is malformed and quotes none."""
        parts = text.strip().split(".")
        if parts == [""]:
            raise JoinTokenError(
                "The join token is empty.", hint="Look at what `freehold token create` said; it may have failed."
            )
        if parts[0] != VERSION:
            raise _malformed(f"beginning is not {VERSION!r}")
        if len(parts) != 4:
            raise _malformed(f"parts are {len(parts)} in number, and not 4")
        return cls(pin=_decode(parts[1], _PIN_BYTES, "pin (its second part)").hex(), id=parts[2], secret=parts[3])

    def format(self) -> str:
        """The text that `parse` reads, the secret included."""
        return ".".join((VERSION, encode(bytes.fromhex(self.pin)), self.id, self.secret))


def encode(part: bytes) -> str:
    """A pin or a secret as it stands in a token."""
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def _decode(text: str, length: int, part: str) -> bytes:
    # Encoded again, so that each token has exactly one spelling.
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        raise _malformed(f"{part} is not base64url") from None
    if len(raw) != length or encode(raw) != text:
        raise _malformed(f"{part} is not {length} bytes in base64url without padding")
    return raw


def _malformed(what: str) -> JoinTokenError:
    return JoinTokenError(
        f"The join token's {what}.",
        hint="Copy the whole line that `freehold token create` printed: fh1.<pin>.<number>.<secret>.",
    )
