"""`flowformer data list | prepare | show` of the Long Range Arena's sets."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from flowformer.data.options import SequenceOptions
from flowformer.data.sequences.listops import LISTOPS_TOKENS, evaluate_listops, write_listops
from flowformer.data.sequences.preparation import (
    SEQUENCE_SETS,
    prepare_sequences,
    sequences_folder,
)
from flowformer.data.sequences.records import SequenceData
from flowformer.report.figures import contact_sheet

LISTOPS = ("--min-length", "4", "--max-length", "30", "--max-depth", "4")
PAIR = b"1\tA\tB\tattention is\tall you need\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No cache of the person who runs this, and a folder to leave pictures in."""
    monkeypatch.setenv("FLOWFORMER_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The release's files of Retrieval, with a pair each."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for part in ("train", "eval", "test"):
        (folder / f"new_aan_pairs.{part}.tsv").write_bytes(PAIR)
    return folder


def test_list_names_every_set_and_its_source(flowformer):
    out = flowformer("data", "list").out
    for name, of in SEQUENCE_SETS.items():
        assert f"{name} " in out
        assert of.description in out
        assert of.source in out


def test_prepare_generates_the_set_that_training_finds_and_says_what_is_in_it(flowformer):
    outcome = flowformer("data", "prepare", "listops", *LISTOPS, "--sizes", 40, 10, 20)
    assert outcome.code == 0
    options = SequenceOptions(min_length=4, max_length=30, max_depth=4, sizes=(40, 10, 20))
    folder = sequences_folder(options)
    assert f"listops, in {folder}" in outcome.out
    data = SequenceData.load(folder)
    assert data.source in outcome.out
    rows = {line[:12].strip(): line[12:].split() for line in outcome.out.splitlines()}
    assert rows["cases"] == ["40", "10", "20"]
    longest = [f"{split.inputs.lengths.max()}" for split in data.splits.values()]
    assert rows["longest"] == longest
    assert rows["is 7"] == ["4", "(10.0%)", "1", "(10.0%)", "2", "(10.0%)"]


def test_prepare_reads_files_into_the_folder_that_is_named(flowformer, pairs, tmp_path):
    outcome = flowformer(
        *("data", "prepare", "aan", "--folder", pairs, "--max-length", 5),
        *("--output", tmp_path / "prepared"),
    )
    assert f"aan, in {tmp_path / 'prepared'}" in outcome.out
    assert "longer were 2 of 2 in train" in outcome.out.replace("\n", " ")
    data = SequenceData.load(tmp_path / "prepared")
    assert data.splits["train"].inputs.lengths.tolist() == [5]


def test_show_gives_an_expression_and_its_value_twice(flowformer, cache):
    out = flowformer("data", "show", "listops", *LISTOPS, "--count", 2, "--part", "train").out
    cases = [block.splitlines() for block in out.split("\n\n")[1:]]
    assert len(cases) == 2
    for title, *expression, values in cases:
        assert title.startswith("train case ")
        tokens = [1 + LISTOPS_TOKENS.index(word) for word in " ".join(expression).split()]
        value = evaluate_listops(tokens)
        assert values == f"= {value} (evaluated: {value}, {len(tokens)} tokens)"
    assert not cache.exists()


def test_show_tells_a_wrong_label_of_a_user_from_the_value(flowformer, tmp_path):
    for part in ("train", "val", "test"):
        file = tmp_path / f"basic_{part}.tsv"
        file.write_text("Source\tTarget\n( ( ( [MAX 4 ) 3 ) ] )\t5\n")
    out = flowformer("data", "show", "listops", "--folder", tmp_path).out
    assert "[MAX 4 3 ]\n= 5 (evaluated: 4, 4 tokens)" in out


def test_show_gives_both_texts_of_a_pair_and_the_label(flowformer, pairs):
    out = flowformer("data", "show", "aan", "--folder", pairs).out
    assert "label: cites\n12 bytes:\nattention is\n12 bytes:\nall you need\n" in out


def test_a_long_text_is_shown_by_its_beginning(flowformer, pairs):
    (pairs / "new_aan_pairs.test.tsv").write_bytes(b"0\tA\tB\t" + b"word " * 200 + b"\tend\n")
    out = flowformer("data", "show", "aan", "--folder", pairs).out
    assert "label: unrelated\n1,000 bytes:\n" in out
    assert out.count("word") == 80
    assert "…\n3 bytes:\nend\n" in out


def test_show_writes_pictures_with_their_labels(flowformer, tmp_path):
    outcome = flowformer(
        *("data", "show", "pathfinder32", "--count", 4, "--output", tmp_path / "sheet.png")
    )
    assert outcome.out.count(": not connected\n") == 2
    assert outcome.out.count(": connected\n") == 2
    assert f"in {tmp_path / 'sheet.png'}" in outcome.out
    sheet = imread(tmp_path / "sheet.png")
    assert min(sheet.shape[:2]) > 4 * 32
    assert (sheet.min(), sheet.max()) == (0.0, 1.0)


def test_a_sheet_has_each_picture_with_its_caption():
    pictures = np.arange(3 * 4).reshape(3, 2, 2).astype(np.uint8)
    figure = contact_sheet(pictures, ["a", "b", "c"])
    assert [axes.get_xlabel() for axes in figure.axes] == ["a", "b", "c"]
    for axes, picture in zip(figure.axes, pictures, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), picture)
    with pytest.raises(ValueError, match="expected a caption a picture, got 3 and 2"):
        contact_sheet(pictures, ["a", "b"])


