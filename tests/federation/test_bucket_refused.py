"""`freehold coordinator start --blobs`: a bucket that cannot be used is an error with a number and a remedy, at the start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.federation.programs import Running, freehold, short_folder
from tests.s3 import S3, s3


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3() as found:
        yield found


def start(server: S3, url: str, **environment: str) -> str:
    """What a start that is refused writes."""
    with short_folder() as home, pytest.MonkeyPatch.context() as patch:
        for name, value in {**server.environment, **environment}.items():
            patch.setenv(name, value)
        done = freehold(home, "coordinator", "start", "--port", "0", "--blobs", url)
        said = done.stdout + done.stderr
        assert done.returncode == 1 and "Traceback" not in said, said
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert server.environment[name] not in said and environment.get(name, "-" * 80) not in said
    return said


def test_a_wrong_bucket(server: S3) -> None:
    said = start(server, "s3://nobody-made-it/x")
    assert "410" in said and "NoSuchBucket" in said


def test_wrong_credentials(server: S3) -> None:
    said = start(server, server.url("x"), AWS_SECRET_ACCESS_KEY="0123456789" * 4)
    assert "410" in said and "SignatureDoesNotMatch" in said


def test_nobody_listens(server: S3) -> None:
    said = start(server, server.url("x"), AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert "410" in said and "AWS_ENDPOINT_URL" in said


def test_the_settings_file_names_the_bucket_and_the_command_line_counts_before_it(server: S3) -> None:
    with short_folder() as home, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        assert freehold(home, "coordinator", "init", "--port", "0", "--blobs", "s3://nobody-made-it/x").returncode == 0
        refused = freehold(home, "coordinator", "start")
        assert refused.returncode == 1 and "NoSuchBucket" in refused.stderr
        running = Running(home, "coordinator", "start", "--log", "plain", "--blobs", server.url("init"))
        try:
            running.wait_for("Coordinator of federation")
        finally:
            assert running.stop() == 0
