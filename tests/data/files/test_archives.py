"""Archives cannot write outside their folder, nor through links, nor more than a bound."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from flowformer.data.files import archives
from flowformer.data.files.archives import unpack_tar, unpack_zip
from tests.fuzz.seeds import member, tarred, zipped

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links are those of POSIX")


def untar(folder: Path, *members: tarfile.TarInfo, content: bytes = b"data") -> set[str]:
    return unpack_tar(io.BytesIO(tarred(members, content)), ["*"], folder / "in")


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_files_and_links_between_them_are_unpacked(tmp_path):
    found = untar(
        tmp_path,
        member("./a", tarfile.DIRTYPE),
        member("./a/one.txt"),
        member("./a/same.txt", tarfile.LNKTYPE, "./a/one.txt"),
        member("./b/link.txt", tarfile.SYMTYPE, "../a/one.txt"),
    )
    assert found == {"*"}
    assert (tmp_path / "in/b/link.txt").readlink() == Path("../a/one.txt")
    for name in ("a/one.txt", "a/same.txt", "b/link.txt"):
        assert (tmp_path / "in" / name).read_bytes() == b"data"


def test_only_what_is_asked_for_is_unpacked(tmp_path):
    packed = io.BytesIO(tarred([member("./a/one.txt"), member("./b/two.txt")]))
    assert unpack_tar(packed, ["a/*", "c/*"], tmp_path) == {"a/*"}
    assert everything(tmp_path) == ["a", "a/one.txt"]


OUTWARDS = {
    "parent": [member("../out.txt")],
    "inner-parent": [member("a/../../out.txt")],
    "absolute": [member("/tmp/out.txt")],
    "link-to-parent": [member("link", tarfile.SYMTYPE, "..")],
    "link-absolute": [member("a/link", tarfile.SYMTYPE, "/etc")],
    "link-up": [member("a/link", tarfile.SYMTYPE, "../../out.txt")],
    "link-through-link": [
        member("a/deep/file.txt"),
        member("a/deep/up", tarfile.SYMTYPE, "../.."),
        member("b/c/d/link", tarfile.SYMTYPE, "../../../a/deep/up/../out.txt"),
    ],
    "link-through-later-link": [
        member("a", tarfile.SYMTYPE, "b/../out.txt"),
        member("b", tarfile.SYMTYPE, "."),
    ],
    "links-in-a-circle": [member("a", tarfile.SYMTYPE, "b"), member("b", tarfile.SYMTYPE, "a")],
    "hard-link": [member("same.txt", tarfile.LNKTYPE, "../out.txt")],
    "hard-link-to-nothing": [member("same.txt", tarfile.LNKTYPE, "nowhere.txt")],
    "device": [member("device", tarfile.CHRTYPE)],
    "pipe": [member("pipe", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("members", OUTWARDS.values(), ids=OUTWARDS.keys())
def test_what_leads_out_or_is_no_file_is_refused(tmp_path, members):
    (tmp_path / "out.txt").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"^damaged tar archive: (expected |.*Too many levels)"):
        untar(tmp_path, *members, content=b"theirs")
    assert (tmp_path / "out.txt").read_bytes() == b"mine"
    inside = tmp_path.resolve() / "in"
    links = [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert all(link.resolve().is_relative_to(inside) for link in links)


def test_nothing_is_written_through_a_link(tmp_path):
    # In the archive the link comes first: a file "below" it must not land where it points.
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="link inside the folder"):
        untar(tmp_path, member("a", tarfile.SYMTYPE, "../out"), member("a/file.txt"))
    assert everything(tmp_path / "out") == []


@pytest.mark.parametrize("bound", ["MAX_FILES", "MAX_BYTES"])
def test_more_than_the_bounds_is_refused(tmp_path, monkeypatch, bound):
    zipped(tmp_path / "a.zip", {"one.txt": b"data", "two.txt": b"data"})
    monkeypatch.setattr(archives, bound, 1)
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
