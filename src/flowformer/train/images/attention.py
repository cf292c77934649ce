"""What trained image models attend to in given images: pictures and a page."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowformer.data.images.files import read_image
from flowformer.data.images.transforms import ImagePreprocessing
from flowformer.models.images.attention import LayerAttention, Sink, layer_attentions
from flowformer.models.images.model import VisionClassifier
from flowformer.report.attention_maps import (
    OURS,
    AttentionPicture,
    LayerMaps,
    relative_weights,
    write_attention_page,
)
from flowformer.train.classification import report_classifier
from flowformer.train.folder import holds_folder
from flowformer.train.images.study import Images


@dataclass(frozen=True, kw_only=True)
class ShownModel:
    """A model that images are shown to.

    Attributes:
        name: what the pictures call it.
        model: in evaluation.
        preprocessing: what is done to its images.
        classes: what its logits mean; of a model without a head, none.
    """

    name: str
    model: VisionClassifier
    preprocessing: ImagePreprocessing
    classes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class SinkChoice:
    """Which token receives what the pictures of the attention show.

    Attributes:
        row: of a place in the square that the model reads, from 0 (above) to 1 (below).
        column: from 0 (left) to 1 (right).
        class_token: the class token in place of it.
    """

    row: float = 0.5
    column: float = 0.5
    class_token: bool = False

    def __post_init__(self) -> None:
        """Refuse a place outside the image."""
        if not (0 <= self.row <= 1 and 0 <= self.column <= 1):
            raise ValueError(
                f"expected a sink's row and column from 0 to 1, got {self.row} and {self.column}"
            )

    def within(self, size: int) -> Sink:
        """Return the pixel of an image of that many pixels on each side."""
        if self.class_token:
            return "class"
        return min(int(self.row * size), size - 1), min(int(self.column * size), size - 1)


def show_image(shown: ShownModel, image: Path, sink: SinkChoice) -> AttentionPicture:
    """Return what every layer of a model attends to in an image file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or the model has no class token.
        NotImplementedError: the mixer is not linear in its values.
    """
    own = shown.preprocessing
    square = own.square(read_image(image))
    pixels = own.normalise(square)[None].to(shown.model.positions.device)
    place = sink.within(own.image_size)
    layers = layer_attentions(shown.model, pixels, sink=place)
    single = len(shown.model.stages) == 1
    return AttentionPicture(
        image=np.asarray(square.convert("RGB")),
        name=image.name,
        model=shown.name,
        sink=None if place == "class" else place,
        layers=tuple(_layer_maps(layer, single=single) for layer in layers),
        verdict=_verdict(shown, pixels),
    )


def write_attention_pictures(
    runs: Sequence[Path], images: Sequence[Path], output: Path | None, *, sink: SinkChoice
) -> Path:
    """Write what finished runs attend to in image files.

    Args:
        runs: their folders.
        images: files of images.
        output: folder of a page; None for the report of a run alone, and for report/side-by-side of
            the first of several.
        sink: which token receives.

    Returns:
        The page.

    Raises:
        FileNotFoundError: a run or an image is not there.
        ValueError: a run is not on images, a file is no image, or what `show_image` raises.
        NotImplementedError: the mixer of a run is not linear in its values.
    """
    own = runs[0] / "report" if output is None else output
    for image in images:
        # A page removes pictures that older ones have left, of a report all.
        if image.resolve().parent == own.resolve() and (output is None or OURS.match(image.name)):
            raise ValueError(f"expected an image of one's own, and {image} is of the page in {own}")
    loaded = [Images.load(run) for run in runs]
    names = distinct_names([run.config.model.mixer for run in loaded], runs)
    models = [
        ShownModel(name=name, model=run.model, preprocessing=run.preprocessing, classes=run.classes)
        for name, run in zip(names, loaded, strict=True)
    ]
    if output is None:
        return _write_into(runs[0], models, images, sink)
    return write_pictures(models, images, output, sink=sink)


@holds_folder
def _write_into(
    run_dir: Path, models: Sequence[ShownModel], images: Sequence[Path], sink: SinkChoice
) -> Path:
    """Write pictures into the report of a run."""
    if len(models) > 1:
        return write_pictures(models, images, run_dir / "report" / "side-by-side", sink=sink)
    pictures = [show_image(models[0], image, sink) for image in images]
    return report_classifier(run_dir, attention=pictures)


def write_pictures(
    models: Sequence[ShownModel], images: Sequence[Path], output: Path, *, sink: SinkChoice
) -> Path:
    """Write the pictures and OUTPUT/index.html; several models stand side by side.

    Returns:
        The page.

    Raises:
        ValueError: there is no model or image, or what `show_image` raises.
    """
    if not models or not images:
        raise ValueError(
            f"expected at least one model and one image, got {len(models)} and {len(images)}"
        )
    pictures = [[show_image(model, image, sink) for model in models] for image in images]
    return write_attention_page(output, pictures)


def distinct_names(mixers: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return names that differ: the mixers, or these with the folders' names, or with their paths.

    Raises:
        ValueError: a folder is given twice.
    """
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise ValueError(f"expected each run once, got {', '.join(map(str, folders))}")
    ways = [
        list(mixers),
        [f"{mixer} ({folder.name})" for mixer, folder in zip(mixers, folders, strict=True)],
        [f"{mixer} ({folder})" for mixer, folder in zip(mixers, folders, strict=True)],
    ]
    counts = [Counter(names) for names in ways]
    return [
        next(names[at] for names, count in zip(ways, counts, strict=True) if count[names[at]] == 1)
        for at in range(len(mixers))
    ]


def _layer_maps(layer: LayerAttention, *, single: bool) -> LayerMaps:
    rows, columns = layer.grid
    weights = relative_weights(layer.implied[0].double().cpu().numpy())
    before = weights.shape[1] - rows * columns
    block = f"block {layer.block + 1}"

    def on_grid(values: np.ndarray) -> np.ndarray:
        return values[:, before:].reshape(-1, rows, columns)

    flow = layer.flow
    return LayerMaps(
        name=block if single else f"stage {layer.stage + 1}, {block}",
        attention=on_grid(weights),
        competition=None if flow is None else on_grid(_heads(flow.source_competition)),
        allocation=None if flow is None else on_grid(_heads(flow.sink_allocation)),
        class_attention=weights[:, 0] if before else None,
    )


def _heads(values: Tensor) -> np.ndarray:
    return values[0].T.double().cpu().numpy()


@torch.no_grad()
def _verdict(shown: ShownModel, pixels: Tensor) -> str:
    if not shown.classes:
        return ""
    share, place = shown.model(pixels).logits[0].softmax(0).max(0)
    return f"{shown.classes[int(place)]}, {float(share):.0%}"
