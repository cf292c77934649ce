"""Archives unpacked within bounds: nothing outside the folder, no link out of it, no bomb."""

import posixpath
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast, runtime_checkable

MAX_FILES = 100_000
MAX_BYTES = 4 * 2**30  # of all files together; the largest package that is used here has 0.1 GiB
# A name or a comment of a tar archive is read into memory at once, whatever length it claims.
_MAX_HEADER = 2**20
_HEADER_TYPES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


@runtime_checkable
class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int = -1, /) -> bytes:
        """As a binary file has it."""
        ...


def unpack_zip(path: Path, members: Sequence[str], folder: Path) -> None:
    """Unpacks files of a zip archive, such as a wheel.

    Args:
        path: of the archive.
        members: names of the files to keep, or patterns of them.
        folder: where they go, under their names.

    Raises:
        ValueError: it is damaged, a name leads out of the folder, or they are more than `MAX_FILES`
            files or `MAX_BYTES` bytes. The message names the archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            chosen = [
                info
                for info in archive.infolist()
                if not info.is_dir() and matches(info.filename, members)
            ]
            # zipfile gives no more bytes of a file than its entry says.
            _require_bounded(len(chosen), sum(info.file_size for info in chosen))
            for info in chosen:
                with archive.open(info) as content:
                    _write(content, folder, _safe(info.filename))
    except Exception as error:  # zipfile lets through what zlib, struct and others raise
        raise ValueError(f"cannot unpack {path}: {error}") from error


def unpack_tar(stream: Readable, members: Sequence[str], folder: Path) -> set[str]:
    """Unpacks files of a tar archive that is read from its beginning to its end.

    Links between files of the archive are kept: symbolic ones as links, others as copies.

    Args:
        stream: of the archive, not compressed.
        members: names of the files to keep, or patterns of them.
        folder: where they go, under their names.

    Returns:
        Those of `members` that were found.

    Raises:
        ValueError: it is damaged, a name or a link leads out of the folder, a member is neither a
            file nor a link, or they are more than `MAX_FILES` files or `MAX_BYTES` bytes.
    """
    found: set[str] = set()
    links: list[tuple[PurePosixPath, str]] = []
    files = size = 0
    try:
        with tarfile.open(fileobj=cast(Any, stream), mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                matched = [pattern for pattern in members if fnmatch(name, pattern)]
                if not matched or member.isdir():
                    continue
                files, size = files + 1, size + member.size
                _require_bounded(files, size)
                if member.issym():
                    links.append((_safe(name), member.linkname))
                else:
                    _unpack_member(archive, member, folder, _safe(name))
                found.update(matched)
        _link(folder, links)  # last: nothing is written through a link
    except Exception as error:  # tarfile lets through what struct, int and others raise
        raise ValueError(f"damaged tar archive: {error}") from error
    return found


def matches(name: str, members: Iterable[str]) -> bool:
    """Whether a name is one of some names and patterns."""
    return any(fnmatch(name, member) for member in members)


class _Member(tarfile.TarInfo):
    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _HEADER_TYPES and self.size > _MAX_HEADER):
            raise tarfile.ReadError(f"expected a name of a few bytes, got {self.size:,}")
        return super()._proc_member(archive)  # pyright: ignore[reportAttributeAccessIssue] - not in its stubs


def _require_bounded(files: int, size: int) -> None:
    if files > MAX_FILES or size > MAX_BYTES:
        raise ValueError(
            f"expected at most {MAX_FILES:,} files of together {MAX_BYTES:,} bytes, got {files:,} "
            f"of {size:,}: a bomb?"
        )


def _safe(name: str) -> PurePosixPath:
    """The name as a path inside a folder."""
    place = PurePosixPath(name)
    # Windows has further separators and drives.
    unsafe = place.is_absolute() or ".." in place.parts or any(c in name for c in "\\:\0")
    if unsafe or not place.parts:
        raise ValueError(f"expected a name inside the folder, got {name!r}")
    return place


def _unpack_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, place: PurePosixPath
) -> None:
    if member.islnk():
        source = folder / _safe(member.linkname.removeprefix("./"))
        if not source.is_file():
            raise ValueError(f"expected {member.linkname!r} before its other name {member.name!r}")
        with source.open("rb") as content:
            _write(content, folder, place)
        return
    content = archive.extractfile(member) if member.isreg() else None
    if content is None:
        raise ValueError(f"expected a file or a link, got {member.name!r} of type {member.type!r}")
    with content:
        _write(content, folder, place)


def _write(content: Readable, folder: Path, place: PurePosixPath) -> None:
    target = folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(cast(Any, content), file, 2**20)


def _link(folder: Path, links: Sequence[tuple[PurePosixPath, str]]) -> None:
    made: list[Path] = []
    try:
        for place, target in links:
            inside = posixpath.normpath(posixpath.join(place.parent.as_posix(), target))
            if target.startswith("/") or inside.split("/")[0] == "..":
                raise ValueError(f"expected a link inside the folder, got {place} to {target!r}")
            link = folder / place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target)
            made.append(link)
        # When all are there: through another link, ".." is elsewhere than its letters say.
        for link in made:
            with suppress(FileNotFoundError):  # what it points to may not be unpacked
                link.stat()  # a circle is an OSError
            if not link.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"expected a link inside the folder, got {link} through others")
    except Exception:
        for link in made:
            link.unlink()
        raise
