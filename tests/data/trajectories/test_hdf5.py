"""HDF5 files of somebody else: what lies in other files is not read, nor more than there is."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from flowformer.data.trajectories.d4rl import read_d4rl
from flowformer.data.trajectories.hdf5 import read_numbers, read_words, require_own


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A file that is none of the data set's."""
    path = tmp_path / "elsewhere.hdf5"
    with h5py.File(path, "w") as file:
        file["secret"] = np.arange(4.0)
    return path


def another(folder: Path, kind: str, elsewhere: Path) -> Path:
    """A file whose array `observations` is of a kind."""
    path = folder / "hopper-x-v0.hdf5"
    raw = folder / "raw"
    raw.write_bytes(bytes(32))
    layout = h5py.VirtualLayout((4,), float)
    layout[:] = h5py.VirtualSource(elsewhere, "secret", (4,))
    with h5py.File(path, "w") as file:
        for name in ("actions", "rewards", "terminals", "timeouts"):
            file[name] = np.zeros((4, 1), np.float32)
        file["real"] = np.arange(4.0)
        match kind:
            case "external-link":
                file["observations"] = h5py.ExternalLink(elsewhere, "secret")
            case "soft-link":
                file["observations"] = h5py.SoftLink("/real")
            case "external-values":
                raw_part = [(str(raw), 0, 32)]
                file.create_dataset("observations", (4,), float, external=raw_part)
            case "virtual":
                file.create_virtual_dataset("observations", layout)
            case "bomb":
                file.create_dataset("observations", (2**40,), "f4", chunks=(2**16,))
            case "text":
                file["observations"] = [b"one", b"two"]
            case "group":
                file.create_group("observations")
            case "empty":
                file["observations"] = h5py.Empty(float)
    return path


KINDS = {
    "external-link": "expected observations in this file, got a link",
    "soft-link": "expected observations in this file, got a link",
    "external-values": "expected the values of /observations in this file",
    "virtual": "expected the values of /observations in this file",
    "bomb": r"expected in /observations what the file can hold, got 4,398,046,511,104 bytes from 0",
    "text": "expected numbers in observations",
    "group": "expected an array observations",
    "empty": "expected an array observations",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_array_of_the_file_itself_is_refused(kind, tmp_path, elsewhere):
    path = another(tmp_path, kind, elsewhere)
    with h5py.File(path) as file, pytest.raises(ValueError, match=KINDS[kind]):
        read_numbers(file, "observations")
    with pytest.raises(ValueError, match=f"^{path}: {KINDS[kind]}"):
        read_d4rl(path)


@pytest.mark.parametrize("kind", ["external-link", "external-values", "virtual", "bomb"])
def test_it_is_refused_in_a_group_too(kind, tmp_path, elsewhere):
    with h5py.File(another(tmp_path, kind, elsewhere), "a") as file:
        file.create_group("episode_0")
        file.move("observations", "episode_0/observations")
        with pytest.raises(ValueError, match="expected"):
            require_own(file)
        del file["episode_0"]
        require_own(file)
        file["a/heap"] = "of variable length: found by fuzzing to be looked for for ever"
        with pytest.raises(ValueError, match="expected values of fixed length in /a/heap"):
            require_own(file)


def test_what_deflate_makes_small_is_read(tmp_path):
    zeros = np.zeros(10**7, np.float32)
    with h5py.File(tmp_path / "x", "w") as file:
        file.create_dataset("zeros", data=zeros, compression="gzip", chunks=True)
        assert file["zeros"].id.get_storage_size() < zeros.nbytes / 200
        np.testing.assert_array_equal(read_numbers(file, "zeros"), zeros)


def test_a_text_is_read_and_numbers_are_none(tmp_path):
    with h5py.File(tmp_path / "x", "w") as file:
        file["a/words"] = np.bytes_("some words")
        file["a/number"] = 3
        file["a/heap"] = "of variable length"
        assert read_words(file, "a/words") == b"some words"
        for name in ("a/number", "a", "a/nothing", "a/heap"):
            with pytest.raises(ValueError, match=f"expected .*{name}"):
                read_words(file, name)
