"""Grey pictures as pixels: both formats of CIFAR-10, idx files, and damaged ones."""

import gzip
import hashlib
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from flowformer.data.images import fashion_mnist as fashion_files
from flowformer.data.images.fashion_mnist import read_idx
from flowformer.data.sequences import pictures
from flowformer.data.sequences.pictures import load_cifar10_grey, load_fashion_mnist, to_grey

RECORDS = 20


@pytest.fixture
def colours() -> np.ndarray:
    """Six files of pictures, [file, record, 3, 1024]."""
    return np.random.default_rng(0).integers(0, 256, (6, RECORDS, 3, 1024), dtype=np.uint8)


LABELS = np.arange(6 * RECORDS).reshape(6, RECORDS) % 10


@pytest.fixture
def cifar(tmp_path: Path, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's version for C programs, with a few pictures in each file."""
    monkeypatch.setattr(pictures, "_BATCH_PICTURES", RECORDS)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name, pixels, labels in zip(names, colours, LABELS, strict=True):
        records = [bytes([a]) + b.tobytes() for a, b in zip(labels, pixels, strict=True)]
        (tmp_path / "cifar-10-batches-bin" / name).write_bytes(b"".join(records))
    return tmp_path


def exactly_grey(colours: np.ndarray) -> np.ndarray:
    """In exact arithmetic: the value, times 255.5 / 255, not rounded."""
    red, green, blue = np.moveaxis(colours.astype(np.float64), -2, 0)
    return (0.2989 * red + 0.5870 * green + 0.1140 * blue) * (255.5 / 255)


def test_grey_is_rounded_down_to_the_pixel():
    shades = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3).transpose(0, 2, 1)
    assert to_grey(shades)[0].tolist() == list(range(256))
    primaries = np.eye(3, dtype=np.uint8)[None] * 255
    assert to_grey(primaries)[0].tolist() == [76, 149, 29]


def test_cifar10_has_lra_parts_in_the_order_of_its_files(cifar: Path, colours: np.ndarray):
    data = load_cifar10_grey(cifar)
    assert {part: len(split) for part, split in data.splits.items()} == {
        "train": 90,
        "validation": 10,
        "test": 20,
    }
    assert data.picture == (32, 32)
    assert data.vocab_size == 257
    read = np.concatenate([split.inputs.values for split in data.splits.values()]) - 1
    # One down from the exact value, or where that is nearly whole, it.
    excess = exactly_grey(colours).reshape(-1) - read
    assert -1e-4 < excess.min() < excess.max() < 1 + 1e-4
    labels = np.concatenate([split.labels for split in data.splits.values()])
    assert labels.tolist() == LABELS.reshape(-1).tolist()
    assert "the last tenth of the training files as validation" in data.source


def write_pickles(folder: Path, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's version for Python, which torchvision is told to know."""
    from torchvision.datasets import CIFAR10

    digests = {}
    batches = folder / CIFAR10.base_folder
    batches.mkdir()
    content: dict[str, object] = {"batches.meta": {"label_names": ["a"] * 10}}
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, pixels, labels in zip(names, colours, LABELS, strict=True):
        content[name] = {"data": pixels.reshape(RECORDS, -1), "labels": labels.tolist()}
    for name, value in content.items():
        (batches / name).write_bytes(pickle.dumps(value))
        digests[name] = hashlib.md5((batches / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[name, digests[name]] for name in names[:-1]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[-1], digests[names[-1]]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digests["batches.meta"]})


def test_the_version_for_python_gives_the_same(
    cifar: Path, colours: np.ndarray, tmp_path_factory, monkeypatch: pytest.MonkeyPatch
):
    other = tmp_path_factory.mktemp("python")
    write_pickles(other, colours, monkeypatch)
    one, two = load_cifar10_grey(cifar), load_cifar10_grey(other)
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(
            one.splits[part].inputs.values, two.splits[part].inputs.values
        )
        np.testing.assert_array_equal(one.splits[part].labels, two.splits[part].labels)


def test_an_altered_pickle_is_not_opened(
    tmp_path: Path, colours: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    write_pickles(tmp_path, colours, monkeypatch)
    trap = b"cos\nmkdir\n(S'" + str(tmp_path / "run").encode() + b"'\ntR."
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(trap)
    with pytest.raises(FileNotFoundError, match=r"expected cifar-10-batches-bin or .* corrupted"):
        load_cifar10_grey(tmp_path)
    assert not (tmp_path / "run").exists()


def test_without_torchvision_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match=r"torchvision is needed .*'flowformer\[arena\]'"):
        load_cifar10_grey(tmp_path)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda b: b[:-1],
            ValueError,
            r"data_batch_2\.bin: expected 61,460 bytes, got 61,459: cut",
        ),
        (lambda b: b[:-3073], ValueError, "expected 61,460 bytes, got 58,387: cut off"),
        (lambda b: b"\x0a" + b[1:], ValueError, r"train labels must be in \[0, 10\), got 0 to 10"),
        (None, FileNotFoundError, r"expected data_batch_2\.bin in"),
    ],
    ids=["cut", "a record less", "label", "missing"],
)
def test_a_damaged_cifar_file_is_refused(cifar: Path, damage, error, message):
    path = cifar / "cifar-10-batches-bin" / "data_batch_2.bin"
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    with pytest.raises(error, match=message):
        load_cifar10_grey(cifar)


