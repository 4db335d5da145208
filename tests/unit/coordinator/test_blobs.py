"""One set of laws for blobs in a folder and in a bucket; and what a bucket's errors become."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.coordinator import blobs as module
from freehold.coordinator.blobs import GRACE_S, Blobs, Bucket, Folder, blobs_at
from freehold.coordinator.store import Store, connect
from freehold.errors import MissingExtra, StoreError, UsageError
from freehold.wire.local import Pieces, close, read, sealed
from tests.s3 import S3, s3

RUN = "0123456789abcdef-0"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3() as found:
        yield found


@pytest.fixture
def reached(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, named in the environment."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(params=["folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, reached: S3) -> Blobs:
    return blobs_at(reached.url(tmp_path.name) if request.param == "bucket" else "", tmp_path / "blobs")


def shown(blobs: Blobs, place: str, body: bytes) -> bytes:
    fd = blobs.open(place, hashlib.sha256(body).hexdigest())
    try:
        with pytest.raises(OSError):
            os.write(fd, b"x")  # nobody changes it
        return read(fd)
    finally:
        close([fd])


def keep(blobs: Blobs, body: bytes, form: str, tmp_path: Path, name: str = f"{RUN}.0.server") -> str:
    if form == "path":
        path = tmp_path / "spooled"
        path.write_bytes(body)
        try:
            return blobs.keep(path, name=name, point="coordinator.state")
        finally:
            path.unlink(missing_ok=True)
    if form == "pieces":
        fd = sealed(body, "body")
        try:
            return blobs.keep(Pieces(fd), name=name, point="coordinator.state")
        finally:
            close([fd])
    return blobs.keep(body, name=name, point="coordinator.state")


@pytest.mark.parametrize("form", ["bytes", "pieces", "path"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(min_size=1, max_size=5000), again=st.binary(min_size=1, max_size=5000))
def test_what_was_kept_is_shown_until_it_is_removed(blobs: Blobs, tmp_path: Path, form: str, body: bytes, again: bytes) -> None:
    place = keep(blobs, body, form, tmp_path)
    assert len(place) <= 80, "the column of the database"
    assert shown(blobs, place, body) == body
    assert keep(blobs, again, form, tmp_path) == place, "a step that is done again"
    assert shown(blobs, place, again) == again
    other = keep(blobs, body, form, tmp_path, name=f"{RUN}.0.shared")
    blobs.remove([place, "never-there.safetensors"])
    with pytest.raises((StoreError, OSError)):
        blobs.open(place, hashlib.sha256(again).hexdigest())
    assert shown(blobs, other, body) == body
    blobs.remove([other])
    blobs.remove([])
    assert blobs.left((), {RUN}) == (0, [])


@pytest.mark.parametrize("form", ["pieces", "path"])
def test_a_large_body_travels_in_parts(blobs: Blobs, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 5 << 20)  # the least that S3 allows
    body = os.urandom(1 << 20) * 12 + b"end"
    assert shown(blobs, keep(blobs, body, form, tmp_path), body) == body


@pytest.mark.parametrize("length", [(5 << 20) - 1, 5 << 20, (5 << 20) + 1, 10 << 20])
def test_parts_at_their_limits(blobs: Blobs, tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 5 << 20)
    body = os.urandom(1 << 10) * (length >> 10) + os.urandom(length & 1023)
    assert len(body) == length
    assert shown(blobs, keep(blobs, body, "pieces", tmp_path), body) == body


LARGE = """
import hashlib, resource, sys
from pathlib import Path
from freehold.coordinator.blobs import Bucket
from freehold.wire.local import Pieces

