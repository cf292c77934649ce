"""Image files of every kind as RGB, or an error that names the file."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as error:
    raise ImportError(
        "Pillow is needed to read images: pip install 'flowformer[vision]'"
    ) from error

MAX_PIXELS = 89_478_485  # Pillow's own bound: a quarter of a gibibyte in RGB
_MAX_16_BIT = 65_535
_BACKGROUND = (255, 255, 255)
# What Pillow opens and is no picture of a camera or a program: films, tables, drawings by commands.
_NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Formats that their first bytes tell for certain, so that a file needs no suffix.
_TOLD_BY_CONTENT = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"}


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB of 8 bits, upright.

    The orientation that EXIF tells is applied; grey of 16 bits is divided by 257; what is
    transparent is laid on white; CMYK, palettes and others are converted as Pillow does; of several
    frames the first is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, is cut off or damaged, has more than `MAX_PIXELS` pixels, or
            values whose range is not known (floating point, 32 bits). The message names the file.
    """
    with warnings.catch_warnings():
        # Of odd EXIF blocks and the like, in files that read well; a bomb is refused by size.
        warnings.simplefilter("ignore")
        return _read(path)


def require_images(paths: Sequence[Path]) -> None:
    """Read each file whole, to find one that is damaged before a training rather than after.

    Raises:
        ValueError: what `read_image` raises, of the first such file.
    """

    def check(path: Path) -> None:
        _read(path).close()

    with warnings.catch_warnings():  # here, not in the threads, which share what is ignored
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor() as pool:
            try:
                for _ in pool.map(check, paths):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its suffix, or with another one by its first bytes."""
    if path.suffix.lower() in _suffixes():
        return True
    if not path.is_file():  # a pipe, which nobody may write to, or a link that leads nowhere
        return False
    formats = _TOLD_BY_CONTENT & Image.OPEN.keys()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(path, formats=sorted(formats)).close()
    except Exception:  # noqa: BLE001 - whatever it is, it is no image that could be read
        return False
    return True


@cache
def _suffixes() -> frozenset[str]:
    known = Image.registered_extensions().items()
    formats = Image.OPEN.keys() - _NO_PICTURES
    return frozenset(suffix for suffix, name in known if name in formats)


def _read(path: Path) -> Image.Image:
    with _open(path) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
        except Exception as error:  # Pillow's plugins raise whatever their parts do
            raise ValueError(f"{path}: cut off or damaged image ({error})") from error
        return _as_rgb(upright, path)


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: expected an image that Pillow reads, got none") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path}: expected at most {MAX_PIXELS:,} pixels, got more than twice that: a "
            "decompression bomb? Make it smaller"
        ) from error
    except Exception as error:  # as in `read_image`
        raise ValueError(f"{path}: cut off or damaged image ({error})") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ValueError(
            f"{path}: expected at most {MAX_PIXELS:,} pixels, got {width} × {height}: a "
            "decompression bomb? Make it smaller"
        )
    return image


def _as_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image, path)
    if image.mode == "F":
        raise ValueError(
            f"{path}: expected integer pixels, got floating point, whose range is not known: save "
            "it with 8 or 16 bits"
        )
    try:
        if image.has_transparency_data:
            # Pillow alone would drop alpha: what is hidden, often black, would show.
            over = image.convert("RGBA")
            below = Image.new("RGBA", over.size, (*_BACKGROUND, 255))
            return Image.alpha_composite(below, over).convert("RGB")
        return image.convert("RGB")
    except Exception as error:  # a palette or alpha channel that is not what the mode says
        raise ValueError(f"{path}: no way from mode {image.mode} to RGB ({error})") from error


def _from_16_bit(image: Image.Image, path: Path) -> Image.Image:
    # Pillow's own conversion to RGB clips at 255, which makes nearly all of such an image white.
    values = np.asarray(image)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > _MAX_16_BIT:
        raise ValueError(
            f"{path}: expected grey values of 16 bits, got {lowest} to {highest}: save it with 8 "
            "or 16 bits"
        )
    grey = np.rint(values.astype(np.float32) / 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
