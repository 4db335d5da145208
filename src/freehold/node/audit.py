"""Reading a ledger: is it whole, which line is the first that is not, and why. Needs no more than the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec

from freehold.errors import LedgerError
from freehold.node.ledger import FILE
from freehold.node.lines import FORMAT, START, Head, Line, digest, is_signed, parse, raw_lines, unusable

EVERY = 1000
"""Signatures that are checked: of the first line, of the last, and of each so many; the digests bind all others to these."""

CHANGED = "it was changed after it was signed"


class Countersigned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody else has witnessed: this line was there."""

    n: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of looking."""

    lines: int
    """That were read."""
    head: Head
    """Of the last line that is good."""
    key: str = ""
    """The public key, in hexadecimal, that the first line names."""
    wrong: int | None = None
    """The number of the first line that is wrong; None if all are good."""
    why: str = ""
    notes: tuple[str, ...] = field(default=())


def verify(path: Path, *, key: str | None = None, witnessed: Mapping[int, str] | None = None) -> Verdict:
    """Check every byte of a ledger. `key`: the public key it must have. `witnessed`: number -> digest of lines known elsewhere.

    Raises LedgerError only where the file cannot be read.
    """
    known = dict(witnessed or {})
    try:
        return _walked(raw_lines(path), key, known)
    except OSError as error:
        raise unusable(path.parent, error) from None


def _walked(lines: Iterator[bytes], key: str | None, witnessed: Mapping[int, str]) -> Verdict:
    head, before, public, earlier, back = Head(0, START), b"", key or "", 0.0, 0
    for n, raw in enumerate(lines, 1):
        line = raw.removesuffix(b"\n")

        def wrong(at: int, why: str, read: int = n, good: Head = head, public: str = public) -> Verdict:
            return Verdict(lines=read, head=good if at == read else Head(at - 1, ""), key=public, wrong=at, why=why)

        if len(line) == len(raw):
            return wrong(n, "it is torn: a whole line ends with a line feed")
        found = _parsed(line)
        if n == 1 and found is not None and found.key is not None and key is None:
            public = found.key
        chained = line.startswith(b'{"prev":"%b","n":%d,' % (head.hash.encode(), n))
        if found is None or not chained or n == 1 or n % EVERY == 0:
            why = _fault(line, found, n, head, public)
            if why is None and n == 1 and found is not None and (found.kind, found.format) != ("opened", FORMAT):
                why = "it does not begin a ledger"
            if why is not None:
                if before and not is_signed(before, public):
                    return wrong(n - 1, CHANGED)
                return wrong(n, why)
        if n in witnessed and witnessed[n] != digest(line):
            return wrong(n, "it is not the line that was witnessed; the ledger was rewritten")
        assert found is not None
        back += found.time < earlier
        earlier = found.time
        head, before = Head(n, digest(line)), line
    if before and not is_signed(before, public):
        return Verdict(lines=head.n, head=Head(head.n - 1, ""), key=public, wrong=head.n, why=CHANGED)
    missing = min((n for n in witnessed if n > head.n), default=None)
    if missing is not None or not head.n:
        why = "the tail is missing: that line was witnessed" if missing is not None else "the ledger is empty"
        return Verdict(lines=head.n, head=head, key=public, wrong=head.n + 1, why=why)
    notes = (f"The clock went back {back} times; the order is that of the numbers.",) if back else ()
    return Verdict(lines=head.n, head=head, key=public, notes=notes)


def _fault(line: bytes, found: Line | None, n: int, head: Head, public: str) -> str | None:
    """Why a line is not the one that should stand here; None if it is."""
    if found is None or not is_signed(line, public):
        if n == 1 and found is not None and found.kind == "opened" and found.key != public:
            return "it names another key than the one that was expected"
        return CHANGED
    if found.n > n:
        return f"it says that it is line {found.n}: lines before it are missing, or stand elsewhere"
    if found.n < n:
        return f"it says that it is line {found.n}: it stands in the wrong place, or twice"
    if found.prev != head.hash:
        return "it continues another line than the one before it"
    return None


def _parsed(line: bytes) -> Line | None:
    try:
        return parse(line)
    except ValueError:
        return None


def entries(folder: Path, *, since: float = 0.0, skip: int = 0) -> Iterator[Line]:
    """The lines of the ledger in `folder` from a time on; raises LedgerError at one that is no line."""
    path = folder / FILE
    try:
        for n, raw in enumerate(islice(raw_lines(path), skip, None), skip + 1):
            found = _parsed(raw.rstrip(b"\n"))
            if found is None:
                if not raw.endswith(b"\n"):
                    return  # it is being written
                raise LedgerError(f"Line {n} of {path} is damaged.", hint="`freehold ledger verify` says which line is wrong.")
            if found.time >= since:
                yield found
    except OSError as error:
        raise unusable(folder, error) from None
