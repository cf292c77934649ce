"""Files of packages: found, fetched and unpacked; nothing is written elsewhere or beyond bounds."""

import hashlib
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowformer.data.files import data_cache, find_cache
from flowformer.data.standins import fetching
from flowformer.data.standins.fetching import (
    PackageFiles,
    fetch_debian_data,
    unpack_tar,
    unpack_zip,
)
from flowformer.data.standins.packaged import PHOTOGRAPHS, fetch_photographs
from tests.fuzz.seeds import member, tarred, zipped

pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs are shell scripts")

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
    return PackageFiles("words-of-mine", "1.2", ("words_of_mine/*.txt",), sha256).fetch(cache)


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
    (found,) = PackageFiles("pluggy", "0", ("pluggy/_manager.py",), digest).fetch(
        tmp_path / "cache"
    )
    assert found.samefile(path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("homeless")
def test_without_a_home_an_installed_package_is_used_and_a_download_names_the_variable() -> None:
    import pluggy

    path = Path(pluggy.__file__).parent / "_manager.py"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (found,) = PackageFiles("pluggy", "0", ("pluggy/_manager.py",), digest).fetch()
    assert found.samefile(path)
    assert find_cache() is None
    with pytest.raises(FileNotFoundError, match=r"no home directory .*: set FLOWFORMER_DATA to a"):
        PackageFiles("pluggy", "0", ("pluggy/none.py",), digest).fetch()
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


MEMBERS = ["usr/share/some/*"]


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that apt-get brings: its content as dpkg-deb gives it, a tar archive."""
    path = tmp_path / "archive" / "some_1.2-3_all.deb"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name, content in {"usr/share/some/a/b.txt": b"data", "usr/bin/run": b"exit 1"}.items():
            file = tarfile.TarInfo(f"./{name}")
            file.size = len(content)
            tar.addfile(file, io.BytesIO(content))
    programs = tmp_path / "programs"
    programs.mkdir()
    program(programs, "apt-get", f'[ "$1 $2" = "download some" ] && cp {path.parent}/*.deb .')
    program(programs, "dpkg-deb", '[ "$1" = --fsys-tarfile ] && cat "$2"')
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return path


def test_the_files_are_unpacked_once_under_the_version_that_came(archive: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    folder = fetch_debian_data("some", MEMBERS, cache=cache)
    assert folder == cache / "some_1.2-3_all"
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert [file.relative_to(folder).as_posix() for file in files] == ["usr/share/some/a/b.txt"]
    assert files[0].read_bytes() == b"data"
    archive.unlink()
    assert fetch_debian_data("some", MEMBERS, cache=cache) == folder


def test_a_kept_folder_without_the_files_is_fetched_again(archive: Path, tmp_path: Path):
    assert archive.exists()
    kept = tmp_path / "cache" / "some_1.2-3_all"
    (kept / "usr/share/some").mkdir(parents=True)
    assert fetch_debian_data("some", MEMBERS, cache=kept.parent) == kept
    assert (kept / "usr/share/some/a/b.txt").read_bytes() == b"data"


def test_a_package_without_such_files_is_refused_and_not_kept(archive: Path, tmp_path: Path):
    assert archive.exists()
    with pytest.raises(
        ValueError, match=r"expected usr/lib/\* in some_1\.2-3_all\.deb, found none"
    ):
        fetch_debian_data("some", ["usr/lib/*"], cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_apt_get_says_is_said(archive: Path, tmp_path: Path):
    program(tmp_path / "programs", "apt-get", "echo 'E: Unable to locate it' >&2; exit 100")
    assert archive.exists()
    with pytest.raises(
        FileNotFoundError, match="package some: E: Unable to locate it -- apt-get update may help"
    ):
        fetch_debian_data("some", MEMBERS, cache=tmp_path / "cache")


def test_without_apt_get_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="package some: there is no apt-get"):
        fetch_debian_data("some", MEMBERS, cache=tmp_path / "cache")


def untar(folder: Path, *members: tarfile.TarInfo, content: bytes = b"data") -> set[str]:
    return unpack_tar(io.BytesIO(tarred(members, content)), ["*"], folder / "in")


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_only_what_is_asked_for_is_unpacked(tmp_path):
    packed = io.BytesIO(tarred([member("./a/one.txt"), member("./b/two.txt")]))
    assert unpack_tar(packed, ["a/*", "c/*"], tmp_path) == {"a/*"}
    assert everything(tmp_path) == ["a", "a/one.txt"]


OUTWARDS = {
    "parent": [member("../out.txt")],
    "inner-parent": [member("a/../../out.txt")],
    "absolute": [member("/tmp/out.txt")],
    "link": [member("link", tarfile.SYMTYPE, "..")],
    "hard-link": [member("same.txt", tarfile.LNKTYPE, "../out.txt")],
    "device": [member("device", tarfile.CHRTYPE)],
    "pipe": [member("pipe", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("members", OUTWARDS.values(), ids=OUTWARDS.keys())
def test_what_leads_out_or_is_no_file_is_refused(tmp_path, members):
    (tmp_path / "out.txt").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"^damaged tar archive: expected a (name inside|file)"):
        untar(tmp_path, *members, content=b"theirs")
    assert everything(tmp_path) == ["out.txt"]
    assert (tmp_path / "out.txt").read_bytes() == b"mine"


@pytest.mark.parametrize("bound", ["MAX_FILES", "MAX_BYTES"])
def test_more_than_the_bounds_is_refused(tmp_path, monkeypatch, bound):
    zipped(tmp_path / "a.zip", {"one.txt": b"data", "two.txt": b"data"})
    monkeypatch.setattr(fetching, bound, 1)
    with pytest.raises(ValueError, match="a bomb"):
        untar(tmp_path, member("one.txt"), member("two.txt"))
    with pytest.raises(ValueError, match=r"cannot unpack .*a\.zip: .*a bomb"):
        unpack_zip(tmp_path / "a.zip", ["*"], tmp_path / "in")


def test_a_size_that_the_archive_does_not_have_is_refused_before_it_is_written(tmp_path):
    huge = member("one.txt")
    huge.size = 2**40
    with pytest.raises(ValueError, match="a bomb"):
        unpack_tar(io.BytesIO(huge.tobuf()), ["*"], tmp_path)
    assert everything(tmp_path) == []


def test_a_name_of_many_bytes_is_not_read_into_memory(tmp_path):
    name = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    name.size = 2**30
    with pytest.raises(ValueError, match="expected a name of a few bytes"):
        unpack_tar(io.BytesIO(name.tobuf()), ["*"], tmp_path)


def test_a_truncated_tar_archive_is_refused(tmp_path):
    packed = tarred([member("one.txt")], b"data" * 1000)
    with pytest.raises(ValueError, match="damaged tar archive: unexpected end"):
        unpack_tar(io.BytesIO(packed[:1500]), ["*"], tmp_path)


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/out.txt", "C:/out.txt"])
def test_a_zip_archive_cannot_lead_out(tmp_path, name):
    zipped(tmp_path / "a.zip", {name: b"theirs"})
    with pytest.raises(ValueError, match=r"cannot unpack .*a\.zip: expected a name inside"):
        unpack_zip(tmp_path / "a.zip", ["*"], tmp_path / "in")
    assert everything(tmp_path) == ["a.zip"]


def test_a_zip_entry_gives_no_more_than_its_size_says(tmp_path):
    # 10 MiB of zeros that claim to be 10 bytes.
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10 * 2**20))
    content = path.read_bytes()
    path.write_bytes(
        content.replace((10 * 2**20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    )
    with pytest.raises(ValueError, match=r"a\.zip: Bad CRC"):
        unpack_zip(path, ["*"], tmp_path / "in")
    assert sum(file.stat().st_size for file in (tmp_path / "in").rglob("*")) <= 10


def test_a_damaged_zip_archive_is_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(ValueError, match=r"cannot unpack .*a\.zip: File is not a zip file"):
        unpack_zip(tmp_path / "a.zip", ["*"], tmp_path / "in")


def test_photographs_come_from_one_release_and_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel with other files of the same names, in place of the package index."""
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in PHOTOGRAPHS.members:
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / Path(member).name)
            archive.write(tmp_path / Path(member).name, member)
    asked: list[tuple[str, str]] = []

    def download(package: str, version: str, scratch: Path, _folder: Path) -> Path:
        asked.append((package, version))
        return Path(shutil.copy(wheel, scratch))

    monkeypatch.setattr(fetching, "_installed", lambda *_: [])
    monkeypatch.setattr(fetching, "_download_wheel", download)
    with pytest.raises(ValueError, match="got 5 files with"):
        fetch_photographs(tmp_path / "cache")
    assert asked == [("scikit-image", "0.25.2")]
