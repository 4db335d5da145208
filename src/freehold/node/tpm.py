"""A secret that one TPM alone gives back, by the programs of tpm2-tools: no library of theirs is loaded into the guard.

It is sealed under a storage key that the TPM derives from its owner's seed, anew each time, so nothing of it lies on the disk.
Clearing the TPM makes another seed, and the secret is lost. It is bound to the chip, not to how the machine was started.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from freehold.errors import VaultKeyError

DEVICE = "device:/dev/tpmrm0"
"""Through the kernel's resource manager."""
LIMIT_S = 60.0
"""For one program; real chips take seconds for what a simulator does in milliseconds."""

_SIMULATED = ("swtpm:", "mssim:")
"""They have no resource manager, so what a program leaves in them has to be flushed; on a real one that is somebody else's."""
_ATTRIBUTES = "fixedtpm|fixedparent|userwithauth|noda"


class Sealed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lies on the disk: both halves are encrypted by the TPM, or say nothing. In hexadecimal."""

    format: int = 1
    public: str
    private: str


class Tpm:
    """One, at a TCTI such as `device:/dev/tpmrm0`."""

    def __init__(self, tcti: str = DEVICE) -> None:
        self.tcti = tcti

    def seal(self, secret: bytes) -> Sealed:
        """Seal at most 128 bytes; it is looked whether they come back. Raises VaultKeyError."""
        with TemporaryDirectory(prefix="freehold-tpm-") as name:
            folder = Path(name)
            self._primary(folder)
            where = ("-u", str(folder / "public"), "-r", str(folder / "private"))
            kind = ("-g", "sha256", "-a", _ATTRIBUTES)
            self._run("tpm2_create", "-Q", "-C", str(folder / "primary"), *kind, "-i-", *where, given=secret)
            found = Sealed(public=(folder / "public").read_bytes().hex(), private=(folder / "private").read_bytes().hex())
        if self.unseal(found) != secret:
            raise VaultKeyError("The TPM did not give back what it had sealed.", hint="Look at it with `tpm2_selftest`.")
        return found

    def unseal(self, sealed: Sealed) -> bytes:
        """The secret. Raises VaultKeyError: without this very TPM nobody has it."""
        with TemporaryDirectory(prefix="freehold-tpm-") as name:
            folder = Path(name)
            self._primary(folder)
            (folder / "public").write_bytes(bytes.fromhex(sealed.public))
            (folder / "private").write_bytes(bytes.fromhex(sealed.private))
            files = ("-u", str(folder / "public"), "-r", str(folder / "private"), "-c", str(folder / "sealed"))
            self._run("tpm2_load", "-Q", "-C", str(folder / "primary"), *files)
            return self._run("tpm2_unseal", "-Q", "-c", str(folder / "sealed"))

    def _primary(self, folder: Path) -> None:
        self._run("tpm2_createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc", "-c", str(folder / "primary"))

    def _run(self, program: str, *arguments: str, given: bytes = b"") -> bytes:
        """What a program prints. Of its complaints the line that names the TPM's own is told."""
        path = shutil.which(program)
        if path is None:
            raise VaultKeyError(f"There is no {program} here.", hint="Install tpm2-tools: the vault's key is with a TPM.")
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TPM2TOOLS_TCTI": self.tcti}
        try:
            done = subprocess.run(
                [path, *arguments], input=given, capture_output=True, env=environment, timeout=LIMIT_S, check=False
            )
            if self.tcti.startswith(_SIMULATED) and (flush := shutil.which("tpm2_flushcontext")):
                subprocess.run([flush, "-t"], env=environment, capture_output=True, timeout=LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VaultKeyError(f"{program} could not be run ({type(error).__name__}).", hint=_HINT) from None
        if done.returncode:
            said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
            why = next((line for line in said if "ErrorCode" in line or "- tpm:" in line), said[0] if said else "no reason")
            raise VaultKeyError(f"The TPM at {self.tcti} refuses ({program}): {why[-200:]}.", hint=_HINT)
        return done.stdout


_HINT = (
    "Look at vault_tpm in node.toml, at the rights to /dev/tpmrm0 (group tss), and whether this is the machine, and its TPM was "
    "not cleared. Else the key is lost: leave with --erase, and join anew."
)


def parse(body: bytes, path: Path) -> Sealed:
    """A sealed secret that was read from a file; raises VaultKeyError."""
    try:
        found = msgspec.json.decode(body, type=Sealed)
        if found.format == 1 and bytes.fromhex(found.public) and bytes.fromhex(found.private):
            return found
    except (ValueError, msgspec.MsgspecError):
        pass
    raise VaultKeyError(f"{path} is damaged, or of another version.", hint="Restore it from a backup; no new key is made.")
