"""`freehold bundle`: the Python files of a task as one file, whose digest a plan names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from freehold.cli.places import AsJson


def bundle(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Has task.py, whose task() returns a TaskDefinition.")],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Where the bundle goes; FOLDER.bundle if not given.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Also run task() here, as you and in no sandbox, and say what it defines.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a bundle of a task's code: equal files, equal digest. Say what to write into a plan, and into an owner's policy."""
    from freehold.cli.console import visible
    from freehold.cli.output import check_writable, write
    from freehold.plan.bundle import digest_of, gather, imported, pack

    target = output or Path(f"{folder.resolve().name}.bundle")
    check_writable(target)
    files = gather(folder)
    body = pack(files)
    digest, imports = digest_of(body), imported(files)
    defined = _defined(files) if check else None
    write(target, body.decode())
    if as_json:
        told = {"file": str(target), "digest": digest, "bytes": len(body), "files": sorted(files), "imports": imports}
        if defined is not None:
            told["task"] = dict(zip(("name", "version"), defined, strict=True))
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
        return
    name, version = defined or ("NAME", "1")
    lines = [
        f"Written: {target}  {len(body)} bytes, {len(files)} files",
        *(f"  {path}" for path in sorted(files)),
        f"It imports: {', '.join(imports) or 'nothing'}",
        f"Digest {digest}",
        "In a plan, where `freehold study new NAME --bundle` writes it:",
        f'  [task]\n  name = "{name}"\n  version = "{version}"\n  bundle = "{digest}"',
        "In the policy of an owner who allows it, with noise by the guard:",
        f'  code = ["{digest}"]',
    ]
    sys.stdout.write(visible("\n".join(lines)) + "\n")


def _defined(files: dict[str, str]) -> tuple[str, str]:
    from freehold.tasks.bundled import imported

    found = imported(files)
    return found.name, found.version
