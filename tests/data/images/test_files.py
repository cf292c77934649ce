"""Image files of every kind, and files that are none."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowformer.data.images.files import read_image, require_images

COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]


def saved(folder: Path, name: str, image: Image.Image, **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_stays_as_it_is(tmp_path):
    assert (pixels(saved(tmp_path, "a.png", Image.fromarray(COLOURS))) == COLOURS).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_of_16_bits_is_scaled_not_clipped(tmp_path, name):
    values = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
    read = pixels(saved(tmp_path, name, Image.fromarray(values)))
    assert (read == np.rint(values / 257).astype(np.uint8)[..., None]).all()


def test_what_is_transparent_is_laid_on_white(tmp_path):
    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, 15:] = 255
    rgba = Image.fromarray(np.dstack([COLOURS, alpha]))
    read = pixels(saved(tmp_path, "a.png", rgba))
    assert (read[:, :15] == 255).all()
    assert (read[:, 15:] == COLOURS[:, 15:]).all()


def test_a_palette_keeps_its_colours_and_its_transparent_entry_becomes_white(tmp_path):
    few = Image.fromarray(COLOURS).quantize(4)
    colours = np.asarray(few.convert("RGB"))
    read = pixels(saved(tmp_path, "a.png", few, transparency=0))
    hidden = np.asarray(few) == 0
    assert (read[hidden] == 255).all()
    assert (read[~hidden] == colours[~hidden]).all()


def test_cmyk_becomes_rgb(tmp_path):
    orange = Image.new("RGB", (16, 16), (230, 120, 20))
    read = pixels(saved(tmp_path, "a.jpg", orange.convert("CMYK"), quality=95))
    assert np.abs(read.astype(int) - (230, 120, 20)).max() < 8


def test_one_pixel_and_one_bit_are_images(tmp_path):
    assert pixels(saved(tmp_path, "a.png", Image.new("RGB", (1, 1), (5, 6, 7)))).tolist() == [
        [[5, 6, 7]]
    ]
    assert (pixels(saved(tmp_path, "b.png", Image.new("1", (9, 9), 1))) == 255).all()


def test_the_orientation_of_exif_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    path = saved(tmp_path, "a.png", Image.fromarray(COLOURS), exif=exif)
    assert (pixels(path) == np.rot90(COLOURS, -1)).all()


@pytest.mark.parametrize("error", [struct.error("no integer"), RuntimeError("no item")])
def test_a_file_is_named_whatever_its_decoder_raises(tmp_path, monkeypatch, error):
    def fail(_image: Image.Image) -> None:
        raise error

    path = saved(tmp_path, "a.png", Image.fromarray(COLOURS))
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", fail)
    with pytest.raises(ValueError, match=rf"a\.png: cut off or damaged image \({error}\)"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
@pytest.mark.parametrize("part", [0.5, 0.02, 0.0])
def test_a_file_that_is_cut_off_is_named(tmp_path, kind, part):
    whole = io.BytesIO()
    Image.fromarray(np.tile(COLOURS, (10, 10, 1))).save(whole, kind)
    content = whole.getvalue()
    path = tmp_path / "cut"
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: "):
        read_image(path)


def test_text_is_named_as_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"a\.jpg: expected an image that Pillow reads"):
        read_image(tmp_path / "a.jpg")
    good = saved(tmp_path, "b.png", Image.fromarray(COLOURS))
    with pytest.raises(ValueError, match=r"a\.jpg: expected an image"):
        require_images([good, tmp_path / "a.jpg"])
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.jpg")


def test_of_many_images_one_that_is_cut_off_is_found_before_it_is_needed(tmp_path):
    paths = [saved(tmp_path, f"{at}.jpg", Image.fromarray(COLOURS)) for at in range(5)]
    require_images(paths)
    paths[3].write_bytes(paths[3].read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"3\.jpg: cut off or damaged image"):
        require_images(paths)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(GREY.astype(np.float32)), "expected integer pixels, got floating point"),
        (Image.fromarray(GREY.astype(np.int32) * 100_000), "expected grey values of 16 bits"),
    ],
)
def test_values_of_unknown_range_are_refused(tmp_path, image, message):
    with pytest.raises(ValueError, match=rf"a\.tif: {message}"):
        read_image(saved(tmp_path, "a.tif", image))


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match=r"bomb\.png: expected at most 89,478,485 pixels"):
        read_image(path)
