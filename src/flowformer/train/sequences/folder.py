"""What the run folder of a classifier of sequences holds beside what every run folder does."""

from dataclasses import dataclass
from typing import Literal

from flowformer.train.folder import KeptRecord
from flowformer.train.sequences.config import SequenceConfig


@dataclass(frozen=True, kw_only=True)
class SequenceRecord(KeptRecord):
    """What config.json holds.

    Attributes:
        recipe: name of the recipe.
        config: the configuration, overrides included.
        versions: of Python and of the packages that compute.
        source: of the data, in words; in what they differ from those of a paper, and what was cut.
        classes: names of the classes; labels index them.
        vocab_size: of the tokens, that of padding included; None of features.
        paired: whether a case is two documents.
        max_length: longest sequence that the model has room for.
        sizes: number of cases in each part of the data.
        picture: height and width, where a sequence is the rows of a picture.
        task: what kind of run it is.
    """

    recipe: str
    config: SequenceConfig
    versions: dict[str, str]
    source: str
    classes: tuple[str, ...]
    vocab_size: int | None
    paired: bool
    max_length: int
    sizes: dict[str, int]
    picture: tuple[int, ...] | None = None
    task: Literal["sequences"] = "sequences"
