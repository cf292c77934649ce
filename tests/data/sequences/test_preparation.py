"""Long Range Arena's sets by name: prepared once, from a user's files or from nothing."""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowformer.data.options import SequenceOptions
from flowformer.data.sequences import pictures, texts
from flowformer.data.sequences import preparation as module
from flowformer.data.sequences import records as sequences
from flowformer.data.sequences.listops import generate_listops, verify_listops
from flowformer.data.sequences.pathfinder import generate_pathfinder
from flowformer.data.sequences.preparation import (
    SEQUENCE_SETS,
    holds_sequences,
    prepare_sequences,
    read_preparation,
    sample_sequences,
    sequences_folder,
)
from flowformer.data.sequences.records import SequenceData
from flowformer.data.standins import packaged as corpora
from tests.data.sequences.arena_files import (
    aan_files,
    cifar_files,
    fashion_files,
    listops_files,
    pathfinder_files,
)

SMALL = SequenceOptions(sizes=(30, 10, 11), min_length=4, max_length=30, max_depth=4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No cache of the person who runs this."""
    monkeypatch.setenv("FLOWFORMER_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sets that were read or generated, one after the other, and slowly."""
    names = []
    make = module._make

    def slowly(of: Any, *rest: Any) -> SequenceData:
        names.append(of.name)
        time.sleep(0.1)
        return make(of, *rest)

    monkeypatch.setattr(module, "_make", slowly)
    return names


OFFICIAL: dict[str, Callable[[Path], Path]] = {
    "listops": listops_files,
    "pathfinder32": pathfinder_files,
    "aan": aan_files,
    "fashion-mnist": fashion_files,
    "cifar10-grey": cifar_files,
}


def test_the_second_time_a_set_is_only_opened(made, cache):
    first = prepare_sequences(SMALL)
    verify_listops(first)
    again = prepare_sequences(SMALL)
    assert made == ["listops"]
    assert isinstance(again.splits["test"].inputs.values, np.memmap)
    assert [len(split) for split in again.splits.values()] == [30, 10, 11]
    folder = sequences_folder(SMALL)
    assert folder.parent == cache / "arena"
    assert SequenceData.load(folder).source == first.source


def test_a_default_that_is_given_changes_nothing_and_an_option_does():
    given = SequenceOptions(max_length=2000, sizes=(96_000, 2_000, 2_000))
    assert sequences_folder(given) == sequences_folder(SequenceOptions())
    others = [
        SequenceOptions(seed=1),
        SequenceOptions(max_depth=9),
        SequenceOptions(sizes=(9, 9, 9)),
    ]
    folders = {sequences_folder(options) for options in others}
    assert len(folders - {sequences_folder(SequenceOptions())}) == 3


def test_pathfinder_is_drawn_as_asked_for():
    data = prepare_sequences(
        SequenceOptions(dataset="pathfinder32", sizes=(4, 2, 2), difficulty="medium", seed=3)
    )
    direct = generate_pathfinder(
        sizes={"train": 4, "validation": 2, "test": 2}, size=32, difficulty="medium", seed=3
    )
    for part, split in direct.splits.items():
        np.testing.assert_array_equal(split.inputs.values, data.splits[part].inputs.values)
    assert data.picture == (32, 32)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_are_read_and_recorded(name, tmp_path, monkeypatch, made):
    monkeypatch.setattr(pictures, "_BATCH_PICTURES", 2)
    folder = OFFICIAL[name](tmp_path / "files")
    options = SequenceOptions(dataset=name, folder=folder)
    data = prepare_sequences(options, output=tmp_path / "prepared")
    assert {"train", "test"} <= set(data.splits)
    record = read_preparation(tmp_path / "prepared")
    assert record["set"] == name
    assert record["options"]["folder"] == str(folder.resolve())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert record["files"]["count"] == len(files)
    assert record["files"]["bytes"] == sum(path.stat().st_size for path in files)
    prepare_sequences(options, output=tmp_path / "prepared")
    assert made == [name]


@pytest.mark.parametrize(
    ("function", "options", "arguments", "keywords"),
    [
        ((texts, "load_imdb"), SequenceOptions(dataset="imdb"), (), {"max_length": 1000}),
        (
            (corpora, "load_movie_reviews"),
            SequenceOptions(dataset="movie-reviews", seed=2, max_length=9),
            *((None,), {"max_length": 9, "seed": 2}),
        ),
        (
            (corpora, "load_wiki_passages"),
            SequenceOptions(dataset="wiki-passages", seed=2),
            *((None,), {"max_length": 4000, "seed": 2}),
        ),
    ],
    ids=["imdb", "movie-reviews", "wiki-passages"],
)
def test_options_reach_the_reader(function, options, arguments, keywords, monkeypatch):
    called = []

    def read(*given: Any, **named: Any) -> SequenceData:
        called.append((given, named))
        return generate_listops(sizes={"train": 2}, min_length=3, max_length=20)

    monkeypatch.setattr(*function, read)
    prepare_sequences(options)
    assert called == [(arguments, keywords)]


def test_texts_are_cut_and_it_is_said(tmp_path):
    folder = aan_files(tmp_path / "files")
    data = prepare_sequences(SequenceOptions(dataset="aan", folder=folder, max_length=4))
    assert data.splits["train"].inputs.lengths.tolist() == [4, 4]
    assert data.source.endswith(
        "the first 4 bytes; longer were 4 of 4 in train, 0 of 2 in validation, 1 of 2 in test"
    )


def test_changed_files_are_prepared_anew(tmp_path, made):
    options = SequenceOptions(folder=listops_files(tmp_path / "files"))
    before = prepare_sequences(options).splits["test"].inputs.values.tolist()
    listops_files(tmp_path / "files", seed=1)
    after = prepare_sequences(options).splits["test"].inputs.values.tolist()
    assert before != after
    file = tmp_path / "files" / "basic_test.tsv"
    os.utime(file, ns=(0, 0))  # of the same size, at another time
    prepare_sequences(options)
    assert made == ["listops"] * 3
    (tmp_path / "files" / "notes.txt").write_text("none of its files")
    prepare_sequences(options)
    assert made == ["listops"] * 3


@pytest.mark.parametrize("file", range(10))
def test_an_interrupted_preparation_is_not_taken_for_whole(file, tmp_path, monkeypatch):
    """Stops at each of the arrays, and before the description."""
    folder, count = tmp_path / "prepared", 0
    real = {"atomic_file": sequences.atomic_file, "write_atomically": sequences.write_atomically}

    def stopping(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal count
            if count == file:
                raise KeyboardInterrupt
            count += 1
            return real[name](*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(sequences, name, stopping(name))
        with pytest.raises(KeyboardInterrupt):
            prepare_sequences(SMALL, output=folder)
    assert holds_sequences(folder)
    with pytest.raises(FileNotFoundError, match="expected a prepared data set in"):
        SequenceData.load(folder)
    (folder / ".train-values.npy.unfinished").write_bytes(b"what a kill leaves")
    verify_listops(prepare_sequences(SMALL, output=folder))
    assert not (folder / ".train-values.npy.unfinished").exists()


def test_a_stop_while_files_are_read_anew_leaves_nothing_of_the_old_set(tmp_path, monkeypatch):
    options = SequenceOptions(folder=listops_files(tmp_path / "files"))
    prepare_sequences(options)
    listops_files(tmp_path / "files", seed=1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SequenceData, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_sequences(options)
    with pytest.raises(FileNotFoundError, match="expected a prepared data set"):
        SequenceData.load(sequences_folder(options))


def test_who_comes_second_waits_for_the_first(made):
    with ThreadPoolExecutor(4) as pool:
        sets = list(pool.map(lambda _: prepare_sequences(SMALL), range(4)))
    assert made == ["listops"]
    assert len({data.splits["test"].inputs.values.tobytes() for data in sets}) == 1


def test_a_folder_of_other_options_is_refused_and_named(tmp_path):
    folder = tmp_path / "prepared"
    prepare_sequences(SMALL, output=folder)
    with pytest.raises(ValueError, match="was prepared with other options") as raised:
        prepare_sequences(SequenceOptions(dataset="pathfinder32", sizes=(4, 2, 2)), output=folder)
    assert "set is 'listops' there, 'pathfinder32' asked for" in str(raised.value)
    assert "sizes is [30, 10, 11] there, [4, 2, 2] asked for" in str(raised.value)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("of years")
    with pytest.raises(FileExistsError, match=r"expected an empty folder .* has thesis\.tex"):
        prepare_sequences(SMALL, output=tmp_path)


def test_a_damaged_folder_is_named(tmp_path):
    folder = tmp_path / "prepared"
    prepare_sequences(SMALL, output=folder)
    array = folder / "train-values.npy"
    array.write_bytes(array.read_bytes()[:-9])
    with pytest.raises(ValueError, match="prepared holds a damaged data set: delete it"):
        prepare_sequences(SMALL, output=folder)
    (folder / "preparation.json").write_text(json.dumps({"set": "listops"}))
    with pytest.raises(ValueError, match=r"preparation\.json is damaged: delete the folder"):
        prepare_sequences(SMALL, output=folder)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("list-ops", {}, "unknown data set 'list-ops': did you mean listops"),
        ("listops", {"difficulty": "easy"}, "listops takes folder, max_length, .*, got difficulty"),
        ("imdb", {"seed": 1}, "imdb takes max_length, got seed"),
        ("cifar10-grey", {"max_length": 9}, "cifar10-grey takes folder, got max_length"),
        ("pathfinder32", {"max_depth": 9}, "takes folder, difficulty, sizes, seed, got max_depth"),
        ("listops", {"sizes": (9, 9)}, r"expected three sizes, .*, got \(9, 9\)"),
        ("aan", {}, "aan is read from files of one's own: give their folder"),
        (
            *("listops", {"folder": Path(), "sizes": (9, 9, 9)}),
            "listops with files of one's own takes folder, max_length, got sizes",
        ),
        ("listops", {"max_length": 300}, "expected 1 <= min_length and a length between"),
    ],
    ids=[
        *("name", "listops", "imdb", "cifar", "pathfinder", "two-sizes", "no-files"),
        *("sizes-of-files", "no-lengths"),
    ],
)
def test_what_a_set_does_not_take_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        prepare_sequences(SequenceOptions(dataset=name, **options))


def test_a_sample_is_generated_without_the_rest_and_kept_nowhere(cache):
    data = sample_sequences(SequenceOptions(dataset="pathfinder32"), part="test", count=3)
    assert [len(split) for split in data.splits.values()] == [1, 1, 3]
    listops = sample_sequences(SequenceOptions(), part="train", count=3)
    assert set(listops.splits["train"].labels.tolist()) == set(range(10))
    assert not cache.exists()


def test_progress_is_told(tmp_path, told):
    options = SequenceOptions(dataset="pathfinder32", sizes=(4, 2, 2))
    prepare_sequences(options, output=tmp_path / "prepared")
    assert told == [
        ("drawing the train part", 4, 4),
        ("drawing the validation part", 2, 2),
        ("drawing the test part", 2, 2),
    ]


def test_every_set_says_what_it_takes():
    names = {field.name for field in fields(SequenceOptions)} - {"dataset"}
    for name, of in SEQUENCE_SETS.items():
        assert of.name == name
        assert set(of.options) <= names
        assert of.max_length is None or of.max_length >= 1000
