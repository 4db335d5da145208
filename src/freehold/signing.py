"""Study keys: who may start a study. An Ed25519 signature over a plan's digest, so over everything in it.

A signature is one line, `fhs1.<first 16 digits of the key's digest>.<64 bytes, base64url>`; it lies beside the plan as PLAN.sig.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from freehold.errors import StudyRefused, Unreadable, UsageError

VERSION = "fhs1"
_CONTEXT = b"freehold study plan 1\n"

Admit = Callable[[str, str | None], None]
"""(a plan's digest, its signature) -> nothing; raises StudyRefused."""


def everyone(digest: str, signature: str | None) -> None:
    """Any plan is admitted: what a coordinator without study keys does."""


def make_key(private: Path, public: Path) -> str:
    """Write a new key, 0600, and its public half; the key's id. Raises UsageError rather than replace a file."""
    key = Ed25519PrivateKey.generate()
    _write(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    _write(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    return key_id(key.public_key())


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the public key."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def sign(digest: str, private: Path) -> str:
    """The signature of a plan by the key in a file."""
    try:
        key = load_pem_private_key(_read(private), password=None)
    except (ValueError, TypeError):
        key = None  # the text of a parser's error may quote the key
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{private} is no study key.", hint="`freehold study keygen FILE` makes one; FILE is to sign with.")
    made = base64.urlsafe_b64encode(key.sign(_CONTEXT + digest.encode())).rstrip(b"=").decode()
    return f"{VERSION}.{key_id(key.public_key())}.{made}"


def trusting(keys: Sequence[Path]) -> Admit:
    """Admit plans that one of these public keys signed; all plans if there is no key."""
    if not keys:
        return everyone
    known = {key_id(key): key for key in map(_public, keys)}

    def admit(digest: str, signature: str | None) -> None:
        if not signature:
            raise StudyRefused(
                "The plan is not signed, and this coordinator takes signed plans only.",
                hint="Sign it: `freehold study sign PLAN --key FILE`, with a key that the coordinator was started with.",
            )
        found = _checked(digest, signature, known)
        if found is None:
            raise StudyRefused(
                "The plan is signed with a key that this coordinator does not know.",
                hint="Start the coordinator with --study-key FILE, the public half of that key.",
            )
        if not found:
            raise StudyRefused(
                "The signature does not belong to this plan: the plan was changed after it was signed.",
                hint="Look at what changed, then sign it anew.",
            )

    return admit


def is_signed(digest: str, signature: str | None, keys: Sequence[str]) -> bool:
    """Whether one of these keys signed the plan. A key is the middle line of a public key's file."""
    made = {key_id(key): key for key in map(_from_line, keys)}
    return bool(signature and _checked(digest, signature, made))


def is_known(signature: str | None, keys: Sequence[str]) -> bool:
    """Whether a signature, be it good or not, says that one of these keys made it."""
    return (signature or "").partition(".")[2][:16] in {key_id(key) for key in map(_from_line, keys)}


def key_line(public: Path) -> str:
    """A public key as a policy says it: the middle line of its file. Raises UsageError."""
    body = _public(public).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(body).decode()


def _from_line(line: str) -> Ed25519PublicKey:
    try:
        key = load_der_public_key(base64.b64decode(line, validate=True))
    except (ValueError, binascii.Error):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError("That is no public study key.", hint="It is the middle line of the file FILE.pub.")
    return key


def _checked(digest: str, signature: str, known: Mapping[str, Ed25519PublicKey]) -> bool | None:
    """Whether the signature belongs to this plan; None if nobody knows the key."""
    version, _, rest = signature.strip().partition(".")
    who, _, made = rest.partition(".")
    key = known.get(who) if version == VERSION else None
    if key is None:
        return None
    try:
        key.verify(base64.urlsafe_b64decode(made + "=" * (-len(made) % 4)), _CONTEXT + digest.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def _public(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(_read(path))
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is no public study key.", hint="`freehold study keygen FILE` writes it to FILE.pub.")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}.", hint="Check the path and its permissions.") from None


def _write(path: Path, body: bytes, mode: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", hint="Give another file; none is replaced.") from None
    with os.fdopen(fd, "wb") as file:
        file.write(body)
