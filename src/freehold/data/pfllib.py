"""PFLlib's data folders: <folder>/{train,test}/<client>.npz, as its dataset/generate_*.py write them.

Source of the layout: TsingZ0/PFLlib, dataset/utils/dataset_utils.py, `save_file`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from freehold.data.arrays import from_arrays
from freehold.data.memory import available_bytes
from freehold.data.objectarray import Numbers, read_object_array
from freehold.data.overlap import overlapping
from freehold.data.population import Population, natural
from freehold.errors import DataError, NotEnoughMemory, Unreadable

LIMIT_BYTES = 4 << 30  # unpacked, for one file


def from_pfllib(folder: str | Path, *, memory_limit_bytes: int | None = None) -> Population:
    """The population in a folder that PFLlib generated; its train and test examples stay train and test.

    PFLlib stores each client as a dictionary inside an array of objects, which numpy writes as a pickle: a program. It is
    not run here; `objectarray` reads the numbers out of it and refuses everything else with Unreadable. Files that hold
    plain arrays `x` and `y` are read as well. The files are numbered, so a client is called "0", "1", ...
    Examples that stand in train and in test (Fashion-MNIST has some) are kept and counted in the notes.
    """
    root = Path(folder)
    files = [(part, path) for part in ("train", "test") for path in _files(root / part)]
    there = available_bytes() if memory_limit_bytes is None else memory_limit_bytes
    need = 3 * sum(_unpacked(path) for _, path in files)
    if need > there:
        raise NotEnoughMemory(
            f"{root} needs about {need >> 20} MiB of memory; {there >> 20} MiB are there.",
            hint="Generate it with fewer examples.",
        )
    features: list[Numbers] = []
    targets: list[Numbers] = []
    clients: list[str] = []
    parts: list[str] = []
    for part, path in files:
        x, y = _client(path)
        if features and x.shape[1:] != features[0].shape[1:]:
            raise DataError(
                f"{path} holds examples of shape {list(x.shape[1:])}, but {files[0][1]} of {list(features[0].shape[1:])}.",
                hint="All files of the folder must come from one run of PFLlib's generator.",
            )
        features.append(x)
        targets.append(y)
        clients += [path.stem] * len(x)
        parts += [part] * len(x)
    population = replace(
        from_arrays(np.concatenate(features), np.concatenate(targets), clients, name=root.name or "pfllib"),
        split=np.array(parts),
    )
    doubles = len(overlapping(population))
    note = f"{doubles} examples stand in train and in test of the same client." if doubles else ""
    return replace(population, notes=(*population.notes, *filter(None, [note])))


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.npz"), key=lambda path: natural(path.stem)) if folder.is_dir() else []
    if not found:
        raise Unreadable(
            f"{folder} holds no .npz files.", hint="Give the folder of one PFLlib data set, with train/ and test/ in it."
        )
    return found


def _unpacked(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise Unreadable(f"{path} is no .npz file: {error}.", hint="Generate it again.") from error
    if size > LIMIT_BYTES:
        raise Unreadable(f"{path} unpacks to {size >> 20} MiB.", hint=f"A client's file may have {LIMIT_BYTES >> 20} MiB.")
    return size


def _client(path: Path) -> tuple[Numbers, Numbers]:
    """x [n, ...] and y [n] of one file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.removesuffix(".npy"): read_object_array(archive.read(name)) for name in archive.namelist()}
    except Unreadable as error:
        raise Unreadable(f"{path}: {error.message}", hint=error.hint) from error
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, zipfile.LargeZipFile) as error:
        raise Unreadable(f"{path} is no .npz file: {error}.", hint="Generate it again.") from error
    content = entries.get("data", entries)
    if not isinstance(content, Mapping) or not {"x", "y"} <= set(content):
        raise Unreadable(f"{path} holds no x and y.", hint="Expected what PFLlib's generators write: data = {x, y}.")
    x, y = (_numbers(content[name], f"{name} of {path}") for name in ("x", "y"))
    if y.ndim != 1 or len(x) != len(y) or x.ndim < 2:
        raise DataError(
            f"{path} has x of shape {list(x.shape)} and y of shape {list(y.shape)}.", hint="Expected [n, ...] and [n]."
        )
    return x, y


def _numbers(value: object, where: str) -> Numbers:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise Unreadable(f"{where} has rows of different length.", hint="Pad them to one length first.") from error
    if array.dtype.kind not in "biuf":
        raise Unreadable(f"{where} does not hold numbers.", hint="Only numeric PFLlib data sets can be read.")
    return array
