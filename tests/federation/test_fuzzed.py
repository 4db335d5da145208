"""The OpenAPI document, and a fuzzer that believes it: whatever it sends, the coordinator answers as the document says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from freehold.wire.admin import Status
from tests.federation.harness import Federation
from tests.federation.peer import joined

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_a_fuzzer_finds_nothing(tmp_path: Path, fork: Path) -> None:
    federation = Federation(tmp_path, [], fork=fork, settings={"poll_s": 0.1})
    federation.start()
    try:
        mallory = joined(federation, "mallory", tmp_path)
        identity = tmp_path / "mallory" / "identity"
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{federation.url}/v1/openapi.json",
            "--checks",
            CHECKS,
        ]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--seed", "1", "--no-color"]
        command += ["--tls-verify", str(identity / "roots.pem"), "--request-cert", str(identity / "current.pem")]
        command += ["--exclude-path", "/v1/leave"]  # after which nothing would be answered
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        refused = federation.admin.get("/v1/status", Status).refused
        assert refused.get("500"), "it has tried"
        assert not refused.get("400"), "the coordinator failed at nothing"
        assert mallory.work().work is None
        mallory.close()
    finally:
        federation.stop()
