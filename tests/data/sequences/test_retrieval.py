"""The pairs of LRA's release: the format, and files that are damaged."""

import pytest

from flowformer.data.sequences.retrieval import read_aan

PARTS = {"train": "train", "eval": "validation", "test": "test"}


@pytest.fixture
def release(tmp_path):
    """A folder as released, of two pairs each; quotes are text there."""
    for part in PARTS:
        rows = [f'1.0\tP01\tP02\t"{part} one\ttwo', "0.0\tP03\tP04\tthree, é\tfour"]
        (tmp_path / f"new_aan_pairs.{part}.tsv").write_text(
            "".join(f"{row}\n" for row in rows), encoding="utf-8"
        )
    return tmp_path


def test_both_texts_and_the_label_of_each_pair_are_read(release):
    data = read_aan(release)
    assert list(data.splits) == ["train", "validation", "test"]
    assert data.paired
    for part, named in PARTS.items():
        split = data.splits[named]
        assert split.others is not None
        texts = [
            [bytes((sequences[i] - 1).tolist()).decode() for i in range(2)]
            for sequences in (split.inputs, split.others)
        ]
        assert texts == [[f'"{part} one', "three, é"], ["two", "four"]]
        assert [data.classes[label] for label in split.labels] == ["cites", "unrelated"]


def test_long_texts_are_cut_and_counted(release):
    data = read_aan(release, max_length=4)
    assert data.splits["train"].inputs.lengths.tolist() == [4, 4]
    assert "the first 4 bytes; longer were 2 of 4 in train" in data.source


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\tP1\tP2\ta\tb\n0\tP1\tP2\ta\n", r"line 2: expected 5 fields .*, got 4: cut off\?"),
        ("1\tP1\tP2\ta\tb\n\n", "line 2: expected 5 fields .*, got 1"),
        ("1\tP1\tP2\ta\tb\n0\tP1\tP2\ta\tb", "line 2: expected a line end, got none: cut off?"),
        ("2\tP1\tP2\ta\tb\n", "line 1: expected the label 0 or 1, got '2'"),
        ("", "expected at least one pair, got none"),
    ],
    ids=["short", "empty line", "cut text", "label", "empty"],
)
def test_a_damaged_file_is_refused_with_the_line(release, content, message):
    (release / "new_aan_pairs.eval.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_aan(release)


def test_a_missing_file_is_named(release):
    (release / "new_aan_pairs.eval.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected new_aan_pairs\.eval\.tsv in"):
        read_aan(release)
