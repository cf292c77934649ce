"""Of numpy's files, nothing but numbers is read."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from flowformer.data.arrays import map_array, read_arrays


def test_numbers_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    np.savez(tmp_path / "x.npz", a=np.arange(3), b=np.array(True))
    assert map_array(tmp_path / "x.npy").tolist() == [0, 1, 2]
    assert {name: array.tolist() for name, array in read_arrays(tmp_path / "x.npz").items()} == {
        "a": [0, 1, 2],
        "b": True,
    }


@pytest.mark.parametrize("values", [["text"], np.array([{}], object)], ids=["text", "objects"])
def test_what_is_no_number_is_refused(tmp_path: Path, values) -> None:
    np.save(tmp_path / "x.npy", values, allow_pickle=True)
    np.savez(tmp_path / "x.npz", a=values)
    with pytest.raises(ValueError, match=f"^{tmp_path / 'x.npy'}: expected"):
        map_array(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=f"^{tmp_path / 'x.npz'}: expected"):
        read_arrays(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY\x01\x00", pickle.dumps([1]), b"\x93NUMPY\x01\x00\x08\x00{'a': ((("],
    ids=["empty", "cut-off", "pickle", "header"],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    for name, read in (("x.npy", map_array), ("x.npz", read_arrays)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"^{tmp_path / name}: expected"):
            read(tmp_path / name)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    for read in (map_array, read_arrays):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "x")
