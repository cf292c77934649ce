"""Images with a class each: folders of image files, and Fashion-MNIST."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from flowformer.data.arrays import stratified_indices
from flowformer.data.files import files_below, find_parts, is_hidden, subfolders, warn_of_rest
from flowformer.data.images.fashion_mnist import FASHION_CLASSES, read_fashion_mnist
from flowformer.data.images.files import Image, is_image, read_image, require_images
from flowformer.data.options import ImageSetName

_NAMED = 5  # classes that a message lists


@dataclass(frozen=True, kw_only=True)
class ImageSplit:
    """One part of a data set of images.

    Attributes:
        images: paths of files, which are read as RGB when asked for; or grey values.
        labels: the class of each.
        name: name of the part, for messages.
    """

    images: tuple[Path, ...] | UInt8[np.ndarray, "n h w"]
    labels: Int64[np.ndarray, " n"]
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """Return the image at a place: RGB of a file, grey of an array.

        Raises:
            ValueError: what `read_image` raises.
        """
        image = self.images[index]
        return read_image(image) if isinstance(image, Path) else Image.fromarray(image)

    def place(self, index: int) -> str:
        """Return what the image at a place is called: its path, or its number."""
        image = self.images[index]
        return str(image) if isinstance(image, Path) else f"{self.name}[{index}]"

    def select(self, indices: Int64[np.ndarray, " m"], name: str) -> "ImageSplit":
        """Return those at some places, in that order, under another name."""
        images = self.images
        chosen = images[indices] if isinstance(images, np.ndarray) else _at(images, indices)
        return ImageSplit(images=chosen, labels=self.labels[indices], name=name)

    def require_readable(self) -> None:
        """Read every file once.

        Raises:
            ValueError: one is no image, or damaged; the message names it.
        """
        if not isinstance(self.images, np.ndarray):
            require_images(self.images)


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set of images.

    Attributes:
        name: name of the set.
        classes: what each label means.
        channels: channels of every image: 1 for grey, 3 for RGB.
        train: to train on.
        validation: to choose the epoch by, where the set has one beside a test part.
        test: to test on, where there is one.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    train: ImageSplit
    validation: ImageSplit | None = None
    test: ImageSplit | None = None


def find_image_parts(path: Path) -> dict[str, Path]:
    """Return the folders of the parts of a folder of images: train, and any of validation and test.

    Raises:
        FileNotFoundError: there is no such folder, no `train` in it, or no class in that.
        ValueError: two folders are one part.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"expected a folder of images, {path} is none")
    parts = find_parts(subfolders(path))
    if "train" not in parts:
        raise FileNotFoundError(
            f"{path} has no folder train: expected {path}/train/CLASS/IMAGE, and val or test "
            "likewise"
        )
    _find_classes(parts["train"])
    return parts


def load_image_folder(path: Path) -> ImageData:
    """Read which images a folder has: PATH/train/CLASS/*, and val and test likewise.

    The validation part may be called `val`, `valid`, `validation` or `dev`. Of two parts beside
    `train`, it is the validation part and `test` the test part; of one alone, it is the test part:
    on ImageNet's `val` the published figures are measured.

    An image is a file whose suffix Pillow knows as that of a picture (.jpg, .png, .gif, .avif, …)
    or, with another suffix or none, whose first bytes are those of one. Hidden files and folders
    are no data.

    Warns:
        UserWarning: other files were passed over, how many of which kinds; or a folder was.

    Raises:
        FileNotFoundError: there is no such folder, no `train` in it, a part without classes, or a
            class without images.
        ValueError: the classes of a part are not those of `train`, or two folders are one part.
    """
    parts = find_image_parts(path)
    others = [folder.name for folder in subfolders(path) if folder not in parts.values()]
    if others:
        warnings.warn(
            f"{path}: the folders {_listed(others)} were passed over: expected train, val and test",
            UserWarning,
            stacklevel=2,
        )
    classes, train = _read_part(parts.pop("train"))
    read = {part: _read_like(folder, classes) for part, folder in parts.items()}
    return ImageData(
        name=path.resolve().name,
        classes=classes,
        channels=3,
        train=train,
        validation=read["validation"] if len(read) == 2 else None,
        test=read.get("test", read.get("validation")),
    )


