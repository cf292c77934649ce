"""Folders of images: parts and classes, and what is no such folder."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowformer.data.images.records import ImageData, load_image_folder, with_validation

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
    data = load_image_folder(tmp_path)
    assert data.classes == CLASSES
    assert sizes(data) == {"train": 20, "validation": None, "test": None}
    for index in (0, 13):
        red, number, _ = np.asarray(data.train.read(index))[0, 0]
        assert (red, number) == (100 * data.train.labels[index], index % 10)
    assert data.train.place(13) == str(tmp_path / "train" / "dog" / "03.png")


NAMES = ["a.gif", "b.jfif", "c.AVIF", "d.jpe", "e.webp", "f.tga", "plain", "g.jpg_large", "h.jp2"]


def test_every_image_that_pillow_reads_is_read_whatever_its_suffix(tmp_path):
    fill(tmp_path / "train", count=1)
    formats = {"a": "GIF", "c": "AVIF", "e": "WEBP", "f": "TGA", "h": "JPEG2000"}
    for name in NAMES:
        image = Image.new("RGB", (12, 9))
        image.save(tmp_path / "train" / "cat" / name, formats.get(name[0], "JPEG"))
    data = load_image_folder(tmp_path)
    read = [Path(data.train.place(at)).name for at in range(len(data.train))]
    assert read == [*sorted(["00.png", *NAMES]), "00.png"]
    assert all(data.train.read(at).mode == "RGB" for at in range(len(data.train)))


def test_hidden_files_and_folders_are_neither_classes_nor_parts_nor_images(tmp_path):
    fill(tmp_path / "train", count=2)
    image = Image.new("RGB", (4, 4))
    for folder in (".git", "__MACOSX", "train/.ipynb_checkpoints", "train/__MACOSX/cat"):
        (tmp_path / folder).mkdir(parents=True)
        image.save(tmp_path / folder / "x.png")
    (tmp_path / "train" / "cat" / ".cache" / "deep").mkdir(parents=True)
    image.save(tmp_path / "train" / "cat" / ".cache" / "deep" / "x.png")
    for name in (".DS_Store", "cat/._00.png", "cat/Thumbs.db", "dog/desktop.ini"):
        (tmp_path / "train" / name).write_bytes(b"\0")
    data = load_image_folder(tmp_path)
    assert (data.classes, len(data.train)) == (CLASSES, 4)


def test_files_that_are_no_images_are_counted_by_kind_and_folders_named(tmp_path):
    fill(tmp_path / "train", count=2)
    fill(tmp_path / "val", count=1)
    for name in ("train/a.txt", "train/cat/b.txt", "train/cat/deep/c.npy", "train/dog/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    (tmp_path / "unlabelled").mkdir()
    with pytest.warns(UserWarning, match="passed over") as caught:
        data = load_image_folder(tmp_path)
    assert len(data.train) == 4
    folders, files = (str(warning.message) for warning in caught)
    assert "the folders unlabelled were passed over: expected train, val and test" in folders
    assert "train: passed over 4 files (2 .txt, 1 .npy, 1 without a suffix):" in files


def test_what_is_no_file_is_passed_over_and_not_waited_for(tmp_path):
    fill(tmp_path / "train", count=2)
    os.mkfifo(tmp_path / "train" / "cat" / "pipe")
    with pytest.warns(UserWarning, match=r"passed over 1 file \(1 without a suffix\)"):
        assert len(load_image_folder(tmp_path).train) == 4


def test_a_link_that_leads_back_is_followed_once(tmp_path):
    fill(tmp_path / "train", count=2)
    (tmp_path / "train" / "cat" / "again").symlink_to(tmp_path / "train" / "cat")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "train" / "dog" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="the folders elsewhere"):
        assert len(load_image_folder(tmp_path).train) == 5


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val", "VALIDATION"])
def test_the_validation_part_has_the_names_in_use(tmp_path, name):
    for part, count in {"Train": 4, name: 3, "Test": 2}.items():
        fill(tmp_path / part, count=count)
    expected = {"train": 8, "validation": 6, "test": 4}
    assert sizes(load_image_folder(tmp_path)) == expected


def test_two_folders_of_one_part_are_refused(tmp_path):
    for part in ("train", "val", "valid"):
        fill(tmp_path / part, count=2)
    with pytest.raises(ValueError, match=r"expected one validation part, got .*val and .*valid"):
        load_image_folder(tmp_path)


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
