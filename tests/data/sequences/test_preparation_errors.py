"""What is wrong with a user's files, said through `prepare_sequences`."""

import struct
from pathlib import Path

import pytest

from flowformer.data.options import SequenceOptions
from flowformer.data.sequences.pathfinder import generate_pathfinder, write_pathfinder
from flowformer.data.sequences.preparation import prepare_sequences, sequences_folder
from tests.data.sequences.arena_files import (
    aan_files,
    fashion_files,
    listops_files,
    pathfinder_files,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache of the person who runs this."""
    monkeypatch.setenv("FLOWFORMER_DATA", str(tmp_path / "cache"))


def cut_off_tsv(folder: Path) -> str:
    file = listops_files(folder) / "basic_val.tsv"
    file.write_bytes(file.read_bytes()[:-12])
    return r"basic_val\.tsv, line 6: expected .*truncated\?"


def cut_off_pair(folder: Path) -> str:
    aan_files(folder, test=b"1\tA\tB\ttext\n")
    return r"new_aan_pairs\.test\.tsv, line 1: expected 5 fields .*cut off\?"


def missing_picture(folder: Path) -> str:
    (pathfinder_files(folder) / "imgs" / "0" / "sample_3.png").unlink()
    return r"0\.npy, line 4: expected the picture .*sample_3\.png, found none"


def listops_label(folder: Path) -> str:
    (listops_files(folder) / "basic_test.tsv").write_text("Source\tTarget\n( ( [MAX 4 ) ] )\t10\n")
    return r"basic_test\.tsv, line 2: expected a target from 0 to 9, got '10'"


def pathfinder_label(folder: Path) -> str:
    file = pathfinder_files(folder) / "metadata" / "0.npy"
    file.write_text(file.read_text().replace("sample_0.png 0 0", "sample_0.png 0 2", 1))
    file.write_text(file.read_text().replace("sample_0.png 0 1", "sample_0.png 0 2", 1))
    return r"0\.npy, line 1: expected .* a label 0 or 1"


def aan_label(folder: Path) -> str:
    aan_files(folder, test=b"2\tA\tB\ttext\tmore\n")
    return r"new_aan_pairs\.test\.tsv, line 1: expected the label 0 or 1, got '2'"


def fashion_label(folder: Path) -> str:
    labels = struct.pack(">HBBI", 0, 8, 1, 2) + bytes([0, 10])
    (fashion_files(folder) / "t10k-labels-idx1-ubyte").write_bytes(labels)
    return r"fashion-mnist: test labels must be in \[0, 10\), got 0 to 10"


def larger_pictures(folder: Path) -> str:
    parts = {"train": 8, "validation": 1, "test": 1}
    write_pathfinder(generate_pathfinder(sizes=parts, size=64), folder)
    return r"expected pictures of 32 × 32 pixels, got \(64, 64\)"


def no_folder(folder: Path) -> str:
    return f"expected a folder with the files of listops, got .*{folder.name}"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("listops", cut_off_tsv),
        ("aan", cut_off_pair),
        ("pathfinder32", missing_picture),
        ("listops", listops_label),
        ("pathfinder32", pathfinder_label),
        ("aan", aan_label),
        ("fashion-mnist", fashion_label),
        ("pathfinder32", larger_pictures),
        ("listops", no_folder),
    ],
    ids=lambda value: value.__name__.replace("_", "-") if callable(value) else value,
)
def test_what_is_wrong_with_files_is_said_and_nothing_is_prepared(name, damage, tmp_path):
    message = damage(tmp_path / "files")
    options = SequenceOptions(dataset=name, folder=tmp_path / "files")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare_sequences(options)
    assert not sequences_folder(options).exists()


def test_listops_files_longer_than_allowed_are_refused_with_the_longest(tmp_path):
    folder = listops_files(tmp_path / "files", max_length=60)
    data = prepare_sequences(SequenceOptions(folder=folder))
    longest = max(int(split.inputs.lengths.max()) for split in data.splits.values())
    whole = prepare_sequences(SequenceOptions(folder=folder, max_length=longest))
    assert whole.splits["train"].inputs.values.tolist() == (
        data.splits["train"].inputs.values.tolist()
    )
    options = SequenceOptions(folder=folder, max_length=3)
    with pytest.raises(ValueError, match=f"at most max_length=3 tokens, got {longest} in"):
        prepare_sequences(options)
