"""`flowformer data list | prepare | show`."""

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from flowformer.data.language.corpora import CORPORA
from flowformer.data.language.recall import RECALL
from flowformer.data.language.tokenizers import CharacterTokenizer
from flowformer.data.language.tokens import open_text


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text, and no cache of the person who runs this."""
    monkeypatch.setenv("FLOWFORMER_DATA", str(tmp_path / "cache"))
    (tmp_path / "book.txt").write_text("".join(f"line {n} of a book\n" for n in range(100)))
    return tmp_path / "book.txt"


def test_list_names_every_text_and_its_source(flowformer):
    out = flowformer("data", "list").out
    for name, corpus in {**CORPORA, **RECALL}.items():
        assert f"{name} " in out
        assert corpus.description in out
        assert corpus.source in out


@pytest.mark.usefixtures("homeless")
def test_without_a_home_the_list_is_whole_and_what_needs_a_folder_says_so(flowformer, tmp_path):
    outcome = flowformer("data", "list")
    assert outcome.code == 0
    assert "Trajectories, in no folder: set FLOWFORMER_DATA, there is no home" in outcome.out
    assert outcome.out.endswith("flowformer data prepare NAME\n")
    (tmp_path / "book.txt").write_text("a line\n" * 100)
    for arguments in (("text", "--folder", tmp_path / "book.txt"), ("listops",)):
        outcome = flowformer("data", "prepare", *arguments)
        assert outcome.code == 2
        assert "set FLOWFORMER_DATA to a folder that can be written" in outcome.err
    given = ("--tokenizer", "char", "--output", tmp_path / "prepared")
    outcome = flowformer("data", "prepare", "text", "--folder", tmp_path / "book.txt", *given)
    assert outcome.code == 0


def test_prepare_writes_a_folder_and_show_says_what_is_in_it(flowformer, book, tmp_path):
    outcome = flowformer(
        *("data", "prepare", "text", "--folder", book),
        *("--tokenizer", "word", "--output", tmp_path / "prepared"),
    )
    assert outcome.code == 0
    text = open_text(tmp_path / "prepared")
    # 91 lines of 5 words and a line end
    assert (text.counts["train"].tokens, text.counts["train"].documents) == (91 * 6, 1)
    shown = flowformer("data", "show", tmp_path / "prepared").out
    assert shown in outcome.out
    assert f"text, word tokenizer with {text.tokenizer.vocab_size} tokens, in" in shown
    assert "train               1          546          546" in shown
    assert "line <unk> of a book" in shown


def test_prepare_without_a_folder_uses_the_one_that_training_looks_into(
    flowformer, book, monkeypatch
):
    from flowformer.train.language.config import TextDataConfig
    from flowformer.train.language.data import load_text

    monkeypatch.chdir(book.parent)  # flowformer train makes paths absolute
    outcome = flowformer("data", "prepare", "text", "--folder", book.name, "--tokenizer", "char")
    used = load_text(TextDataConfig(corpus="text", folder=book, tokenizer="char"))
    assert str(used.folder) in outcome.out


def test_an_edited_text_or_tokenizer_is_tokenised_anew_and_the_earlier_one_kept(book, tmp_path):
    from flowformer.train.language.config import TextDataConfig
    from flowformer.train.language.data import load_text

    config = TextDataConfig(corpus="text", folder=book, tokenizer="char")
    first = load_text(config)
    before = book.read_text()
    book.write_text(before + "one more line\n" * 100)
    edited = load_text(config)
    assert edited.counts["test"].characters > first.counts["test"].characters
    book.write_text(before)
    assert load_text(config).folder == first.folder != edited.folder
    own = replace(config, tokenizer_file=tmp_path / "own.json")
    folders = []
    for letters in ("line", "abc"):
        CharacterTokenizer(["<unk>", *letters]).save(tmp_path / "own.json")
        folders.append(load_text(own).folder)
        assert load_text(own).tokenizer.vocab_size == 1 + len(letters)
    assert folders[0] != folders[1]


def test_show_gives_the_beginning_of_a_text(flowformer, book):
    out = flowformer("data", "show", "text", "--folder", book).out
    assert "text: any text file" in out
    assert "line 0 of a book\nline 1 of a book\n" in out
    assert "line 99" not in out


def test_show_writes_samples_of_a_task_with_their_answers(flowformer):
    arguments = ("--length", 20, "--pairs", 3, "--vocab-size", 20, "--count", 2)
    shown = flowformer("data", "show", "recall", *arguments)
    assert shown.code == 0
    assert "Zoology (Arora et al. 2023); 20 tokens, a guess is right in 33.3 %" in shown.out
    samples = re.findall(r"test sample \d\n(.*)\n", shown.out)
    assert len(samples) == 2
    for sample in samples:
        words = sample.split()
        assert len(words) == 20
        known = set(zip(words[:6:2], words[1:6:2], strict=True))
        assert {tuple(word.split("→")) for word in words if "→" in word} == known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lists"], "unknown action 'lists': did you mean list? choose from list, prepare, coll"),
        (["show", "wiki-smal"], "unknown text or data set 'wiki-smal': did you mean wiki-small?"),
        (["prepare", "text"], "the corpus text is files of your own: give one, or a folder"),
        (["prepare", "copy"], "copy is a task, which needs no preparation: flowformer data show"),
        (["show", "copy", "--length", 8], "copy of pairs=8 needs a length of at least 16, got 8"),
        (["show", "recall", "--part", "dev"], "unknown part 'dev': choose from train, valid"),
    ],
    ids=["action", "corpus", "no-files", "task", "length", "part"],
)
@pytest.mark.usefixtures("book")
def test_what_was_asked_for_wrongly_is_said(flowformer, arguments, message):
    outcome = flowformer("data", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("name", ["hopper-v5-medum-v0", "wiki-smal", "pathfindr32", "nothing"])
def test_a_mistyped_name_lists_the_sets_of_every_kind(flowformer, monkeypatch, tmp_path, name):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "hopper-v5-medium-v0" / "data").mkdir(parents=True)
    (tmp_path / "hopper-v5-medium-v0" / "data" / "metadata.json").write_text("{}")
    said = flowformer("data", "show", name).err
    assert f"trajectories, in {tmp_path}: hopper-v5-medium-v0" in said
    assert "texts: wikitext-103, " in said
    assert "Long Range Arena: listops, " in said
    assert ("did you mean" in said) is (name != "nothing")
    prepared = flowformer("data", "prepare", "hopper-v5-medium-v0").err
    assert "a set of trajectories, which needs no preparation" in prepared


def test_what_a_file_of_episodes_does_not_say_is_said_beside_it(flowformer, tmp_path):
    path = tmp_path / "some.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((6, 2))
        file["actions"] = np.array([0, 1, 0, 1, 0, 1])
        file["rewards"] = np.ones(6)
        file["terminals"] = np.zeros(6, bool)
    assert "--data.time-limit" in flowformer("data", "show", path).err
    shown = flowformer("data", "show", path, "--time-limit", 3, "--num-actions", 4)
    assert shown.code == 0, shown.err
    assert "4 discrete" in shown.out
    assert re.search(r"episodes +2\n", shown.out)


def test_a_damaged_folder_is_named(flowformer, book, tmp_path):
    folder = tmp_path / "prepared"
    flowformer(
        "data", "prepare", "text", "--folder", book, "--tokenizer", "byte", "--output", folder
    )
    shard = folder / "validation-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    for arguments in (
        ["show", folder],
        ["prepare", "text", "--folder", book, "--tokenizer", "byte", "--output", folder],
    ):
        outcome = flowformer("data", *arguments)
        assert outcome.code == 2
        assert "validation-00000.bin has" in outcome.err
        assert "delete the folder and prepare the text again" in outcome.err


def test_help_lists_the_actions(flowformer):
    assert "usage: flowformer data ACTION" in flowformer("data").out
    assert "prepare  fetch, generate or tokenise one" in flowformer("data", "--help").out
