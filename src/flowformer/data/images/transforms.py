"""From images to what a model reads: preprocessing, chance in training, and mixing."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from flowformer.data.arrays import centred_only_where_constant
from flowformer.data.images.records import ImageSplit
from flowformer.data.loaders import own_randomness
from flowformer.data.order import EpochSampler

try:
    from PIL import Image
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.data.mixup import Mixup, mixup_target
    from timm.data.transforms_factory import create_transform
    from torchvision.transforms import Compose, RandomCrop, RandomHorizontalFlip
    from torchvision.transforms import functional as F
    from torchvision.transforms.functional import InterpolationMode
except ImportError as error:
    raise ImportError(
        "timm and torchvision are needed to train on images: pip install 'flowformer[vision]'"
    ) from error

RESIZE = 256 / 224  # the short side before the square is cut out of it, as ImageNet is evaluated
_MAX_RATIO = 8  # of an image's sides: what a square in the middle shows of a longer one is the same

Transform = Callable[[Image.Image], Tensor]
Key = int | tuple[int, int]  # a place, or an epoch and a place
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """What is done to every image; of training, after its chance has had its way.

    Attributes:
        image_size: pixels on each side of what the model reads.
        resize: pixels that the shorter side is brought to first; the square in the middle is cut
            out then. Where it is less than `image_size`, black is put around.
        mean: mean of each channel, with values in [0, 1], subtracted; one for grey, three for RGB.
        std: deviation of each channel, divided by.
    """

    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def for_photographs(cls, image_size: int) -> "ImagePreprocessing":
        """For RGB, with ImageNet's means and the usual square: 256 to 224 pixels."""
        return cls(
            image_size=image_size,
            resize=int(image_size * RESIZE),
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
        )

    @classmethod
    def fit(cls, split: ImageSplit, image_size: int) -> "ImagePreprocessing":
        """For small grey images in an array: as large as they are, with their own mean.

        Raises:
            ValueError: they are larger than `image_size`.
        """
        images = split.images
        assert isinstance(images, np.ndarray)
        if max(images.shape[1:]) > image_size:
            raise ValueError(
                f"image_size must be at least {max(images.shape[1:])}, the side of the images, got "
                f"{image_size}"
            )
        spread = [np.array([value / 255]) for value in (images.std(), images.min(), images.max())]
        return cls(
            image_size=image_size,
            resize=min(images.shape[1:]),
            mean=(float(images.mean() / 255),),
            std=tuple(centred_only_where_constant(*spread).tolist()),
        )

    @property
    def channels(self) -> int:
        """Of what the model reads."""
        return len(self.mean)

    def apply(self, image: Image.Image) -> Float32[Tensor, "c h w"]:
        """Return the square in the middle of an image of any size, normalised."""
        return self.normalise(self.square(image))

    def square(self, image: Image.Image) -> Image.Image:
        """Return the square in the middle, grey or RGB."""
        shown = within_ratio(image.convert("L" if self.channels == 1 else "RGB"))
        # torchvision's types tell of tensors alone.
        resized: Any = F.resize(cast(Any, shown), [self.resize], InterpolationMode.BICUBIC)
        return cast(Image.Image, F.center_crop(resized, [self.image_size]))

    def normalise(self, image: Image.Image) -> Float32[Tensor, "c h w"]:
        """As the model reads it."""
        pixels = F.pil_to_tensor(image).float() / 255
        return F.normalize(pixels, list(self.mean), list(self.std), inplace=True)


def within_ratio(image: Image.Image) -> Image.Image:
    """Return an image without the ends of sides that are very long beside the other.

    A strip of 1 × 10,000 pixels whose short side is brought to 256 would take gigabytes.
    """
    width, height = image.size
    longest = _MAX_RATIO * min(width, height)
    if max(width, height) <= longest:
        return image
    sides = [min(height, longest), min(width, longest)]
    return cast(Image.Image, F.center_crop(cast(Any, image), sides))


