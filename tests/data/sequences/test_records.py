"""Labelled sequences: what is refused, and that what was written is read again."""

import numpy as np
import pytest

from flowformer.data.sequences.records import SequenceData, Sequences, SequenceSplit


def some(*, labels: tuple[int, ...] = (0, 1, 1), token: int = 3) -> SequenceData:
    inputs = Sequences.of([np.array([1, 2]), np.array([token]), np.array([], dtype=int)])
    split = SequenceSplit(inputs, np.array(labels), others=inputs)
    return SequenceData("some", "a test", ("no", "yes"), 4, {"train": split, "test": split})


def test_what_was_written_is_read_again(tmp_path):
    some().save(tmp_path)
    read = SequenceData.load(tmp_path)
    assert (read.name, read.source, read.classes, read.vocab_size) == (
        ("some", "a test", ("no", "yes"), 4)
    )
    assert read.paired
    split = read.splits["test"]
    assert [split.inputs[i].tolist() for i in range(3)] == [[1, 2], [3], []]
    assert split.inputs.lengths.tolist() == [2, 1, 0]
    assert split.labels.tolist() == [0, 1, 1]
    with pytest.raises(IndexError, match=r"expected an index in \[0, 3\), got 3"):
        split.inputs[3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": (0, 1, 2)}, r"some: train labels must be in \[0, 2\), got 0 to 2"),
        ({"labels": (0, 1)}, "expected 3 labels, one a sequence, got 2"),
        ({"token": 4}, r"some: train tokens must be in \[1, 4\), got 1 to 4"),
        ({"token": 0}, r"some: train tokens must be in \[1, 4\), got 0 to 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        some(**changes)


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    some().save(tmp_path)
    (tmp_path / "description.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected a prepared data set"):
        SequenceData.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -8])
def test_a_truncated_file_is_named(tmp_path, keep):
    some().save(tmp_path)
    path = tmp_path / "test-values.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="damaged data set: delete it"):
        SequenceData.load(tmp_path)
