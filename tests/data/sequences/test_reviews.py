"""Reviews as bytes: the split, what is left out, and files that are damaged."""

import sys
from pathlib import Path

import pytest

from flowformer.data.sequences import reviews as module
from flowformer.data.sequences.records import SequenceData
from flowformer.data.sequences.reviews import (
    load_imdb,
    load_movie_reviews,
    load_reviews,
    read_reviews,
)


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
    monkeypatch.setattr(module.PackageFiles, "fetch", lambda *_: [path])
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
