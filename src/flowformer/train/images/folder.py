"""What the run folder of an image model holds beside what every run folder does."""

from dataclasses import dataclass
from typing import Literal

from flowformer.train.folder import KeptRecord
from flowformer.train.images.config import VisionConfig


@dataclass(frozen=True, kw_only=True)
class VisionRecord(KeptRecord):
    """What config.json holds.

    Attributes:
        recipe: name of the recipe.
        config: the configuration, overrides included.
        versions: of Python and of the packages that compute.
        classes: names of the classes; labels index them.
        channels: of every image: 1 for grey, 3 for RGB.
        sizes: number of images in each part of the data.
        task: what kind of run it is.
    """

    recipe: str
    config: VisionConfig
    versions: dict[str, str]
    classes: tuple[str, ...]
    channels: int
    sizes: dict[str, int]
    task: Literal["images"] = "images"
