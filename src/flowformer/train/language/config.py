"""The configuration, record and result of a run on texts; no torch here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from flowformer.data.language.recall import RECALL, RecallSizes
from flowformer.data.options import TextOptions
from flowformer.models.language.config import LanguageModelConfig
from flowformer.names import choose
from flowformer.scores.measures import (
    ACCURACY_BY_STEP,
    BITS_PER_CHARACTER,
    EXACT_SUMS,
    PERPLEXITY,
    Measure,
)
from flowformer.train.config import (
    AT_LEAST_0,
    AT_LEAST_1,
    Bounds,
    Checked,
    ExperimentConfig,
    ScheduledOptimizerConfig,
    StepsConfig,
)
from flowformer.train.run_files import Lines, Record, Result

Packing = Literal["contiguous", "documents"]

ADDITION = "addition"  # a corpus that is no text, as those in RECALL are: sums, generated
PROTOCOL_NOTE = "the validation part chose the step; the test part was read once"


@dataclass(frozen=True, kw_only=True)
class TextDataConfig(Checked, TextOptions):
    """Which text to train on, and how it becomes batches of tokens.

    Attributes:
        length: tokens of a training sample.
        packing: contiguous cuts the text every `length` tokens, over the ends of documents, as
            published; documents keeps a sample's documents apart.
        batch_size: samples in one forward and backward pass.
        cache: folder of the tokenised text; by default one under the user's cache.
        digits: of the numbers of addition.
        pairs: of recall, pairs of key and value in a sample; of copy, tokens to copy. None for as
            many as the task has by default.
    """

    bounds: ClassVar[Bounds] = {
        **dict.fromkeys(("min_count", "length", "batch_size", "digits", "pairs"), AT_LEAST_1),
        "vocab_size": ("at least 2", lambda value: value >= 2),
    }

    length: int = 512
    packing: Packing = "contiguous"
    batch_size: int = 4
    cache: Path | None = None
    digits: int = 2
    pairs: int | None = None

    def require_source(self) -> None:
        """Refuse a text or task that there is not, and files that are not there.

        Raises:
            ValueError: there is no such name, or files of one's own are not named.
            FileNotFoundError: there are no such files.
        """
        from flowformer.data.language.corpora import CORPORA, load_corpus

        choose(self.corpus, dict.fromkeys([*CORPORA, ADDITION, *RECALL]), "corpus")
        if self.corpus in CORPORA:
            load_corpus(self.corpus, folder=self.folder).require_there()


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

    bounds: ClassVar[Bounds] = {
        "accumulate": AT_LEAST_1,
        "context_window": AT_LEAST_0,
        "validation_tokens": AT_LEAST_1,
    }

    accumulate: int = 1
    validation_tokens: int | None = None
    context_window: int = 0
    checkpoint_activations: bool = False


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(ExperimentConfig):
    """A whole experiment of language modelling.

    Attributes:
        data: which text, and how it becomes batches.
        model: the language model.
        optimizer: how its parameters move.
        training: how long, and how it is measured.
        paper_perplexity: test perplexity that the paper prints.
    """

    papers: ClassVar[str] = "corpus"
    causal: ClassVar[bool] = True

    name: str
    data: TextDataConfig = field(default_factory=TextDataConfig)
    model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    optimizer: ScheduledOptimizerConfig = field(default_factory=ScheduledOptimizerConfig)
    training: LanguageTrainingConfig = field(default_factory=LanguageTrainingConfig)
    paper_dataset: str | None = None
    paper_perplexity: float | None = None
    paper_source: str | None = None

    def __post_init__(self) -> None:
        """Check the values, that a task fits, and that a sample has more than the context."""
        super().__post_init__()
        if self.recall is None and self.data.pairs is not None:
            raise ValueError(
                f"data.pairs is of {', '.join(RECALL)}, got {self.data.pairs} for "
                f"{self.data.corpus}"
            )
        if self.training.context_window >= self.data.length:
            raise ValueError(
                "training.context_window must be below data.length, got "
                f"{self.training.context_window} and {self.data.length}"
            )

    def check_early(self) -> None:
        """Refuse what can be seen at once, and a text that is not there."""
        super().check_early()
        self.data.require_source()

    @property
    def dataset_name(self) -> str:
        """The name of the text."""
        folder = self.data.folder
        return folder.stem if self.data.corpus == "text" and folder else self.data.corpus

    @property
    def recall(self) -> RecallSizes | None:
        """The task of recall that is learned, if it is one.

        Raises:
            ValueError: its pairs do not fit.
        """
        data = self.data
        if data.corpus not in RECALL:
            return None
        return RecallSizes.of(
            data.corpus, length=data.length, pairs=data.pairs, vocab_size=data.vocab_size
        )

    @property
    def by_character(self) -> bool:
        """Whether a token is a character, whose loss is told in bits; else by perplexity."""
        return self.data.tokenizer in ("char", "byte") and self.data.tokenizer_file is None

    @property
    def measure(self) -> Measure:
        """The figure that runs are ranked by."""
        if self.data.corpus == ADDITION:
            return EXACT_SUMS
        if self.recall is not None:
            return ACCURACY_BY_STEP
        return BITS_PER_CHARACTER if self.by_character else PERPLEXITY

    @property
    def paper_score(self) -> float | None:
        """The paper's figure, where comparisons measure the same."""
        return self.paper_perplexity if self.measure == PERPLEXITY else None

    @property
    def protocol_note(self) -> str:
        """The protocol in words, to stand beside every figure."""
        if self.recall is None:
            return PROTOCOL_NOTE
        return f"{PROTOCOL_NOTE}; a guess is right in {100 * self.recall.chance:.1f} %"