def load_labelled_images(path: Path, classes: tuple[str, ...]) -> ImageSplit:
    """Read which images a folder has of known classes: PATH/CLASS/IMAGE.

    Raises:
        FileNotFoundError: there is no such folder, it has no classes, or one without images.
        ValueError: it has other classes.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"expected a folder of images, {path} is none")
    return _read_like(path, classes)


def load_fashion_mnist_images(
    folder: Path | None = None, *, cache: Path | None = None
) -> ImageData:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 grey images of 28 × 28 pixels.

    Args:
        folder: with the idx files; see `flowformer.data.images.fashion_mnist.read_fashion_mnist`.
        cache: where the package's files are kept.

    Raises:
        FileNotFoundError: what `read_fashion_mnist` raises.
        ValueError: likewise.
    """
    parts = {
        part: ImageSplit(images=images, labels=labels.astype(np.int64), name=part)
        for part, (images, labels) in read_fashion_mnist(folder, cache=cache).items()
    }
    return ImageData(name="fashion-mnist", classes=FASHION_CLASSES, channels=1, **parts)


def with_validation(data: ImageData, fraction: float, seed: int) -> ImageData:
    """Set a stratified part of the training images aside, where there is no validation part yet.

    Raises:
        ValueError: what `flowformer.data.arrays.stratified_indices` raises.
    """
    if data.validation is not None:
        return data
    name = f"{data.name}, train"
    rest, chosen = stratified_indices(
        data.train.labels, fraction, seed, name=name, what="images", classes=data.classes
    )
    return replace(
        data,
        train=data.train.select(rest, "train"),
        validation=data.train.select(chosen, "validation"),
    )


def _find_classes(folder: Path) -> list[Path]:
    classes = subfolders(folder)
    if not classes:
        raise FileNotFoundError(f"{folder} has no classes: expected {folder}/CLASS/IMAGE")
    return classes


def _read_part(folder: Path) -> tuple[tuple[str, ...], ImageSplit]:
    classes = _find_classes(folder)
    rest = [path for path in folder.iterdir() if path.is_file() and not is_hidden(path.name)]
    images: list[Path] = []
    labels: list[int] = []
    for label, found in enumerate(classes):
        for path in files_below(found):
            if is_image(path):
                images.append(path)
                labels.append(label)
            else:
                rest.append(path)
    warn_of_rest(folder, rest, expected=f"images, as {folder}/CLASS/IMAGE")
    empty = [classes[label].name for label in np.setdiff1d(range(len(classes)), labels)]
    if empty:
        raise FileNotFoundError(
            f"{folder}: expected an image for each class, found none (.jpg, .png, …) for "
            f"{_listed(empty)}: remove the empty folders, or fill them"
        )
    split = ImageSplit(
        images=tuple(images), labels=np.array(labels, dtype=np.int64), name=str(folder)
    )
    return tuple(found.name for found in classes), split


def _read_like(folder: Path, classes: tuple[str, ...]) -> ImageSplit:
    own, split = _read_part(folder)
    if own == classes:
        return split
    missing, more = sorted(set(classes) - set(own)), sorted(set(own) - set(classes))
    parts = [f"{_listed(missing)} missing"] * bool(missing) + [f"{_listed(more)} new"] * bool(more)
    raise ValueError(
        f"{folder}: expected the {len(classes)} classes of the training images, got {len(own)}: "
        f"{', '.join(parts)}"
    )


def _at(images: Sequence[Path], indices: Int64[np.ndarray, " m"]) -> tuple[Path, ...]:
    return tuple(images[index] for index in indices)


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


# What reads each set, from a folder or from where the set is fetched.
IMAGE_SETS: dict[ImageSetName, Callable[[Path | None], ImageData]] = {
    "folder": lambda path: load_image_folder(path or Path()),
    "fashion-mnist": load_fashion_mnist_images,
}
