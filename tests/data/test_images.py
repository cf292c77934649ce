"""Folders of images: parts and classes, and what is no such folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowformer.data.images import ImageData, load_image_folder, with_validation

CLASSES = ("cat", "dog")


def fill(folder: Path, *, classes: tuple[str, ...] = CLASSES, count: int = 10) -> Path:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (12, 9), (100 * label, number, 0))
            image.save(folder / name / f"{number:02d}.png")
    return folder


def sizes(data: ImageData) -> dict[str, int | None]:
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: None if split is None else len(split) for name, split in parts.items()}


def test_images_are_read_with_the_class_of_their_folder(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image, passed over")
    data = load_image_folder(tmp_path)
    assert data.classes == CLASSES
    assert sizes(data) == {"train": 20, "validation": None, "test": None}
    for index in (0, 13):
        red, number, _ = np.asarray(data.train.read(index))[0, 0]
        assert (red, number) == (100 * data.train.labels[index], index % 10)
    assert data.train.place(13) == str(tmp_path / "train" / "dog" / "03.png")


@pytest.mark.parametrize("part", ["val", "test"])
def test_the_only_part_beside_train_is_the_test_part(tmp_path, part):
    fill(tmp_path / "train")
    fill(tmp_path / part, count=3)
    assert sizes(load_image_folder(tmp_path)) == {"train": 20, "validation": None, "test": 6}


def test_of_two_parts_val_is_for_validation(tmp_path):
    for part, count in {"train": 10, "val": 3, "test": 2}.items():
        fill(tmp_path / part, count=count)
    data = load_image_folder(tmp_path)
    assert sizes(data) == {"train": 20, "validation": 6, "test": 4}
    assert with_validation(data, 0.5, 0) is data


def test_a_validation_part_is_stratified_and_disjoint(tmp_path):
    fill(tmp_path / "train")
    data = with_validation(load_image_folder(tmp_path), 0.2, 1)
    assert data.validation is not None
    assert np.bincount(data.validation.labels).tolist() == [2, 2]
    assert len(data.train) == 16
    assert not set(map(str, data.train.images)) & set(map(str, data.validation.images))


def test_a_class_without_images_is_named(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "train" / "bird").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train: expected an image for each class, .*bird"):
        load_image_folder(tmp_path)


def test_classes_that_differ_are_named(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "val", classes=("cat", "fish"))
    message = "val: expected the 2 classes of the training images, got 2: dog missing, fish new"
    with pytest.raises(ValueError, match=message):
        load_image_folder(tmp_path)


def test_what_is_no_folder_of_classes_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="none is none"):
        load_image_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="has no folder train: expected"):
        load_image_folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="train has no classes"):
        load_image_folder(tmp_path)


def test_too_few_images_of_a_class_to_part_are_told(tmp_path):
    fill(tmp_path / "train", count=1)
    with pytest.raises(ValueError, match="expected at least 2 images of each class"):
        with_validation(load_image_folder(tmp_path), 0.2, 0)
