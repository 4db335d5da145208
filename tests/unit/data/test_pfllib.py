import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from freehold.data import from_pfllib, objectarray
from freehold.data.objectarray import read_object_array
from freehold.errors import DataError, NotEnoughMemory, Unreadable


def folder(root: Path, *, clients: int = 3) -> Path:
    """A data set as PFLlib's `save_file` writes it."""
    rng = np.random.default_rng(0)
    for part, rows in (("train", 6), ("test", 2)):
        (root / part).mkdir(parents=True)
        for client in range(clients):
            data = {"x": rng.normal(size=(rows, 1, 4, 4)).astype(np.float32), "y": np.arange(rows) % 2}
            with (root / part / f"{client}.npz").open("wb") as file:
                np.savez_compressed(file, data=data)
    (root / "config.json").write_text(json.dumps({"num_clients": clients}))
    return root


def object_file(path: Path, stream: bytes) -> None:
    """A .npz whose array of objects is the given stream."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", header.getvalue() + stream)


def content(value: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(value, dtype=object), allow_pickle=True)
    return file.getvalue()


def test_clients_splits_and_numbers_are_read(tmp_path: Path) -> None:
    population = from_pfllib(folder(tmp_path / "mnist", clients=11))
    assert population.clients == tuple(map(str, range(11))) and population.classes == ("0", "1")
    assert population.features.shape == (88, 1, 4, 4)
    assert population.split is not None and (population.split == "test").sum() == 22
    with np.load(tmp_path / "mnist" / "test" / "10.npz", allow_pickle=True) as stored:
        expected = stored["data"].item()["x"]
    chosen = (population.client == "10") & (population.split == "test")
    np.testing.assert_array_equal(np.asarray(population.features)[chosen], expected)


def test_plain_arrays_are_read_as_well(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        np.savez(tmp_path / part / "0.npz", x=np.full((4, 2), len(part)), y=np.array([0, 1, 0, 1]))
    assert from_pfllib(tmp_path).features.shape == (8, 2)


@pytest.mark.parametrize(
    "value",
    [
        {"x": np.arange(6.0).reshape(2, 3), "y": np.array([0, 1])},
        {"x": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)), "y": np.array([True, False])},
        {"x": np.ones((2, 2), dtype=np.float16), "y": [1, 2]},
        {"x": [np.float32(1.5), np.int64(3)], "y": [], "note": "text", "none": None, "deep": [[1, 2], [3.5, -(2**40)]]},
    ],
)
def test_what_numpy_wrote_is_what_is_read(value: dict[str, object]) -> None:
    found = read_object_array(content(value))
    assert isinstance(found, dict) and set(found) == set(value)
    for name, each in value.items():
        np.testing.assert_equal(found[name], each)


PROTOCOL_2 = (  # {"x": array([1., 2.], float32)} as Python 2 and old numpy wrote it
    b"\x80\x02}q\x00X\x01\x00\x00\x00xq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04c_codecs\n"
    b"encode\nq\x05X\x01\x00\x00\x00bX\x06\x00\x00\x00latin1\x86R\x87R(K\x01K\x02\x85cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"
    b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89h\x05X\x09\x00\x00\x00\x00\x00\xc2\x80?\x00\x00\x00@"
    b"X\x06\x00\x00\x00latin1\x86Rtbs."
)


def test_old_files_are_read(tmp_path: Path) -> None:
    object_file(tmp_path / "0.npz", PROTOCOL_2)
    with zipfile.ZipFile(tmp_path / "0.npz") as archive:
        found = read_object_array(archive.read("data.npy"))
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["x"], np.array([1, 2], dtype=np.float32))


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_file_that_would_run_a_command_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    for data in (Malice(tmp_path / "ran"), {"x": Malice(tmp_path / "ran"), "y": np.array([0, 1])}):
        np.savez_compressed(root / "train" / "1.npz", data=np.array(data, dtype=object))
        with pytest.raises(Unreadable, match=r"system, which was not run"):
            from_pfllib(root)
    assert not (tmp_path / "ran").exists()
    with np.load(root / "train" / "1.npz", allow_pickle=True) as stored:
        _ = stored["data"]
    assert (tmp_path / "ran").exists()  # the file was a live one


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"\x80\x02cnumpy\nload\n.", "numpy.load"),
        (b"(ios\nsystem\n.", "the instruction INST"),
        (b"(cos\nsystem\no.", "os.system"),
        (b"(K\x01o.", "the instruction OBJ"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "the instruction NEWOBJ"),
        (b"P1\n.", "the instruction PERSID"),
        (b"K\x01Q.", "the instruction BINPERSID"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"cnumpy\nndarray\n.", "no data"),
        (b"cnumpy\nndarray\n(K\x01tR.", "a call of ndarray"),
        (b"\x80\x02}", "damaged"),
        (b"K\x01b.", "damaged"),
        (b"K\x01R.", "damaged"),
        (b"h\x07.", "damaged"),
        (b"t.", "damaged"),
        (b"", "damaged"),
        (b"\xff\xff", "damaged"),
        (b"]q\x00h\x00a.", "too deep"),
        (PROTOCOL_2.replace(b"K\x02\x85cnumpy\ndtype", b"K\x03\x85cnumpy\ndtype"), "does not fit"),
        (PROTOCOL_2.replace(b"f4", b"O8"), "damaged"),
        (PROTOCOL_2.replace(b"f4", b"V4"), "type 'V4'"),
    ],
)
def test_streams_that_are_more_than_data_are_refused(tmp_path: Path, stream: bytes, said: str) -> None:
    root = folder(tmp_path / "set")
    object_file(root / "test" / "0.npz", stream)
    with pytest.raises(Unreadable, match=said):
        from_pfllib(root)


def test_lists_that_repeat_each_other_do_not_explode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectarray, "_MOST_INSTRUCTIONS", 10_000)
    wide = b"]q\x01(" + b"h\x00" * 200 + b"e"
    stream = b"]q\x00" + b"".join(
        wide.replace(b"h\x00", b"h" + bytes([n])).replace(b"q\x01", b"q" + bytes([n + 1])) for n in range(5)
    )
    object_file(tmp_path / "0.npz", stream + b".")
    with zipfile.ZipFile(tmp_path / "0.npz") as archive, pytest.raises(Unreadable, match="repeated too often"):
        read_object_array(archive.read("data.npy"))


def test_folders_that_are_no_data_set_are_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"no \.npz files"):
        from_pfllib(tmp_path)
    root = folder(tmp_path / "set")
    (root / "train" / "0.npz").write_bytes(b"nothing")
    with pytest.raises(Unreadable, match=r"no \.npz file"):
        from_pfllib(root)
    np.savez(root / "train" / "0.npz", a=np.zeros((2, 2)))
    with pytest.raises(Unreadable, match="no x and y"):
        from_pfllib(root)
    np.savez(root / "train" / "0.npz", data=np.array({"x": np.zeros((2, 16)), "y": np.array([0, 1, 1])}, dtype=object))
    with pytest.raises(DataError, match="shape"):
        from_pfllib(root)
    with pytest.raises(NotEnoughMemory):
        from_pfllib(root, memory_limit_bytes=100)


def test_examples_in_train_and_test_are_noted(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    (root / "test" / "0.npz").write_bytes((root / "train" / "0.npz").read_bytes())
    assert from_pfllib(root).notes[-1] == "6 examples stand in train and in test of the same client."
