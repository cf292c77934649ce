"""A prepared text on disk: slices across shards, documents, counts, and damage."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from flowformer.data.language.preparation import prepare_text
from flowformer.data.language.tokens import PARTS, PreparedText, open_text
from tests.data.language.texts import Texts, some_texts


@pytest.fixture
def text(tmp_path: Path) -> PreparedText:
    return prepare_text(some_texts(), tmp_path / "text", shard_tokens=50)


def everything(text: PreparedText, part: str) -> list[int]:
    tokens = [text.tokenizer.encode(one) for one in some_texts().parts[part]]
    return [token for document in tokens for token in document]


@pytest.mark.parametrize("part", PARTS)
def test_the_shards_together_are_the_whole_part(text: PreparedText, part: str) -> None:
    tokens = text.part(part)
    assert tokens[:].tolist() == everything(text, part)
    assert len(tokens) == len(everything(text, part)) == text.counts[part].tokens


def test_a_slice_is_that_of_one_long_array(text: PreparedText) -> None:
    assert len(list(text.folder.glob("train-*.bin"))) > 2
    expected, tokens = everything(text, "train"), text.train
    size = len(expected)
    for start in range(0, size + 2, 7):
        for stop in (start, start + 1, start + 63, size, size + 5, -3):
            assert tokens[start:stop].tolist() == expected[start:stop], (start, stop)
    assert [tokens[place] for place in (0, 5, -1)] == [expected[place] for place in (0, 5, -1)]


def test_a_place_outside_or_another_step_is_an_error(text: PreparedText) -> None:
    size = len(text.train)
    for place in (size, -size - 1):
        with pytest.raises(IndexError, match=f"expected a place in {size} tokens, got {place}"):
            text.train[place]
    with pytest.raises(ValueError, match="expected a slice with step 1, got 2"):
        text.train[::2]


def test_documents_start_where_they_start(text: PreparedText) -> None:
    starts = text.train.documents
    texts = some_texts().parts["train"]
    assert starts.dtype == np.int64
    assert len(starts) == len(texts) + 1
    for start, stop, document in zip(starts, starts[1:], texts, strict=False):
        assert text.tokenizer.decode(text.train[start:stop].tolist()) == document


def test_tokens_are_mapped_not_read_and_pickle_as_paths(text: PreparedText) -> None:
    inside = text.train[3:9]
    assert isinstance(inside.base, np.memmap) or isinstance(inside, np.memmap)
    content = pickle.dumps(text.train)
    assert pickle.loads(content)[:].tolist() == text.train[:].tolist()
    text.train._read(0, 1)
    assert len(pickle.dumps(text.train)) == len(content)


def test_counts_are_of_words_and_line_ends_whatever_the_tokenizer(tmp_path: Path) -> None:
    corpus = Texts(train=["a b\n\nc"], validation=["a\n", "z b\n"], test=["a\n"])
    for kind in ("char", "byte", "word", "bpe"):
        text = prepare_text(
            corpus, tmp_path / kind, tokenizer=kind, vocab_size=257 if kind == "bpe" else None
        )
        counts = text.counts
        assert [counts[part].words for part in PARTS] == [6, 5, 2], kind
        assert [counts[part].characters for part in PARTS] == [7, 6, 2]
        assert [counts[part].documents for part in PARTS] == [1, 2, 1]
        unknown = {"char": 1, "word": 1}.get(kind, 0)  # z
        assert counts["validation"].unknown == unknown
    assert text.counts["train"].tokens == 8  # the bytes, and the end of the document


@pytest.mark.parametrize(("size", "expected"), [(65_530, "<u2"), (65_540, "<u4")])
def test_two_bytes_a_token_serve_up_to_65536_tokens(
    tmp_path: Path, size: int, expected: str
) -> None:
    words = [f"w{number}" for number in range(size)]
    text = prepare_text(
        Texts(train=[" ".join(words)], validation=["w1\n"], test=[f"w{size - 1}\n"]), tmp_path
    )
    assert text.train[:3].dtype == np.dtype(expected)
    assert text.tokenizer.decode(text.test[:].tolist()) == f"w{size - 1}\n"


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-2])
    elif how == "longer":
        path.write_bytes(content + b"\0\0")
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("missing", FileNotFoundError, "is missing"),
        ("truncated", ValueError, r"has \d+ bytes, expected \d+ for \d+ tokens in \d+ documents"),
        ("longer", ValueError, r"has \d+ bytes, expected"),
        ("altered", ValueError, "was altered: its SHA-256 begins with"),
    ],
)
def test_a_damaged_shard_is_named_with_the_remedy(
    text: PreparedText, how: str, error: type[Exception], message: str
) -> None:
    damage(text.folder / "train-00001.bin", how)
    with pytest.raises(error, match=rf"train-00001\.bin {message}.*: delete the folder and prep"):
        open_text(text.folder)


def test_without_verification_sizes_are_compared_and_contents_are_not(text: PreparedText) -> None:
    path = text.folder / "train-00001.bin"
    damage(path, "altered")
    assert len(open_text(text.folder, verify=False).train) == len(text.train)
    damage(path, "truncated")
    with pytest.raises(ValueError, match="bytes, expected"):
        open_text(text.folder, verify=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"meta\.json is damaged"),
        ("{}", r"meta\.json is damaged"),
        ("[]", r"meta\.json is damaged"),
        ('{"format": 9, "settings": {}, "shards": {}}', "has format 9, expected 1"),
    ],
)
def test_a_damaged_meta_file_is_named(text: PreparedText, content: str, message: str) -> None:
    (text.folder / "meta.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_text(text.folder)


def test_a_tokenizer_of_another_size_is_an_error(text: PreparedText) -> None:
    path = text.folder / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "symbols": [*content["symbols"], "more"]}))
    with pytest.raises(ValueError, match=r"tokenizer\.json has 11 tokens, meta\.json says 10"):
        open_text(text.folder)


def test_a_folder_without_a_text_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="flowformer data prepare makes such a folder"):
        open_text(tmp_path)


def test_an_unknown_part_lists_the_parts(text: PreparedText) -> None:
    with pytest.raises(ValueError, match="part must be one of train, validation, test, got 'dev'"):
        text.part("dev")
