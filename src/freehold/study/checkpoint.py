"""What an interrupted study leaves: finished cells as JSON, running ones as safetensors; each file replaced as a whole, and
with a digest of what is in it, so that a flipped bit is noticed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from freehold import durable
from freehold.engines import Sealed
from freehold.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Running:
    """The state of a cell between two rounds."""

    rounds_done: int
    server: Mapping[str, torch.Tensor]
    """Flattened."""
    personal: Mapping[str, Mapping[str, torch.Tensor]]
    """client -> flattened personal state."""
    history: Mapping[str, Any]
    """What was measured so far."""
    arena: Sealed | None = None
    """What the arena of the cell has, if the personal states lie there."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The folder of one study; its name is a digest of all that decides the result."""

    folder: Path

    @classmethod
    def of(cls, base: Path, identity: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint of the study with this identity."""
        text = json.dumps(identity, sort_keys=True)
        return cls(folder=base / hashlib.sha256(text.encode()).hexdigest()[:16])

    def exists(self) -> bool:
        """Whether an interrupted run left anything."""
        return self.folder.is_dir() and any(self.folder.iterdir())

    def set_aside(self) -> Path | None:
        """Start anew, and keep what an interrupted run left until the study is done; where it is kept, None if there is
        nothing."""
        if not self.exists():
            return None
        place = self._aside(max((int(path.suffix[1:]) for path in self._set_aside()), default=0) + 1)
        with _writing(self.folder):
            self.folder.rename(place)
        return place

    def take_back(self) -> None:
        """Go on with the run that finished most cells, of those that were interrupted; of equals, the last one."""
        runs = [*self._set_aside(), *([self.folder] if self.exists() else [])]
        if not runs:
            return
        best = max(reversed(runs), key=lambda run: len(list(run.glob("*.json"))))
        if best != self.folder:
            self.set_aside()
            with _writing(self.folder):
                best.rename(self.folder)

    def remove(self) -> None:
        """Forget it and all that was set aside: the study is done."""
        for folder in (self.folder, *self._set_aside()):
            shutil.rmtree(folder, ignore_errors=True)

    def _aside(self, number: int) -> Path:
        return self.folder.with_name(f"{self.folder.name}-aside.{number}")

    def _set_aside(self) -> list[Path]:
        found = self.folder.parent.glob(f"{self.folder.name}-aside.*") if self.folder.parent.is_dir() else ()
        return sorted((path for path in found if path.suffix[1:].isdigit()), key=lambda path: int(path.suffix[1:]))

    def save_done(self, cell: str, result: Mapping[str, Any]) -> None:
        """A finished cell; its running state is no longer needed."""
        with _writing(self.folder):
            told = {"digest": hashlib.sha256(_canonical(result)).hexdigest(), "result": result}
            durable.write(self.folder / f"{cell}.json", json.dumps(told).encode(), point="study.done")
            (self.folder / f"{cell}.safetensors").unlink(missing_ok=True)
        shutil.rmtree(self.arena(cell), ignore_errors=True)

    def arena(self, cell: str) -> Path:
        """The folder of a running cell's personal states, if they are too large to be written anew each time."""
        return self.folder / f"{cell}.arena"

    def load_done(self, cell: str) -> dict[str, Any] | None:
        """The result of a finished cell, or None."""
        path = self.folder / f"{cell}.json"
        if not path.exists():
            return None
        try:
            told = json.loads(path.read_bytes())
            found: dict[str, Any] = told["result"]
            whole = told["digest"] == hashlib.sha256(_canonical(found)).hexdigest()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise damaged(path) from None
        if not whole:
            raise damaged(path)
        return found

    def save_running(self, cell: str, running: Running) -> None:
        """A cell between two rounds."""
        clients = list(running.personal)
        tensors = {f"server/{k}": v.contiguous().clone() for k, v in running.server.items()}
        for i, client in enumerate(clients):
            tensors |= {f"personal/{i}/{k}": v.contiguous().clone() for k, v in running.personal[client].items()}
        about = {"rounds_done": running.rounds_done, "clients": clients, "history": running.history, "arena": running.arena}
        path = self.folder / f"{cell}.safetensors"
        new = path.with_suffix(".new")
        with _writing(self.folder):
            said = json.dumps(about)
            save_file(tensors, new, metadata={"about": said, "digest": _digest(said, tensors)})
            durable.sync(new)
            durable.name(new, path, point="study.running")

    def load_running(self, cell: str) -> Running | None:
        """The state of an interrupted cell, or None."""
        path = self.folder / f"{cell}.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                about = json.loads(metadata["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            if metadata["digest"] != _digest(metadata["about"], tensors):
                raise damaged(path)
            personal: dict[str, dict[str, torch.Tensor]] = {client: {} for client in about["clients"]}
            for name, tensor in tensors.items():
                kind, _, rest = name.partition("/")
                if kind == "personal":
                    index, _, inner = rest.partition("/")
                    personal[about["clients"][int(index)]][inner] = tensor
            return Running(
                rounds_done=int(about["rounds_done"]),
                server={k.removeprefix("server/"): v for k, v in tensors.items() if k.startswith("server/")},
                personal=personal,
                arena=None if about.get("arena") is None else _sealed(*about["arena"]),
                history={
                    "points": list(about["history"]["points"]),
                    "sent_bytes": int(about["history"]["sent_bytes"]),
                    "choice": about["history"].get("choice"),
                },
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise damaged(path) from None


def _canonical(result: Mapping[str, Any]) -> bytes:
    return json.dumps(result, sort_keys=True).encode()


def _digest(about: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A full or unwritable disk as an error that says so; what was saved before stays whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The checkpoint cannot be written to {folder}: {getattr(error, 'strerror', None) or error}.",
            hint="Make room, or choose another folder: --checkpoint DIR.",
        ) from None


def _sealed(arena: str, generation: int, digest: str) -> Sealed:
    return Sealed(str(arena), int(generation), str(digest))


def damaged(path: Path) -> CheckpointError:
    """The error for a checkpoint that cannot be read."""
    return CheckpointError(f"The checkpoint {path} is damaged.", hint="Run the command without --resume to start anew.")