@dataclass(frozen=True, kw_only=True)
class LanguageRecord(Record):
    """What config.json holds of a run on a text.

    Attributes:
        vocab_size: entries of the vocabulary.
        sizes: tokens in each part of the text; of a task, samples.
        tokenizer: digest of the tokenizer's file; None of a task.
    """

    config: LanguageConfig
    vocab_size: int
    sizes: dict[str, int]
    tokenizer: str | None = None
    task: Literal["language"] = "language"


@dataclass(frozen=True, kw_only=True)
class LanguageResult(Result):
    """What result.json holds of a language model.

    Losses are in nats a token; perplexities are of words.

    Attributes:
        measure: what `test_score` is: perplexity, bits per character, or a fraction: exact sums,
            or the accuracy of the answers of recall.
        test_score: on the test part, at the best step.
        test_loss: of the same part and step.
        test_perplexity: per word of the text, whatever a token is; None of a task.
        test_bits_per_character: per character of the text; None of a task.
        validation_loss: of the best step.
        best_step: steps until then.
        steps: of the optimizer.
        paper_perplexity: what the paper prints, if it does.
        paper_source: where it prints it.
        tokens_per_second: of training, the median over the measurements.
    """

    width: ClassVar[int] = 17

    measure: str
    test_score: float
    test_loss: float
    test_perplexity: float | None
    test_bits_per_character: float | None
    validation_loss: float
    best_step: int
    steps: int
    paper_perplexity: float | None
    paper_source: str | None
    tokens_per_second: float

    @property
    def score(self) -> float:
        """The figure that comparisons rank by."""
        return self.test_score

    @property
    def in_words(self) -> str:
        """The score by its measure."""
        measures = (ACCURACY_BY_STEP, BITS_PER_CHARACTER, EXACT_SUMS, PERPLEXITY)
        (of,) = (each for each in measures if each.name == self.measure)
        return f"the test {of.name} is {of.show(self.score)}{of.unit}"

    def lines(self, record: Any, run: str) -> Lines:
        """Return what to say at the end of a run: no figure without its protocol."""
        del record, run
        if self.test_perplexity is None:
            figures = [(f"test {self.measure}", f"{100 * self.test_score:.2f} %")]
        else:
            paper = self.paper_perplexity
            beside = "" if paper is None else f", the paper's {paper}"
            figures = [
                ("test perplexity", f"{PERPLEXITY.show(self.test_perplexity)} per word{beside}"),
                ("", f"{self.test_bits_per_character:.4f} bits per character"),
            ]
        speed = f"{self.tokens_per_second:,.0f} tokens a second, {self.parameters:,} parameters"
        steps = f"{self.best_step} of {self.steps}: {self.protocol_note}"
        return [("", ""), *figures, ("best step", steps), ("speed", speed)]