def light_transform(preprocessing: ImagePreprocessing, *, shift: int) -> Transform:
    """For small images: shifted over black by up to some pixels each way, and flipped."""
    crop = RandomCrop(preprocessing.image_size, padding=shift)
    chance = Compose([crop, RandomHorizontalFlip()])
    # No closure: DataLoader's workers may be sent it.
    return partial(_lightly, preprocessing, chance)


def strong_transform(
    preprocessing: ImagePreprocessing,
    *,
    rand_augment: str | None,
    color_jitter: float,
    random_erasing: float,
) -> Transform:
    """For photographs, as timm makes it: a random part resized, flipped, RandAugment, erasing.

    Args:
        preprocessing: size and means.
        rand_augment: timm's description of it, such as rand-m9-mstd0.5-inc1; None for none.
        color_jitter: strength of a change of brightness, contrast and saturation, where there is no
            RandAugment.
        random_erasing: probability of a rectangle of noise.

    Raises:
        ValueError: `rand_augment` is not understood.
    """
    try:
        transform: Any = create_transform(
            (preprocessing.channels, preprocessing.image_size, preprocessing.image_size),
            is_training=True,
            auto_augment=rand_augment,
            color_jitter=color_jitter,
            interpolation="bicubic",
            mean=preprocessing.mean,
            std=preprocessing.std,
            re_prob=random_erasing,
            re_mode="pixel",
        )
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"rand_augment must be such as rand-m9-mstd0.5-inc1, got {rand_augment!r}"
        ) from error
    return partial(_converted, "L" if preprocessing.channels == 1 else "RGB", transform)


def _lightly(preprocessing: ImagePreprocessing, chance: Any, image: Image.Image) -> Tensor:
    return preprocessing.normalise(chance(preprocessing.square(image)))


def _converted(mode: str, transform: Transform, image: Image.Image) -> Tensor:
    return transform(image.convert(mode))


class ImageDataset(Dataset[dict[str, Tensor]]):
    """The images of a split as a model reads them: `images` float32 [c, h, w], `labels` int64.

    Args:
        split: the images.
        transform: makes one of them what the model reads.
        seed: seed of the chance in it.
    """

    def __init__(self, split: ImageSplit, transform: Transform, *, seed: int = 0) -> None:
        self._split = split
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._split)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """Return the image of a place, or of an epoch and a place: then with that epoch's chance.

        Raises:
            ValueError: what `read_image` raises.
        """
        epoch, index = (0, key) if isinstance(key, int) else key
        image = self._split.read(index)
        with seeded(self._seed, epoch, index):
            pixels = self._transform(image)
        return {"images": pixels, "labels": torch.tensor(self._split.labels[index])}


