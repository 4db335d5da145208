"""Each client's own model after the last round, as a safetensors file."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from safetensors import SafetensorError
from safetensors.torch import save_file

from freehold import durable
from freehold.core import Algorithm, Tree, flatten
from freehold.engines import Runner
from freehold.errors import UsageError

LONGEST = 200
"""Characters of a file's name without its ending; file systems allow 255 bytes."""

SUFFIX = ".safetensors"


def place_of(folder: Path, row: str, seed: int) -> Path:
    """Where the models of a row with a seed lie: `ROW/seed-0`."""
    return folder / file_name(row) / f"seed-{seed}"


def export_models(
    place: Path,
    algorithm: Algorithm,
    runner: Runner,
    server: Tree,
    *,
    clients: Sequence[str],
    about: Mapping[str, str],
) -> None:
    """Write to `place`, whole or not at all, the state that each client predicts with, under the names of the task's module.

    Where a state is not enough to predict with, the personal state stands beside it, its names beginning with "personal/". The
    metadata are `about`, and the client's name, which the file's name is made of. Raises UsageError where the disk is full.
    """
    shared = algorithm.broadcast(server)
    part = place.with_name(f".{place.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for client in clients:
            personal = runner.adapted(shared, client)
            tensors = flatten(algorithm.personalize(shared, personal))
            if algorithm.predict is not None:
                tensors |= flatten(personal, "personal/")
            whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
            save_file(whole, part / f"{file_name(client)}{SUFFIX}", metadata={**about, "client": client})
        shutil.rmtree(place, ignore_errors=True)
        durable.name(part, place, point="study.models")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UsageError(
            f"The models could not be written to {place}: {getattr(error, 'strerror', None) or error}.",
            hint="Free some space, or write elsewhere: --models FOLDER.",
        ) from None


def file_name(text: str) -> str:
    """A name that is safe in any folder, and another one for each text: escaped as in a URL, and cut with a digest if long."""
    escaped = quote(text, safe=" +,=@()")
    if not escaped.strip(".") or escaped.startswith((".", " ")):
        escaped = f"%{ord(escaped[0]):02X}{escaped[1:]}" if escaped else "%"
    if len(escaped) > LONGEST:
        escaped = f"{escaped[: LONGEST - 17]}~{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return escaped
