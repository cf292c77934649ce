"""What a run of a language model is told: one frozen dataclass per part; no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flowformer.data.options import TextOptions
from flowformer.models.language.config import LanguageModelConfig
from flowformer.scores.measures import BITS_PER_CHARACTER, EXACT_SUMS, PERPLEXITY, Measure
from flowformer.serialization import check_types
from flowformer.train.config import require
from flowformer.train.schedule import ScheduledOptimizerConfig, StepsConfig

Packing = Literal["contiguous", "documents"]

ADDITION = "addition"  # the corpus that is no text: sums, generated
PROTOCOL_NOTE = "the validation part chose the step; the test part was read once"


@dataclass(frozen=True, kw_only=True)
class TextDataConfig(TextOptions):
    """Which text to train on, and how it becomes batches of tokens.

    Attributes:
        length: tokens of a training sample.
        packing: contiguous cuts the text every `length` tokens, over the ends of documents, as
            published; documents keeps a sample's documents apart.
        batch_size: samples in one forward and backward pass.
        cache: folder of the tokenised text; by default one under the user's cache.
        digits: of the numbers of addition.
    """

    length: int = 512
    packing: Packing = "contiguous"
    batch_size: int = 4
    cache: Path | None = None
    digits: int = 2

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self)
        for name in ("min_count", "length", "batch_size", "digits"):
            require(name, getattr(self, name), "at least 1", lambda v: v >= 1)
        if self.vocab_size is not None:
            require("vocab_size", self.vocab_size, "at least 2", lambda v: v >= 2)


@dataclass(frozen=True, kw_only=True)
class LanguageTrainingConfig(StepsConfig):
    """How long, and how it is measured.

    Attributes:
        accumulate: passes whose gradients make one step.
        validation_tokens: tokens at the start of the validation part to measure on while training;
            None for all.
        context_window: at the end, tokens of context before those that are scored in a sample; 0
            scores every token of a sample, as training does.
        checkpoint_activations: compute each block again in the backward pass: less memory, more
            time.
    """

    accumulate: int = 1
    validation_tokens: int | None = None
    context_window: int = 0
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        super().__post_init__()
        require("accumulate", self.accumulate, "at least 1", lambda v: v >= 1)
        require("context_window", self.context_window, "at least 0", lambda v: v >= 0)
        if self.validation_tokens is not None:
            require("validation_tokens", self.validation_tokens, "at least 1", lambda v: v >= 1)


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """A whole experiment of language modelling.

    Attributes:
        name: of the recipe it came from.
        data: which text, and how it becomes batches.
        model: the language model.
        optimizer: how its parameters move.
        training: how long, and how it is measured.
        paper_dataset: corpus that a paper prints a figure for. With any other in `data`, the figure
            has no place here: it becomes None, its source too.
        paper_perplexity: test perplexity that it prints.
        paper_source: where it prints it.
    """

    name: str
    data: TextDataConfig = field(default_factory=TextDataConfig)
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    optimizer: ScheduledOptimizerConfig = field(default_factory=ScheduledOptimizerConfig)
    training: LanguageTrainingConfig = field(default_factory=LanguageTrainingConfig)
    paper_dataset: str | None = None
    paper_perplexity: float | None = None
    paper_source: str | None = None

    def __post_init__(self) -> None:
        """Checks the values, and drops the paper's figure when it is one for other data.

        Raises:
            ValueError: a value is of the wrong type or out of range, or two do not fit.
        """
        check_types(self.model, "model")
        if self.data.corpus != self.paper_dataset:
            for name in ("paper_dataset", "paper_perplexity", "paper_source"):
                object.__setattr__(self, name, None)
        if self.training.context_window >= self.data.length:
            raise ValueError(
                "training.context_window must be below data.length, got "
                f"{self.training.context_window} and {self.data.length}"
            )

    @property
    def dataset_name(self) -> str:
        """What its text is called."""
        folder = self.data.folder
        return folder.stem if self.data.corpus == "text" and folder else self.data.corpus

    @property
    def by_character(self) -> bool:
        """Whether a token is a character, whose loss is told in bits; else by perplexity."""
        return self.data.tokenizer in ("char", "byte") and self.data.tokenizer_file is None

    @property
    def measure(self) -> Measure:
        """What its runs are ranked by."""
        if self.data.corpus == ADDITION:
            return EXACT_SUMS
        return BITS_PER_CHARACTER if self.by_character else PERPLEXITY

    @property
    def causal(self) -> bool:
        """Whether its mixers are asked for their causal form."""
        return True

    @property
    def paper_score(self) -> float | None:
        """The paper's figure, where comparisons measure the same."""
        return self.paper_perplexity if self.measure == PERPLEXITY else None

    @property
    def protocol(self) -> str:
        """What chooses the step: a part that is not tested on."""
        return "clean"

    @property
    def has_test(self) -> bool:
        """Whether its data have a test part: every text is split in three."""
        return True

    @property
    def protocol_note(self) -> str:
        """The protocol in words, to stand beside every figure."""
        return PROTOCOL_NOTE