blobs, path = Bucket(sys.argv[1], Path(sys.argv[2])), Path(sys.argv[3])
with path.open("rb") as file:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fd = blobs.open(blobs.keep(path, name="r.0.server", point="coordinator.state"), sha256)
assert Pieces(fd).length == path.stat().st_size
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_body_is_never_whole_in_memory(reached: S3, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(256 << 20)
    command = [sys.executable, "-c", LARGE, reached.url("large"), str(tmp_path / "blobs"), str(path)]
    more_kib = int(subprocess.run(command, check=True, capture_output=True).stdout)
    assert more_kib < 96 << 10


def test_what_is_read_stays_when_it_is_removed(blobs: Blobs, tmp_path: Path) -> None:
    place = keep(blobs, b"state", "bytes", tmp_path)
    fd = blobs.open(place, hashlib.sha256(b"state").hexdigest())
    blobs.remove([place])
    assert read(fd) == b"state"
    close([fd])


def test_named_places_are_found_and_not_left(blobs: Blobs, tmp_path: Path) -> None:
    named = keep(blobs, b"one", "bytes", tmp_path)
    keep(blobs, b"two", "bytes", tmp_path, name=f"{RUN}.1.server")
    found, left = blobs.left({named, "elsewhere"}, {RUN})
    assert found == 1 and named not in left


def test_a_bucket_leaves_others_and_the_new_alone(reached: S3, tmp_path: Path) -> None:
    now = time.time()
    url = reached.url("shared")
    blobs = Bucket(url, tmp_path / "blobs", clock=lambda: now)
    old = keep(blobs, b"one", "bytes", tmp_path)
    keep(blobs, b"another federation's", "bytes", tmp_path, name="fedcba9876543210-0.0.server")
    (reached.objects("shared") / f"{RUN}.txt").write_text("somebody's notes")
    deeper = Bucket(f"{url}/deeper", tmp_path / "blobs")
    keep(deeper, b"below another prefix", "bytes", tmp_path)
    assert blobs.left((), {RUN}) == (0, []), "it may be another coordinator's that is about to get its row"
    now += GRACE_S + 60.0
    assert blobs.left((), {RUN}) == (0, [old])


def test_processes_never_write_over_each_other(reached: S3, tmp_path: Path) -> None:
    one, two = (Bucket(reached.url("both"), tmp_path / "blobs") for _ in range(2))
    first, second = keep(one, b"one", "bytes", tmp_path), keep(two, b"two", "bytes", tmp_path)
    assert shown(one, first, b"one") == b"one" and shown(one, second, b"two") == b"two"


def test_what_somebody_changed_is_refused(reached: S3, tmp_path: Path) -> None:
    blobs = Bucket(reached.url("changed"), tmp_path / "blobs")
    place = keep(blobs, b"state", "bytes", tmp_path)
    (reached.objects("changed") / place).write_bytes(b"other")
    with pytest.raises(StoreError, match="is not what"):
        blobs.open(place, hashlib.sha256(b"state").hexdigest())
    assert not list((tmp_path / "blobs").iterdir()), "what was read has no name"


def refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> StoreError:
    monkeypatch.setattr(module, "_RETRY_S", 1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError) as caught:
        Bucket(url, tmp_path / "blobs")
    said = f"{caught.value} {caught.value.hint}"
    assert all(secret not in said for secret in (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]))
    return caught.value


def test_a_bucket_that_is_not_there(reached: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused("s3://nobody-made-it/prefix", tmp_path, monkeypatch)
    assert "404" in str(error) and "NoSuchBucket" in str(error) and "Make the bucket" in error.hint


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_credentials_that_are_wrong(reached: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    error = refused(reached.url("x"), tmp_path, monkeypatch, **{name: "AKIDmistakenmistaken"})
    assert "403" in str(error) and "AWS_SECRET_ACCESS_KEY" in error.hint


def test_nobody_listens(reached: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused(reached.url("x"), tmp_path, monkeypatch, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert "does not answer" in str(error) and "AWS_ENDPOINT_URL" in error.hint


def test_a_server_that_hangs(reached: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = Bucket(reached.url("hanging"), tmp_path / "blobs")
    place = keep(patient, b"state", "bytes", tmp_path)
    monkeypatch.setattr(module, "_SILENT_S", 1)
    monkeypatch.setattr(module, "_RETRY_S", 1)
    monkeypatch.setattr(Bucket, "_try", lambda self: None)  # which a busy machine may take longer for
    blobs = Bucket(reached.url("hanging"), tmp_path / "blobs")
    with reached.hanging():
        for touch in (
            lambda: keep(blobs, b"state", "bytes", tmp_path),
            lambda: blobs.open(place, "0" * 64),
            lambda: blobs.left((), ()),
            lambda: blobs.remove(["another.safetensors"]),  # it may be done later all the same
        ):
            with pytest.raises(StoreError, match="does not answer"):
                touch()
    assert shown(patient, place, b"state") == b"state", "and it goes on when the server does"


def test_plain_http_needs_a_word(reached: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused(reached.url("x"), tmp_path, monkeypatch, AWS_ALLOW_HTTP="false")
    assert "AWS_ALLOW_HTTP" in error.hint


BAD_URLS = [
    "s3://",
    "http://bucket/prefix",
    "bucket",
    "s3://key:secret@bucket/prefix",
    "s3://b/prefix?secret=x",
    "s3://[",
    "s3://B",
]


@pytest.mark.parametrize("url", [*BAD_URLS, "s3://bucket/../other"])
def test_urls_that_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError) as caught:
        blobs_at(url, tmp_path)
    assert "secret" not in str(caught.value)


def test_obstore_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingExtra) as caught:
        blobs_at("s3://bucket/prefix", tmp_path)
    assert "freehold[s3]" in caught.value.hint
    assert isinstance(blobs_at("", tmp_path), Folder), "which needs none"


def test_a_database_without_any_of_its_blobs_is_refused(blobs: Blobs, tmp_path: Path) -> None:
    store = Store(connect(f"sqlite:///{tmp_path / 'db.sqlite'}"), blobs)
    try:
        put = store.put_file(os.urandom(1 << 17), name=f"{RUN}.0.server", point="coordinator.state")
        with store.engine.begin() as connection:
            assert store.insert_blob(connection, put) == []
        assert store.sweep() == 0
        assert put.place is not None
        blobs.remove([put.place])
        with pytest.raises(StoreError, match="none is where it should be"):
            store.sweep()
    finally:
        store.close()


def test_a_folder_sweeps_what_has_no_row(tmp_path: Path) -> None:
    store = Store(connect(f"sqlite:///{tmp_path / 'db.sqlite'}"), Folder(tmp_path / "blobs"))
    try:
        (tmp_path / "blobs" / "left.safetensors").write_bytes(b"x")
        assert store.sweep() == 1 and not list((tmp_path / "blobs").iterdir())
    finally:
        store.close()
