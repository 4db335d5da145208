from __future__ import annotations

import ssl
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from freehold.errors import JoinTokenError, WireError
from freehold.wire import jointoken, spki
from freehold.wire.jointoken import JoinToken

PIN, SECRET = jointoken.encode(bytes(32)), jointoken.encode(b"planted-secret-24-bytes!")
TOKEN = JoinToken(pin=bytes(32).hex(), id="0123abcd", secret=SECRET)
ALPHABET = string.ascii_letters + string.digits + "-_=. \n+/é"

tokens = st.builds(
    lambda pin, number, secret: JoinToken(pin=pin.hex(), id=number.hex(), secret=jointoken.encode(secret)),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=24, max_size=24),
)


@given(tokens)
def test_a_token_survives_its_text(token: JoinToken) -> None:
    assert JoinToken.parse(f" {token.format()}\n") == token
    assert len(token.format()) == 89


@given(st.text(ALPHABET, max_size=100))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(JoinTokenError):
        JoinToken.parse(text)


@given(st.integers(0, 88), st.sampled_from(ALPHABET))
def test_a_changed_letter_makes_another_token_or_none_and_is_never_quoted(at: int, letter: str) -> None:
    good = TOKEN.format()
    bad = (good[:at] + letter + good[at + 1 :]).strip()
    assume(bad != good)
    try:
        assert JoinToken.parse(bad) != TOKEN
    except JoinTokenError as error:
        assert SECRET[:8] not in str(error) and SECRET[-8:] not in str(error)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        (f"fh2.{PIN}.0123abcd.{SECRET}", "beginning"),
        (f"fh1.{PIN}.{SECRET}", "parts are 3"),
        (f"fh1.{PIN[:-1]}.0123abcd.{SECRET}", "pin"),
        (f"fh1.{PIN}.0123ABCD.{SECRET}", "number"),
        (f"fh1.{PIN}.0123abcd.{SECRET}=", "secret"),
        (f"fh1.{PIN}.0123abcd.{SECRET[:-1]}", "secret"),
    ],
)
def test_an_error_says_which_part_is_malformed(text: str, part: str) -> None:
    with pytest.raises(JoinTokenError, match=part):
        JoinToken.parse(text)


def test_a_token_shows_its_secret_only_when_formatted() -> None:
    assert SECRET not in repr(TOKEN) + str(TOKEN) + f"{TOKEN}"
    assert SECRET in TOKEN.format()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_have_no_dates(body: bytes) -> None:
    with pytest.raises(WireError):
        spki.dates(ssl.DER_cert_to_PEM_cert(body))


@pytest.mark.parametrize("part", [{"pin": "0"}, {"id": "0"}, {"secret": "0"}])
def test_no_malformed_token_can_be_made(part: dict[str, str]) -> None:
    with pytest.raises(JoinTokenError):
        JoinToken(**({"pin": "0" * 64, "id": "0" * 8, "secret": SECRET} | part))
