"""Preparing a text: what it is given, what it refuses, and being killed at any moment."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowformer.data.language import preparation as text_preparation
from flowformer.data.language.preparation import prepare_text
from flowformer.data.language.tokenizers import train_tokenizer
from flowformer.data.language.tokens import open_text
from tests.data.language.texts import Texts, some_texts

# Each moment in its own process, forked off one that has imported everything. SIGKILL comes before
# and after every rename and every flush to disk, and between documents.
KILLS = '''
import os, signal, sys
from pathlib import Path
from flowformer.data.language.preparation import prepare_text
from tests.data.language.texts import some_texts

root = Path(sys.argv[1])
options = dict(tokenizer="bpe", shard_tokens=80, vocab_size=270)

def prepare(folder, moment):
    """Prepare, killed at the given moment; whether it got to the end."""
    child = os.fork()
    if not child:
        passed = 0
        def tick():
            nonlocal passed
            passed += 1
            if passed == moment:
                os.kill(os.getpid(), signal.SIGKILL)
        def around(call):
            def wrapped(*arguments):
                tick()
                result = call(*arguments)
                tick()
                return result
            return wrapped
        # A killed process loses nothing that it has written, flushed to the disk or not.
        os.fsync, Path.replace = lambda descriptor: tick(), around(Path.replace)
        corpus = some_texts()
        documents = corpus.documents
        corpus.documents = lambda part: (text for text in documents(part) if tick() is None)
        prepare_text(corpus, folder, **options)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0

assert prepare(root / "whole", 0)
moment, done = 0, False
while not done:
    moment += 1
    done = prepare(root / f"killed-{moment}", moment)
    assert prepare(root / f"killed-{moment}", 0)
moment = 0
while not prepare(root / "killed-many-times", moment := moment + 5):
    pass
assert moment > 25, moment
'''


def test_two_that_prepare_one_folder_take_turns(tmp_path: Path) -> None:
    told: list[int] = []

    def prepare(number: int) -> dict[str, bytes]:
        corpus = some_texts()
        documents = corpus.documents

        def slowly(part: str) -> Iterator[str]:
            for text in documents(part):
                told.append(number)
                time.sleep(0.02)
                yield text

        corpus.documents = slowly
        return content(prepare_text(corpus, tmp_path / "text", tokenizer="word").folder)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare, range(2))
    assert first == second
    assert len(set(told)) == 1  # the other one found it done


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")
    }


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS, str(tmp_path)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folders = sorted(tmp_path.glob("[!.]*"))  # locks lie beside them
    assert len(folders) > 40  # the moments
    whole = content(tmp_path / "whole")
    assert {"meta.json", "tokenizer.json", "train-00002.bin", "test-00000.bin"} <= whole.keys()
    for folder in folders:
        assert content(folder) == whole, folder.name
        assert not list(folder.glob(".*")), folder.name


def test_what_is_there_is_opened_and_not_made_again(tmp_path: Path) -> None:
    prepare_text(some_texts(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    text = prepare_text(some_texts(), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert text.counts["train"].documents == 12


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    prepare_text(some_texts(), tmp_path, tokenizer="word", min_count=2)
    with pytest.raises(
        ValueError,
        match=r"was prepared with other settings: tokenizer is 'word' there, 'char' asked for; "
        r"min_count is 2 there, 1 asked for\. Take another folder, or delete this one",
    ):
        prepare_text(some_texts(), tmp_path, tokenizer="char")


def test_another_text_under_the_same_name_is_refused(tmp_path: Path) -> None:
    prepare_text(some_texts(seed=0), tmp_path)
    with pytest.raises(ValueError, match="other settings: text is"):
        prepare_text(some_texts(seed=1), tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"expected an empty folder.* has thesis\.tex"):
        prepare_text(some_texts(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("empty", [[], ["", " \n\n"]], ids=["no-documents", "blank-documents"])
def test_an_empty_part_is_named(tmp_path: Path, part: str, empty: list[str]) -> None:
    parts = {**some_texts().parts, part: empty}
    expected = (
        "expected a text to build" if part == "train" else f"the {part} part of mine is empty"
    )
    with pytest.raises(ValueError, match=expected):
        prepare_text(Texts(**parts), tmp_path)
    with pytest.raises(ValueError, match=r"the preparation of .* did not end"):
        open_text(tmp_path)


def test_an_empty_training_part_is_named_where_no_vocabulary_is_built(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the train part of mine is empty"):
        prepare_text(Texts(train=[], validation=["a"], test=["a"]), tmp_path, tokenizer="byte")


def test_a_given_tokenizer_is_used_and_is_part_of_the_settings(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("word", ["a b\n"])
    tokenizer.save(tmp_path / "mine.json")
    text = prepare_text(some_texts(), tmp_path / "text", tokenizer=tmp_path / "mine.json")
    assert text.tokenizer.to_json() == tokenizer.to_json()
    assert text.counts["train"].unknown > 0
    assert len(prepare_text(some_texts(), tmp_path / "text", tokenizer=tokenizer).train) > 0
    other = train_tokenizer("word", ["a c\n"])
    with pytest.raises(ValueError, match="other settings: tokenizer is"):
        prepare_text(some_texts(), tmp_path / "text", tokenizer=other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_tokens": 0}, "shard_tokens must be at least 1, got 0"),
        ({"tokenizer": "letters"}, "tokenizer must be one of char, byte, word, bpe, or a file"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_text(some_texts(), tmp_path, **options)


@pytest.mark.parametrize("options", [{"vocab_size": 9}, {"min_count": 2}], ids=str)
def test_a_given_tokenizer_has_its_size_already(tmp_path: Path, options: dict) -> None:
    with pytest.raises(ValueError, match="are for a tokenizer that is trained"):
        prepare_text(some_texts(), tmp_path, tokenizer=train_tokenizer("byte", []), **options)


@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe"])
def test_a_long_document_is_encoded_in_pieces_with_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    document = "one  two\n\n\n three four\n\tfive\nsix " * 9
    corpus = Texts(train=[document, document], validation=["a\n"], test=["a\n"])
    options = {"tokenizer": kind, "vocab_size": 280 if kind == "bpe" else None}
    whole = prepare_text(corpus, tmp_path / "whole", **options)
    monkeypatch.setattr(text_preparation, "_PIECE", 7)
    assert len(list(text_preparation._pieces(document))) > 9
    pieces = prepare_text(corpus, tmp_path / "pieces", **options)
    assert pieces.train[:].tolist() == whole.train[:].tolist()
    assert content(tmp_path / "pieces") == content(tmp_path / "whole")


def test_progress_is_that_of_the_characters_of_each_part(
    tmp_path: Path, told: list[tuple[str, int, int]]
) -> None:
    text = prepare_text(some_texts(), tmp_path)
    for part, counts in text.counts.items():
        mine = [
            (done, total) for what, done, total in told if what == f"tokenising the {part} part"
        ]
        assert mine == sorted(mine)
        assert mine[-1] == (counts.characters, counts.characters)
    vocabulary = [done for what, done, _ in told if what == "reading the vocabulary"]
    assert vocabulary[-1] == text.counts["train"].documents


def test_meta_says_what_was_asked_for(tmp_path: Path) -> None:
    prepare_text(some_texts(), tmp_path, min_count=2)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["complete"] is True
    assert meta["settings"]["corpus"] == "mine"
    assert meta["settings"]["tokenizer"] == "word"
    assert meta["settings"]["min_count"] == 2