def idx(values: np.ndarray) -> bytes:
    shape = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Fashion-MNIST's four files with a few pictures, two of them gzipped."""
    rng = np.random.default_rng(1)
    for prefix, count in (("train", 12), ("t10k", 5)):
        images = idx(rng.integers(0, 256, (count, 28, 28)))
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return tmp_path


def test_fashion_mnist_is_padded_and_says_what_it_is(fashion: Path):
    data = load_fashion_mnist(fashion)
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 12, "test": 5}
    drawn = data.splits["test"].inputs[3].reshape(32, 32) - 1
    images = read_idx(fashion / "t10k-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(drawn[2:30, 2:30], images[3])
    assert drawn.sum() == images[3].sum(dtype=int)
    assert data.splits["test"].labels.tolist() == [0, 1, 2, 3, 4]
    assert data.classes[9] == "ankle boot"
    assert "not CIFAR-10" in data.source


def test_fashion_mnist_is_taken_from_the_debian_package(
    fashion: Path, monkeypatch: pytest.MonkeyPatch
):
    def fetch(package: str, members: list[str], *, cache: Path | None) -> Path:
        assert (package, cache) == ("dataset-fashion-mnist", None)
        assert members == ["usr/share/datasets/fashion-mnist/*-ubyte.gz"]
        return fashion

    monkeypatch.setattr(fashion_files, "fetch_debian_data", fetch)
    assert len(load_fashion_mnist().splits["train"]) == 12

    def refuse(*_: object, **__: object) -> Path:
        raise FileNotFoundError("there is no apt-get")

    monkeypatch.setattr(fashion_files, "fetch_debian_data", refuse)
    with pytest.raises(
        FileNotFoundError, match="no apt-get -- or give a folder with the idx files"
    ):
        load_fashion_mnist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", "begins with 00 00 08, got 00 00 0d"),
        (b"", "begins with 00 00 08, got $"),
        (b"\x00\x00\x08", "expected 4 bytes before the values, got 3"),
        (idx(np.zeros(3))[:6], "expected 8 bytes before the values, got 6"),
        (idx(np.zeros((2, 3)))[:-1], r"expected 6 values, \[2, 3\], got 5: cut off\?"),
        (idx(np.zeros(3)) + b"\x00", r"expected 3 values, \[3\], got 4"),
        # Found by fuzzing: more than an array may span, times nothing.
        (b"\x00\x00\x08\x03" + 2 * b"\xff\xff\xff\xff" + bytes(4), "expected values, got none"),
    ],
    ids=["type", "empty", "magic only", "header", "values", "more", "none"],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "some-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [5, -4])
def test_a_cut_gzip_file_is_refused(tmp_path: Path, keep: int):
    path = tmp_path / "some-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.arange(99)))[:keep])
    with pytest.raises(ValueError, match="damaged gzip file"):
        read_idx(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(4), r"test: expected pictures \[4, 28, 28\], one a label, got \[5, 28, 28\]"),
        (np.arange(5) + 6, r"fashion-mnist: test labels must be in \[0, 10\), got 6 to 10"),
    ],
    ids=["fewer", "out of range"],
)
def test_labels_that_do_not_fit_are_refused(fashion: Path, labels: np.ndarray, message: str):
    (fashion / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(ValueError, match=message):
        load_fashion_mnist(fashion)


def test_a_missing_idx_file_is_named(fashion: Path):
    (fashion / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="expected train-labels-idx1-ubyte or "):
        load_fashion_mnist(fashion)
