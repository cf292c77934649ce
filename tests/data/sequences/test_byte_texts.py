"""Texts as bytes: ids, and that what is cut is said."""

import pytest

from flowformer.data.sequences.byte_texts import from_texts

CLASSES = ("no", "yes")


def test_a_token_is_a_byte_and_the_cut_texts_are_counted():
    parts = {
        "train": [(1, b"\x00\xffab"), (0, b"abc"), (1, b"")],
        "test": [(0, "é".encode())],
    }
    data = from_texts("some", "a test", CLASSES, parts, max_length=3)
    train, test = data.splits["train"], data.splits["test"]
    assert [train.inputs[i].tolist() for i in range(3)] == [[1, 256, 98], [98, 99, 100], []]
    assert test.inputs[0].tolist() == [0xC3 + 1, 0xA9 + 1]
    assert train.labels.tolist() == [1, 0, 1]
    assert data.vocab_size == 257
    assert not data.paired
    assert data.source == (
        "a test. Of each text the first 3 bytes; longer were 1 of 3 in train, 0 of 1 in test"
    )


def test_both_texts_of_a_pair_are_cut():
    data = from_texts("some", "a test", CLASSES, {"test": [(1, b"abc", b"defgh")]}, max_length=2)
    split = data.splits["test"]
    assert split.others is not None
    assert (split.inputs[0].tolist(), split.others[0].tolist()) == ([98, 99], [101, 102])
    assert data.source.endswith("longer were 2 of 2 in test")


def test_without_a_length_nothing_is_cut():
    data = from_texts("some", "a test", CLASSES, {"test": [(1, b"x" * 9_999)]}, max_length=None)
    assert data.splits["test"].inputs.lengths.tolist() == [9_999]
    assert data.source == "a test"


@pytest.mark.parametrize(
    ("cases", "max_length", "message"),
    [
        ([], 9, "some: expected at least one case in train, got none"),
        ([(2, b"a")], 9, r"some: train labels must be in \[0, 2\), got 2 to 2"),
        ([(1, b"a")], 0, "expected a max_length of 1 and more, got 0"),
        ([(1, b"a"), (1, b"a", b"b")], 9, "expected 2 others, one a sequence, got 1"),
    ],
    ids=["none", "label", "length", "a pair among texts"],
)
def test_what_is_no_data_set_is_refused(cases, max_length, message):
    with pytest.raises(ValueError, match=message):
        from_texts("some", "a test", CLASSES, {"train": cases}, max_length=max_length)
