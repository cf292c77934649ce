"""Data that ships inside packages of Debian and its kin."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flowformer.data.cache import data_cache
from flowformer.data.files.archives import Readable, unpack_tar

_DRAINED_MIB = 64  # read after the end of a tar archive, before its program is stopped


def fetch_debian_data(
    package: str, members: Sequence[str], *, cache: str | Path | None = None
) -> Path:
    """Finds files of a package in the cache, or downloads the package with apt-get.

    Nothing of it is installed or run, and no rights are needed. apt-get checks the signature; which
    version comes is the system's choice, and the name of the folder says it.

    Args:
        package: its name.
        members: the files to keep: paths in the package, or patterns such as `usr/share/man/*`.
        cache: where fetched files are kept; by default `data_cache()`.

    Returns:
        The folder with the files under their paths. Its name is the package's file without .deb,
        such as manpages_6.03-2_all.

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
        archive = _download(package, Path(scratch))
        unpacked = Path(scratch, "unpacked")
        _unpack(archive, members, unpacked)
        folder = root / archive.stem
        shutil.rmtree(folder, ignore_errors=True)  # of the same version, but without these files
        unpacked.rename(folder)
    return folder


def _download(package: str, scratch: Path) -> Path:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise FileNotFoundError(
                f"cannot download the Debian package {package}: there is no {program}"
            )
    done = _run(["apt-get", "download", package], scratch)
    archives = list(scratch.glob("*.deb"))
    if done.returncode or not archives:
        raise FileNotFoundError(
            f"cannot download the Debian package {package}: {_last_line(done.stderr)} -- "
            "apt-get update may help"
        )
    return archives[0]


def _unpack(archive: Path, members: Sequence[str], folder: Path) -> None:
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    found, failure = set(), None
    # Complaints go into a file: a pipe that nobody reads would stop the program when it is full.
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints) as running,
    ):
        assert running.stdout is not None
        try:
            found = unpack_tar(running.stdout, members, folder)
        except ValueError as error:
            failure = error
        if _goes_on(running.stdout):
            running.kill()
        running.wait()
        complaints.seek(0)
        said = complaints.read()
    if running.returncode > 0:  # what the program says is the better word
        raise ValueError(f"cannot unpack {archive.name}: {_last_line(said)}") from failure
    if failure is not None:
        raise ValueError(f"cannot unpack {archive.name}: {failure}") from failure
    if missing := [member for member in members if member not in found]:
        raise ValueError(f"expected {', '.join(missing)} in {archive.name}, found none")


def _goes_on(stream: Readable) -> bool:
    """Reads a stream to its end, but not for ever: whether more is to come."""
    return all(stream.read(2**20) for _ in range(_DRAINED_MIB))


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, cwd=folder, capture_output=True, check=False)


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"