class GreyDataset(Dataset[dict[str, Tensor]]):
    """Small grey images in memory as a model reads them, a batch at a time.

    `ImageDataset` with `light_transform`, or without chance with `ImagePreprocessing.apply`, gives
    the same; one image after the other that takes longer than a small model's step.

    Args:
        split: the images, in an array.
        preprocessing: fitted on those to train on.
        shift: pixels by which they are shifted by chance at most, and flipped; None for neither.
        seed: seed of the chance.
    """

    def __init__(
        self,
        split: ImageSplit,
        preprocessing: ImagePreprocessing,
        *,
        shift: int | None,
        seed: int = 0,
    ) -> None:
        """Put black around the images."""
        images, size = split.images, preprocessing.image_size
        assert isinstance(images, np.ndarray)
        self._shift, self._flips = shift or 0, shift is not None
        self._seed = seed
        self._size = size
        self._chance: tuple[int, np.ndarray] | None = None
        before = [(size - side) // 2 for side in images.shape[1:]]
        around = [
            (first + self._shift, size - side - first + self._shift)
            for first, side in zip(before, images.shape[1:], strict=True)
        ]
        self._padded = np.pad(images, ((0, 0), *around))
        self._preprocessing = preprocessing
        self._labels = torch.from_numpy(split.labels)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """Return one of them; see `ImageDataset`."""
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Tensor]:
        """Return several of them, as a batch: for `DataLoader(collate_fn=as_it_is)`."""
        pairs = [(0, key) if isinstance(key, int) else key for key in keys]
        places = np.array([index for _, index in pairs])
        top, left, flip = np.stack([self._draw(epoch)[index] for epoch, index in pairs]).T
        steps = np.arange(self._size)
        rows = top[:, None] + steps
        columns = left[:, None] + np.where(flip[:, None] > 0, steps[::-1], steps)
        pixels = self._padded[places[:, None, None], rows[:, :, None], columns[:, None, :]]
        images = torch.from_numpy(pixels)[:, None].float() / 255
        own = self._preprocessing
        return {
            "images": F.normalize(images, list(own.mean), list(own.std), inplace=True),
            "labels": self._labels[places],
        }

    def _draw(self, epoch: int) -> np.ndarray:
        """First row and column, and whether flipped, of every image in an epoch: [n, 3]."""
        if self._chance is None or self._chance[0] != epoch:
            shift = self._shift
            highest = [2 * shift, 2 * shift, int(self._flips)]
            rng = np.random.default_rng([self._seed, epoch])
            drawn = rng.integers(0, highest, size=(len(self), 3), endpoint=True)
            self._chance = epoch, drawn
        return self._chance[1]


class EpochKeys(Sampler[tuple[int, int]]):
    """An epoch's shuffled order, as keys of `ImageDataset`: the epoch goes to every worker with it.

    Args:
        size: number of images.
        seed: seed of the order.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Start at the beginning of epoch 0."""
        self._order = EpochSampler(size, seed)

    def __len__(self) -> int:
        """Return the number of images in an epoch."""
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Return the keys of this epoch."""
        return ((self._order.epoch, index) for index in self._order)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. Lightning calls this before each."""
        self._order.set_epoch(epoch)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Make what `random`, NumPy and torch (on the CPU) draw in the block a function of the key.

    Afterwards they go on as if nothing had been drawn.
    """
    python, legacy, tensor = np.random.SeedSequence(key).generate_state(3).tolist()
    with own_randomness():
        before = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm's
        random.seed(python)
        np.random.seed(legacy)  # noqa: NPY002 - timm's transforms and mixup draw from it
        # torch.manual_seed would seed every device: where there is none yet, it notes that each
        # time.
        torch.default_generator.manual_seed(tensor)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


class Mixing:
    """Makes of images and classes mixed images and distributions over the classes.

    Mixup (Zhang et al. 2018) adds two images, CutMix (Yun et al. 2019) puts a rectangle of one into
    the other; one or the other for a whole batch, whose first image is mixed with its last and so
    on. What is drawn is a function of a key.

    Args:
        num_classes: classes of the labels.
        mixup: parameter of the Beta distribution of mixup's weights; 0 for none.
        cutmix: that of the area of CutMix; 0 for none.
        label_smoothing: probability that is spread over all classes.
    """

    def __init__(
        self, num_classes: int, *, mixup: float, cutmix: float, label_smoothing: float
    ) -> None:
        self._num_classes = num_classes
        self._smoothing = label_smoothing
        self._mixup = None
        if mixup > 0 or cutmix > 0:
            self._mixup = Mixup(
                mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes
            )

    def __call__(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], *key: int
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b classes"]]:
        """Return the batch mixed.

        Args:
            images: an even number of them, where there is mixup or CutMix; they are left alone.
            labels: their classes.
            key: key of what is drawn.
        """
        if self._mixup is None:
            return images, mixup_target(labels, self._num_classes, smoothing=self._smoothing)
        with seeded(*key):
            return self._mixup(images.clone(), labels)
