"""A node whose vault's key a TPM seals: its guard asks the TPM, and so does the next guard."""

from __future__ import annotations

import tempfile
from pathlib import Path

from freehold.plan import digest
from tests.federation.harness import Federation, heart_plan
from tests.tpm import software_tpm


def test_a_node_trains_with_a_sealed_key_and_not_without_its_tpm(tmp_path: Path, fork: Path) -> None:
    federation = Federation(tmp_path, ["hungary"], fork=fork)
    federation.start_coordinator()
    state = tmp_path / "hungary"
    plans = [heart_plan("ditto", name=f"sealed-{i}", rounds=1, nodes=1) for i in range(2)]
    try:
        with tempfile.TemporaryDirectory(prefix="t") as folder, software_tpm(Path(folder) / "t") as chip:
            federation.start_node("hungary", settings={"tpm": chip.tcti})
            for plan in plans:
                federation.run(plan)
                federation.finished(digest(plan))
                federation.nodes["hungary"].kill()
                federation.start_node("hungary", settings={"tpm": chip.tcti})
            assert (state / "vault.tpm").exists() and not (state / "vault.key").exists()
            federation.nodes["hungary"].kill()
            chip.stop()
            federation.start_node("hungary", wait=False, settings={"tpm": chip.tcti})
            assert federation.nodes["hungary"].popen.wait(60) != 0
            assert "VaultKeyError" in (tmp_path / "hungary.log").read_text()
            assert not (state / "vault.key").exists()
    finally:
        federation.stop()
