"""What a model reads of images, and the chance in training as a function of its key."""

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from flowformer.data.images.records import ImageSplit
from flowformer.data.images.transforms import (
    EpochKeys,
    GreyDataset,
    ImageDataset,
    ImagePreprocessing,
    Transform,
    light_transform,
    strong_transform,
)
from flowformer.data.order import as_it_is

PHOTOGRAPHS = ImagePreprocessing.for_photographs(32)


@pytest.fixture
def photographs(tmp_path) -> ImageSplit:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(paths[-1])
    return ImageSplit(images=tuple(paths), labels=np.arange(6), name="train")


@pytest.fixture
def pictures() -> ImageSplit:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (9, 28, 28), dtype=np.uint8)
    return ImageSplit(images=grey, labels=np.arange(9), name="train")


def strong() -> Transform:
    return strong_transform(
        PHOTOGRAPHS, rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, random_erasing=0.25
    )


def test_evaluation_is_timms_resize_crop_and_normalisation():
    from timm.data.transforms_factory import create_transform

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    theirs = create_transform((3, 32, 32), interpolation="bicubic", crop_pct=224 / 256)
    torch.testing.assert_close(PHOTOGRAPHS.apply(image), theirs(image))  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (33, 31)])
def test_images_of_any_size_become_squares(size):
    image = PHOTOGRAPHS.apply(Image.new("RGB", size, (255, 255, 255)))
    assert image.shape == (3, 32, 32)
    white = (1 - torch.tensor(PHOTOGRAPHS.mean)) / torch.tensor(PHOTOGRAPHS.std)
    torch.testing.assert_close(image, white[:, None, None].expand(3, 32, 32))


def test_the_same_key_has_the_same_chance_and_another_epoch_another(photographs):
    data = ImageDataset(photographs, strong(), seed=3)
    first, other = data[(1, 2)]["images"], data[(2, 2)]["images"]
    assert first.shape == (3, 32, 32)
    assert torch.equal(data[(1, 2)]["images"], first)
    assert not torch.equal(first, other)
    assert not torch.equal(ImageDataset(photographs, strong(), seed=4)[(1, 2)]["images"], first)


def test_the_chance_of_images_leaves_that_of_the_process_alone(photographs):
    data = ImageDataset(photographs, strong())

    def draw() -> list[float]:
        return [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    expected = draw()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    data[(0, 0)]
    assert draw() == expected


def test_worker_processes_change_nothing(photographs):
    def epoch(workers: int) -> list[torch.Tensor]:
        keys = EpochKeys(len(photographs), 0)
        keys.set_epoch(5)
        # Through pickle, as it is sent to workers that are not forked.
        data = pickle.loads(pickle.dumps(ImageDataset(photographs, strong(), seed=1)))
        loader = DataLoader(data, 2, sampler=keys, num_workers=workers)
        return [batch["images"] for batch in loader]

    for ours, theirs in zip(epoch(0), epoch(2), strict=True):
        assert torch.equal(ours, theirs)


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    keys = EpochKeys(7, 0)
    first = list(keys)
    keys.set_epoch(1)
    second = list(keys)
    assert [epoch for epoch, _ in first + second] == [0] * 7 + [1] * 7
    assert sorted(i for _, i in first) == sorted(i for _, i in second) == list(range(7))
    assert [i for _, i in first] != [i for _, i in second]


def test_a_batch_of_small_images_is_what_one_after_the_other_gives(pictures):
    own = ImagePreprocessing.fit(pictures, 32)
    assert own.channels == 1
    batch = next(iter(DataLoader(GreyDataset(pictures, own, shift=None), 4, collate_fn=as_it_is)))
    single = ImageDataset(pictures, own.apply)
    for place in range(4):
        torch.testing.assert_close(batch["images"][place], single[place]["images"])
        assert batch["labels"][place] == single[place]["labels"]


def test_images_of_one_grey_are_centred_only(pictures):
    grey = replace(pictures, images=np.full_like(pictures.images, 51))
    own = ImagePreprocessing.fit(grey, 28)
    assert (own.mean, own.std) == ((pytest.approx(0.2),), (1.0,))
    assert own.apply(Image.fromarray(grey.images[0])).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["at-once", "one-by-one"])
def test_small_images_are_shifted_over_black_and_flipped(pictures, kind):
    own = ImagePreprocessing.fit(pictures, 28)
    if kind == "at-once":
        data = GreyDataset(pictures, own, shift=3, seed=2)
    else:
        data = ImageDataset(pictures, light_transform(own, shift=3), seed=2)
    black = float((0 - torch.tensor(own.mean)) / torch.tensor(own.std))
    whole = np.pad(pictures.images, ((0, 0), (3, 3), (3, 3)))  # pyright: ignore[reportArgumentType]
    seen = set()
    for epoch in range(20):
        shifted = data[(epoch, 0)]["images"][0]
        grey = ((shifted * own.std[0] + own.mean[0]) * 255).round().numpy().astype(np.uint8)
        found = [
            (top, left, flip)
            for top in range(7)
            for left in range(7)
            for flip in (1, -1)
            if (whole[0, top : top + 28, left : left + 28][:, ::flip] == grey).all()
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 10
    assert {flip for _, _, flip in seen} == {1, -1}
    assert any((data[(epoch, 0)]["images"][0, 0] - black).abs().max() < 1e-5 for epoch in range(20))


def test_an_augmentation_that_timm_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"rand_augment must be such as rand-m9-mstd0\.5-inc1"):
        strong_transform(
            PHOTOGRAPHS, rand_augment="nonsense-9", color_jitter=0.0, random_erasing=0.0
        )


def test_images_larger_than_the_model_reads_are_refused(pictures):
    with pytest.raises(ValueError, match="image_size must be at least 28"):
        ImagePreprocessing.fit(pictures, 24)
