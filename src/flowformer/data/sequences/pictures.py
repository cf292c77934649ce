"""Grey pictures as sequences of pixels: Long Range Arena's Image, and what stands in for it."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from flowformer.data.files.compression import read_bytes
from flowformer.data.sequences.records import BYTE_VOCAB, SequenceData, SequenceSplit
from flowformer.data.standins.debian import fetch_debian_data

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
FASHION_CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker"),
    *("bag", "ankle boot"),
)
_SIDE = 32
_BATCH_PICTURES = 10_000  # in each of CIFAR-10's files
_TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_GREY = np.array([0.2989, 0.5870, 0.1140], np.float32)

_FASHION_PACKAGE = "dataset-fashion-mnist"
_FASHION_FILES = {"train": "train", "test": "t10k"}
_IDX_UINT8 = 0x08
_MAX_DIMENSIONS = 32


def load_cifar10_grey(folder: Path, *, download: bool = False) -> SequenceData:
    """CIFAR-10 (Krizhevsky 2009) in grey, 1,024 pixels a picture, row by row.

    As in Long Range Arena: 45,000 pictures to train on, 5,000 for validation, 10,000 for test, made
    grey by TensorFlow's rule, a token a pixel. Which 5,000 LRA has is up to the shuffled files of
    TensorFlow's data sets; here they are the last ones of the training files.

    Args:
        folder: with `cifar-10-batches-bin`, the version for C programs, or `cifar-10-batches-py`,
            which torchvision reads.
        download: whether torchvision downloads the latter when it is not there.

    Raises:
        ImportError: torchvision is needed and missing.
        FileNotFoundError: there are no such files, or torchvision finds them damaged.
        ValueError: a file is cut off, or a label is out of range.
    """
    binary = folder / "cifar-10-batches-bin"
    if binary.is_dir():
        train = _join([_read_cifar_file(binary / name) for name in _TRAIN_FILES])
        test = _read_cifar_file(binary / "test_batch.bin")
    else:
        train, test = (_from_torchvision(folder, part, download) for part in (True, False))
    (pixels, labels), held_out = train, len(train[1]) // 10
    source = (
        "CIFAR-10, grey; Long Range Arena's sizes, with the last tenth of the training files as "
        "validation"
    )
    return _pictures(
        "cifar10-grey",
        source,
        CIFAR10_CLASSES,
        {
            "train": (pixels[:-held_out], labels[:-held_out]),
            "validation": (pixels[-held_out:], labels[-held_out:]),
            "test": test,
        },
    )


def load_fashion_mnist(folder: Path | None = None, *, cache: Path | None = None) -> SequenceData:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 grey pictures of clothes; not CIFAR-10.

    28 × 28 pixels, padded with black to 32 × 32, so that the sequences are those of LRA's Image.

    Args:
        folder: see `read_fashion_mnist`.
        cache: likewise.

    Raises:
        FileNotFoundError: what `read_fashion_mnist` raises.
        ValueError: likewise.
    """
    parts = {}
    for part, (images, labels) in read_fashion_mnist(folder, cache=cache).items():
        padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
        parts[part] = (padded.reshape(len(padded), -1), labels)
    source = "Fashion-MNIST, padded to 32 × 32: grey pictures of clothes, not CIFAR-10"
    return _pictures("fashion-mnist", source, FASHION_CLASSES, parts)


def read_fashion_mnist(
    folder: Path | None = None, *, cache: Path | None = None
) -> dict[str, tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]]:
    """The pictures and labels of Fashion-MNIST's parts, train and test.

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
    """Reads a file of bytes in the idx format, gzipped when its name says so.

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


def to_grey(colours: UInt8[np.ndarray, "n 3 pixels"]) -> UInt8[np.ndarray, "n pixels"]:
    """Makes pictures grey: 0.2989 red + 0.5870 green + 0.1140 blue, rounded as TensorFlow does.

    In float32, with values in [0, 1], times 255.5 and rounded down.
    """
    grey = np.einsum("c,ncp->np", _GREY, colours.astype(np.float32) / np.float32(255))
    return (grey * np.float32(255.5)).astype(np.uint8)


_Labelled = tuple[np.ndarray, np.ndarray]  # pixels [n, height · width], labels [n]


def _pictures(
    name: str, source: str, classes: tuple[str, ...], parts: dict[str, _Labelled]
) -> SequenceData:
    splits = {
        part: SequenceSplit.of_pictures(pixels.reshape(-1, _SIDE, _SIDE), labels)
        for part, (pixels, labels) in parts.items()
    }
    return SequenceData(name, source, classes, BYTE_VOCAB, splits, picture=(_SIDE, _SIDE))


def _read_cifar_file(path: Path) -> _Labelled:
    """Reads records of a label and 3 × 1,024 pixels, first the red ones."""
    if not path.is_file():
        raise FileNotFoundError(f"expected {path.name} in {path.parent}, found none")
    content = np.frombuffer(path.read_bytes(), np.uint8)
    expected = _BATCH_PICTURES * (1 + 3 * _SIDE * _SIDE)
    if len(content) != expected:
        raise ValueError(f"{path}: expected {expected:,} bytes, got {len(content):,}: cut off?")
    records = content.reshape(_BATCH_PICTURES, -1)
    return to_grey(records[:, 1:].reshape(len(records), 3, -1)), records[:, 0]


def _from_torchvision(folder: Path, train: bool, download: bool) -> _Labelled:
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise ImportError(
            "torchvision is needed to read cifar-10-batches-py: pip install 'flowformer[arena]', "
            "or unpack CIFAR-10's version for C programs (cifar-10-batches-bin)"
        ) from error
    try:
        # The files are pickles; torchvision compares their MD5 before it opens them.
        data = CIFAR10(folder, train=train, download=download)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"expected cifar-10-batches-bin or cifar-10-batches-py in {folder}: {error}"
        ) from error
    colours = data.data.transpose(0, 3, 1, 2).reshape(len(data.data), 3, -1)
    batches = np.array_split(colours, max(1, len(colours) // _BATCH_PICTURES))
    return np.concatenate([to_grey(batch) for batch in batches]), np.array(data.targets)


def _join(parts: list[_Labelled]) -> _Labelled:
    pixels, labels = zip(*parts, strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def _find_idx(folder: Path, name: str) -> Path:
    found = sorted(path for path in folder.rglob(f"{name}*") if path.name in (name, f"{name}.gz"))
    if not found:
        raise FileNotFoundError(f"expected {name} or {name}.gz in {folder}, found none")
    return found[0]
