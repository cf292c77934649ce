"""Passages of Wikipedia as pairs: of one article or of two, balanced, and apart by article."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flowformer.data.sequences.records import SequenceData
from flowformer.data.standins import packaged as corpora
from flowformer.data.standins.packaged import load_wiki_passages

LENGTH = 24


@pytest.fixture(autouse=True)
def wiki(monkeypatch: pytest.MonkeyPatch) -> None:
    """Articles whose words tell which one they are of, in place of the packages'."""
    full = {
        f"Article {n}": "".join(
            f"= = Heading {n} = =\nw{n} word{i} w{n} w{i * i}\n" for i in range(40)
        )
        for n in range(20)
    }
    first = {
        f"Lead {n}": f"w{n + 20} is short, w{n + 20} has one pair of passages\n" for n in range(40)
    }
    full["Copy"] = full["Article 0"]
    monkeypatch.setattr(corpora, "_fetch_wiki", lambda _: (full, first))


def pairs(data: SequenceData, part: str) -> list[tuple[str, str, int]]:
    split = data.splits[part]
    assert split.others is not None
    texts = [
        [bytes((column[i] - 1).astype(np.uint8)).decode() for i in range(len(column))]
        for column in (split.inputs, split.others)
    ]
    return list(zip(*texts, split.labels.tolist(), strict=True))


def test_a_passage_is_as_often_in_pairs_of_one_article_as_of_two():
    data = load_wiki_passages(max_length=LENGTH)
    for part in ("train", "validation", "test"):
        cases = pairs(data, part)
        for place in (0, 1):
            of = [Counter(case[place] for case in cases if case[2] == label) for label in (0, 1)]
            assert of[0] == of[1]
        assert {max(of[1].values()), len(cases) % 2} == {1, 0}
        assert all(0 < len(text) <= LENGTH for case in cases for text in case[:2])
        assert not any("Heading" in text for case in cases for text in case[:2])


def test_no_passage_is_in_two_parts_or_comes_twice_and_labels_are_right():
    data = load_wiki_passages(max_length=LENGTH)
    every = [pairs(data, part) for part in data.splits]
    passages = [{text for case in cases for text in case[:2]} for cases in every]
    assert sum(map(len, passages)) == len(set.union(*passages))
    source = {}
    for full in corpora._fetch_wiki(None):
        for title, text in full.items():
            source[title] = " ".join(line for line in text.split("\n") if line[:1] != "=")
    del source["Copy"]
    for first, second, label in (case for cases in every for case in cases):
        both = [text for text in source.values() if first in text and second in text]
        assert bool(both) == bool(label), (first, second)


def test_the_seed_alone_tells_the_pairs():
    one, again, other = (
        pairs(load_wiki_passages(max_length=LENGTH, seed=s), "train") for s in (1, 1, 2)
    )
    assert one == again != other


def test_it_says_what_it_is_and_what_is_wrong(tmp_path: Path):
    data = load_wiki_passages(tmp_path, max_length=LENGTH)
    assert data.classes == ("two articles", "one article")
    assert data.source.startswith("pairs of passages from 61 articles of Wikipedia")
    assert "not Long Range Arena's AAN" in data.source
    with pytest.raises(ValueError, match="expected a max_length of 1 and more, got 0"):
        load_wiki_passages(max_length=0)
    with pytest.raises(ValueError, match="give a smaller max_length"):
        load_wiki_passages(max_length=2000)
