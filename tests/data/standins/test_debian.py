"""Files of a Debian package: from the cache or by apt-get, which a script stands for here."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from flowformer.data.standins.debian import fetch_debian_data

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-ins are shell scripts")

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
