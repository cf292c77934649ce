"""Grey pictures as sequences of pixels: Long Range Arena's Image, and what stands in for it."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from flowformer.data.images.fashion_mnist import FASHION_CLASSES, read_fashion_mnist
from flowformer.data.sequences.records import (
    BYTE_VOCAB,
    SequenceData,
    SequenceSet,
    SequenceSplit,
    folder_of,
)
from flowformer.machine import library

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
_SIDE = 32
_BATCH_PICTURES = 10_000  # in each of CIFAR-10's files
_TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_GREY = np.array([0.2989, 0.5870, 0.1140], np.float32)


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


def to_grey(colours: UInt8[np.ndarray, "n 3 pixels"]) -> UInt8[np.ndarray, "n pixels"]:
    """Make pictures grey: 0.2989 red + 0.5870 green + 0.1140 blue, rounded as TensorFlow does.

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
    """Read records of a label and 3 × 1,024 pixels, first the red ones."""
    if not path.is_file():
        raise FileNotFoundError(f"expected {path.name} in {path.parent}, found none")
    content = np.frombuffer(path.read_bytes(), np.uint8)
    expected = _BATCH_PICTURES * (1 + 3 * _SIDE * _SIDE)
    if len(content) != expected:
        raise ValueError(f"{path}: expected {expected:,} bytes, got {len(content):,}: cut off?")
    records = content.reshape(_BATCH_PICTURES, -1)
    return to_grey(records[:, 1:].reshape(len(records), 3, -1)), records[:, 0]


def _from_torchvision(folder: Path, train: bool, download: bool) -> _Labelled:
    torchvision = library(
        "torchvision.datasets",
        "to read cifar-10-batches-py",
        extra="arena",
        instead=", or unpack CIFAR-10's version for C programs (cifar-10-batches-bin)",
    )
    try:
        # The files are pickles; torchvision compares their MD5 before it opens them.
        data = torchvision.CIFAR10(folder, train=train, download=download)
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


CIFAR10_GREY = SequenceSet(
    name="cifar10-grey",
    description="Image: CIFAR-10 as 1,024 grey pixels, 10 classes",
    source="a folder with cifar-10-batches-bin or cifar-10-batches-py",
    defaults={"folder": None},
    read=lambda options: load_cifar10_grey(folder_of(options)),
    files=("cifar-10-batches-*/*",),
)
FASHION_MNIST = SequenceSet(
    name="fashion-mnist",
    description="stands in for Image: pictures of clothes, padded to 1,024 grey pixels",
    source="Debian dataset-fashion-mnist; or a folder with the four idx files",
    defaults={"folder": None},
    read=lambda options: load_fashion_mnist(options.folder),
    files=("**/*-ubyte*",),
)