def test_show_of_a_prepared_folder_has_its_table_and_its_cases(flowformer, tmp_path):
    folder = tmp_path / "prepared"
    data = prepare_sequences(
        SequenceOptions(dataset="pathfinder32", sizes=(6, 2, 4)), output=folder
    )
    out = flowformer("data", "show", folder, "--part", "train", "--count", 9).out
    assert f"pathfinder32, in {folder}\n{data.source}" in out
    assert "is connected           3 (50.0%)" in out
    assert out.count("train case ") == 6
    assert (tmp_path / "pathfinder32-train.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "taken", "others"),
    [
        (
            *(["prepare", "listops"], ["max-length", "min-length", "sizes", "workers"]),
            ["difficulty", "tokenizer"],
        ),
        (["prepare", "pathfinder32"], ["difficulty", "sizes", "seed"], ["max-length"]),
        (["show", "imdb"], ["max-length", "part", "count"], ["folder", "seed", "sizes"]),
    ],
    ids=["listops", "pathfinder", "imdb"],
)
def test_help_has_the_flags_of_the_set(flowformer, arguments, taken, others):
    out = flowformer("data", *arguments, "--help").out
    assert [flag for flag in taken if f"--{flag} " not in out] == []
    assert [flag for flag in others if f"--{flag} " in out] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "pathfinder23"], "did you mean pathfinder32?"),
        (["prepare", "listops", "--difficulty", "easy"], "seed, got difficulty"),
        (["prepare", "imdb", "--seed=3"], "imdb takes max_length, got seed"),
        (["prepare", "aan"], "aan is read from files of one's own: give their folder"),
        (["prepare", "listops", "--folder", "nowhere"], "expected a folder with the files of"),
        (["show", "listops", *LISTOPS, "--count", "0"], "count must be at least 1, got 0"),
        (["show", "pathfinder32", "--part", "all"], "part must be one of train, validation, test"),
        (["show", "listops", *LISTOPS, "--output", "a.png"], "output is for pictures"),
    ],
    ids=["name", "option", "option-with-value", "no-files", "folder", "count", "part", "picture"],
)
def test_what_was_asked_for_wrongly_is_said(flowformer, arguments, message):
    outcome = flowformer("data", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_truncated_file_is_named(flowformer, tmp_path):
    data = prepare_sequences(SequenceOptions(min_length=4, max_length=30, sizes=(9, 3, 3)))
    write_listops(data, tmp_path / "files")
    file = tmp_path / "files" / "basic_train.tsv"
    file.write_bytes(file.read_bytes()[:-8])
    outcome = flowformer("data", "prepare", "listops", "--folder", file.parent)
    assert outcome.code == 2
    assert "basic_train.tsv, line 10: expected" in outcome.err
    assert outcome.out == ""


def test_the_name_of_a_set_can_be_the_folder_of_a_text(flowformer, tmp_path):
    (tmp_path / "listops").mkdir()
    (tmp_path / "listops" / "book.txt").write_text("a line of a book\n" * 20)
    out = flowformer("data", "show", "--folder", "listops", "text").out
    assert "a line of a book" in out
