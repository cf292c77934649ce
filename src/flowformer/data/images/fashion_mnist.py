"""Fashion-MNIST, and the idx files that it comes in."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from flowformer.data.files import read_bytes
from flowformer.data.standins import fetch_debian_data

FASHION_CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker"),
    *("bag", "ankle boot"),
)
_FASHION_PACKAGE = "dataset-fashion-mnist"
_FASHION_FILES = {"train": "train", "test": "t10k"}
_IDX_UINT8 = 0x08
_MAX_DIMENSIONS = 32


def read_fashion_mnist(
    folder: Path | None = None, *, cache: Path | None = None
) -> dict[str, tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]]:
    """Return the pictures and labels of Fashion-MNIST's parts, train and test.

    Args:
        folder: with the four idx files, gzipped or not, or with a folder of them; None for those of
            the Debian package dataset-fashion-mnist.
        cache: where the package's files are kept; by default `data_cache()`.

    Raises:
        FileNotFoundError: a file is missing, or the package is not to be had.
        ValueError: a file is damaged, or labels and pictures are not as many.
    """
    if folder is None:
        members = ["usr/share/datasets/fashion-mnist/*-ubyte.gz"]
        try:
            folder = fetch_debian_data(_FASHION_PACKAGE, members, cache=cache)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} -- or give a folder with the idx files") from error
    parts = {}
    for part, prefix in _FASHION_FILES.items():
        images = read_idx(_find_idx(folder, f"{prefix}-images-idx3-ubyte"))
        labels = read_idx(_find_idx(folder, f"{prefix}-labels-idx1-ubyte"))
        if images.shape != (len(labels), 28, 28):
            raise ValueError(
                f"Fashion-MNIST, {part}: expected pictures [{len(labels)}, 28, 28], one a label, "
                f"got {list(images.shape)}"
            )
        parts[part] = (images, labels)
    return parts


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Read a file of bytes in the idx format, gzipped when its name says so.

    Two zero bytes, the type 8 (bytes), the number of dimensions, each of them in four bytes, the
    highest first; then the values.

    Raises:
        ValueError: it is something else, or cut off; the message names the file.
    """
    content = read_bytes(path)
    if content[:3] != bytes([0, 0, _IDX_UINT8]):
        raise ValueError(
            f"{path}: expected an idx file of bytes, which begins with 00 00 08, got "
            f"{content[:3].hex(' ')}"
        )
    dimensions = int.from_bytes(content[3:4])
    first = 4 + 4 * dimensions
    if len(content) < max(first, 4):
        raise ValueError(f"{path}: expected {first} bytes before the values, got {len(content)}")
    if dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"{path}: expected at most {_MAX_DIMENSIONS} axes, got {dimensions}")
    shape = tuple(np.frombuffer(content[4:first], ">u4").tolist())
    if 0 in shape:  # whatever the others are
        raise ValueError(f"{path}: expected values, got none: {list(shape)}")
    if len(content) - first != math.prod(shape):
        raise ValueError(
            f"{path}: expected {math.prod(shape):,} values, {list(shape)}, got "
            f"{len(content) - first:,}: cut off?"
        )
    return np.frombuffer(content, np.uint8, offset=first).reshape(shape)


def _find_idx(folder: Path, name: str) -> Path:
    found = sorted(path for path in folder.rglob(f"{name}*") if path.name in (name, f"{name}.gz"))
    if not found:
        raise FileNotFoundError(f"expected {name} or {name}.gz in {folder}, found none")
    return found[0]
