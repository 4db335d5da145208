"""The end of personal states: a study did nothing here for as long as its data's owner keeps them, or the node leaves.

A study's end is not told to a node; so days are counted from the last round that a study trained here, by this machine's clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from freehold.node.door import Door
from freehold.node.vault import Vault


def expire(vault: Vault, door: Door, keep_days: Mapping[str, float]) -> None:
    """Erase what is due; the ledger says so before. Raises what vault and door do."""
    due = vault.due(keep_days)
    for study, count in due.items():
        door.note(
            "erased", f"{count} personal states of the study whose plan is sha256:{study}…: kept for as long as policy.toml says"
        )
        vault.forget(study)
    if due:
        door.name_vault()  # so that they do not come back


def erase(vault: Vault, door: Door) -> int:
    """Erase every state and the key; how many there were. Raises what vault and door do."""
    states = vault.erase()
    door.name_vault()
    key = "the vault's key is a credential of systemd's, which remains" if vault.has_credential else "the vault's key"
    door.note("erased", f"{states} personal states; {key}")
    return states
