"""Where a data set of the archive comes from: aeon's package, a folder, a download."""

import importlib.util
from pathlib import Path

import pytest
from aeon import datasets

from flowformer.data import Preprocessing, SeriesDataset, collate, load_uea

TRAIN = "@classLabel true a b\n@data\n1,2:a\n3:b\n"
TEST = "@classLabel true a b\n@data\n5,6,7:b\n"


@pytest.fixture(autouse=True)
def _own_aeon_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees, or writes into, the folder of the person who runs it."""
    monkeypatch.setenv("AEON_DATA", str(tmp_path / "aeon"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, extract_path: str) -> None:
        Path(extract_path, name).mkdir()
        Path(extract_path, name, f"{name}_TRAIN.ts").write_text("@classLabel true a")  # cut short
        raise ValueError("the line is down")

    monkeypatch.setattr(datasets, "load_classification", fail)


def put(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_TRAIN.ts").write_text(TRAIN)
    (folder / f"{name}_TEST.ts").write_text(TEST)


def test_japanese_vowels_comes_with_aeon() -> None:
    data = load_uea("JapaneseVowels")
    assert data.test is not None
    assert (len(data.train), len(data.test), data.channels) == (270, 370, 12)
    assert data.classes == tuple("123456789")
    lengths = [*data.train.lengths, *data.test.lengths]
    assert (min(lengths), max(lengths), data.max_length) == (7, 29, 29)
    assert [int((data.train.labels == label).sum()) for label in range(9)] == [30] * 9
    fitted = Preprocessing.fit(data.train)
    dataset = SeriesDataset(data.test, fitted)
    batch = collate([dataset[index] for index in range(370)], pad_to=data.max_length)
    assert batch["inputs"].shape == (370, 29, 12)
    assert batch["attention_mask"].sum() == data.test.lengths.sum()


@pytest.mark.usefixtures("homeless")
def test_without_a_home_aeons_package_is_read_and_a_download_needs_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_uea("UnitTest").channels == 1
    with pytest.raises(FileNotFoundError, match=r"no home directory .*: set FLOWFORMER_DATA"):
        load_uea("Heartbeat")
    monkeypatch.setenv("FLOWFORMER_DATA", str(tmp_path))
    put(tmp_path / "aeon_data", "Mine")
    assert load_uea("Mine").classes == ("a", "b")


def test_basic_motions_comes_with_aeon() -> None:
    data = load_uea("BasicMotions")
    assert data.test is not None
    assert (len(data.train), len(data.test), data.channels, data.max_length) == (40, 40, 6, 100)
    assert data.classes == ("Standing", "Running", "Walking", "Badminton")


@pytest.mark.parametrize("below", ["", "Mine", "mine"], ids=["flat", "own-folder", "other-case"])
@pytest.mark.parametrize("name", ["Mine", "MINE"])
def test_a_folder_has_the_files_in_either_layout_and_any_case(
    tmp_path: Path, below: str, name: str
) -> None:
    put(tmp_path / "data" / below, "Mine")
    data = load_uea(name, folder=tmp_path / "data")
    assert data.name == "Mine"
    assert data.test is not None
    assert (len(data.train), len(data.test), data.max_length) == (2, 1, 3)


def test_the_folder_goes_before_aeons_package(tmp_path: Path) -> None:
    put(tmp_path, "JapaneseVowels")
    assert len(load_uea("JapaneseVowels", folder=tmp_path).train) == 2


def test_a_set_that_the_folder_lacks_is_told_to_come_from_elsewhere(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="has no JapaneseVowels: it is read from aeon's package"):
        assert len(load_uea("JapaneseVowels", folder=tmp_path).train) == 270


def test_an_exact_name_goes_before_one_in_another_case(tmp_path: Path) -> None:
    put(tmp_path, "mine")
    put(tmp_path, "MINE")
    (tmp_path / "Mine_TRAIN.ts").write_text("@classLabel true a b\n@data\n1:a\n2:b\n3:b\n")
    assert len(load_uea("Mine", folder=tmp_path).train) == 3


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected an existing folder .* got .*nowhere"):
        load_uea("JapaneseVowels", folder=tmp_path / "nowhere")


def test_a_training_file_without_its_test_file_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "Mine")
    (tmp_path / "Mine_TEST.ts").unlink()
    with pytest.raises(FileNotFoundError, match=r"Mine_TEST\.ts beside .*Mine_TRAIN\.ts, got none"):
        load_uea("Mine", folder=tmp_path)


@pytest.mark.usefixtures("no_network")
def test_an_error_lists_what_was_tried_and_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_uea("Handwriting", folder=tmp_path)
    message = str(caught.value)
    assert message.startswith("cannot find the data set 'Handwriting'. Tried the folder (")
    for part in (
        f"the folder ({tmp_path})",
        "aeon's package (",
        f"aeon's own folder ({tmp_path / 'aeon'})",
        "a download through aeon, which failed: the line is down",
        "put Handwriting_TRAIN.ts and Handwriting_TEST.ts into a folder",
    ):
        assert part in message


@pytest.mark.usefixtures("no_network")
def test_a_misspelled_name_is_told_the_right_one() -> None:
    with pytest.raises(FileNotFoundError, match=r"'JapaneseVowel' \(did you mean JapaneseVowels"):
        load_uea("JapaneseVowel")


@pytest.mark.usefixtures("no_network")
def test_a_download_cut_short_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_uea("Handwriting", folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [True, False], ids=["folder", "aeons-own"])
def test_a_download_lands_in_the_folder_and_is_found_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    downloads = []

    def download(name: str, extract_path: str) -> None:
        downloads.append(name)
        put(Path(extract_path) / name, name)

    monkeypatch.setattr(datasets, "load_classification", download)
    folder = tmp_path if given else None
    first, second = load_uea("Handwriting", folder=folder), load_uea("Handwriting", folder=folder)
    assert len(first.train) == len(second.train) == 2
    assert downloads == ["Handwriting"]
    root = tmp_path if given else tmp_path / "aeon"
    assert [entry.name for entry in root.iterdir()] == ["Handwriting"]


def test_without_aeon_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "aeon" else find_spec(name)
    )
    put(tmp_path, "Mine")
    assert len(load_uea("Mine", folder=tmp_path).train) == 2
    with pytest.raises(ImportError, match=r"pip install 'flowformer\[timeseries\]'"):
        load_uea("JapaneseVowels", folder=tmp_path)
