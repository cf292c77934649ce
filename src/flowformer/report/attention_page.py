"""The pictures of image models' attention: PNG files, and one page that has them inside."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowformer.files import write_atomically
from flowformer.report.attention_maps import (
    AttentionPicture,
    Quantity,
    head_maps,
    side_by_side,
    title,
)
from flowformer.report.figures import png_bytes
from flowformer.report.page import heading, paragraph, picture, save

NOTES = (
    "Attention. Before its output projection a head gives the token i the sum over all tokens j of "
    "W_ij v_j, where v are the values. W is exact, whatever the attention computes instead of it: "
    "the gradient of that output with respect to the values, which the values do not enter. Drawn "
    "is W_ij · n / Σ_j |W_ij| of one token i, n tokens: 1 is an even share. Rows of Flow-Attention "
    "do not sum to one; how much i takes in all is not drawn.",
    "Source competition and sink allocation, of Flow-Attention alone, are c_j = n · softmax_j of "
    "the conserved source, 1 being an even share, and a_i = sigmoid of the conserved sink.",
    "A square is a token: each stage has its own grid. The residual connections, the projections "
    "and the layers in between are not in these pictures, so they explain no prediction.",
)

OURS = re.compile(r"\d+-.*-(side-by-side|attention|competition|allocation)\.png")


def attention_parts(
    images: Sequence[Sequence[AttentionPicture]],
) -> tuple[dict[str, bytes], list[str]]:
    """Return the PNG files by name, and the HTML of a report's section.

    Args:
        images: for each image, the pictures of one model or more, to stand side by side.

    Raises:
        ValueError: two models have one name, or the pictures of an image are of several.
    """
    files: dict[str, bytes] = {}
    parts = [paragraph(note, soft=True) for note in NOTES]
    for number, pictures in enumerate(images, 1):
        names = [each.model for each in pictures]
        if len(set(names)) != len(names):
            raise ValueError(f"expected models of different names, got {names}")
        parts.append(heading(pictures[0].name))
        stem = f"{number}-{_plain(Path(pictures[0].name).stem)}"
        if len(pictures) > 1:
            files[f"{stem}-side-by-side.png"] = content = png_bytes(side_by_side(pictures))
            alt = f"{title(pictures[0], 'attention')}, mean over heads: {', '.join(names)}."
            parts.append(picture(content, alt=alt))
        for each in pictures:
            for quantity in _quantities(each):
                content = png_bytes(head_maps(each, quantity))
                files[f"{stem}-{_plain(each.model)}-{quantity}.png"] = content
                alt = f"{each.model}. {title(each, quantity)}, in {len(each.layers)} layers."
                parts.append(picture(content, alt=alt))
    return files, parts


def write_attention_page(folder: Path, images: Sequence[Sequence[AttentionPicture]]) -> Path:
    """Write FOLDER/index.html, which stands alone, and the pictures beside it as PNG.

    Args:
        folder: made when missing; PNG files of an earlier page in it are removed.
        images: see `attention_parts`.

    Returns:
        The page.

    Raises:
        ValueError: see `attention_parts`.
    """
    files, parts = attention_parts(images)
    models = dict.fromkeys(each.model for pictures in images for each in pictures)
    name = f"What {', '.join(models)} attend{'s' if len(models) == 1 else ''} to"
    for file, content in files.items():
        write_atomically(folder / file, content)
    page = save(folder, name, parts)
    for old in folder.glob("*.png"):
        if old.name not in files and OURS.fullmatch(old.name):  # the folder may hold others
            old.unlink()
    return page


def _quantities(picture: AttentionPicture) -> Iterator[Quantity]:
    yield "attention"
    if picture.layers[0].competition is not None:
        yield "competition"
    if picture.layers[0].allocation is not None:
        yield "allocation"


def _plain(name: str) -> str:
    """Return the name as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "image"
