"""What the run folder of a language model holds beside what every run folder does."""

from dataclasses import dataclass
from typing import Literal

from flowformer.train.folder import KeptRecord, KeptResult
from flowformer.train.language.config import LanguageConfig


@dataclass(frozen=True, kw_only=True)
class LanguageRecord(KeptRecord):
    """What config.json holds.

    Attributes:
        recipe: name of the recipe.
        config: the configuration, overrides included.
        versions: of Python and of the packages that compute.
        vocab_size: entries of the vocabulary.
        sizes: tokens in each part of the text; of addition, problems.
        tokenizer: digest of the tokenizer's file; None of addition.
        task: what kind of run it is.
    """

    recipe: str
    config: LanguageConfig
    versions: dict[str, str]
    vocab_size: int
    sizes: dict[str, int]
    tokenizer: str | None = None
    task: Literal["language"] = "language"


@dataclass(frozen=True, kw_only=True)
class LanguageResult(KeptResult):
    """What result.json holds. Losses are in nats a token; perplexities are of words.

    Attributes:
        recipe: name of the recipe.
        protocol_note: what chose the step.
        seed: of the run.
        measure: what `test_score` is: perplexity, bits per character, or exact sums (a fraction).
        test_score: on the test part, at the best step.
        test_loss: likewise.
        test_perplexity: per word of the text, whatever a token is; None of addition.
        test_bits_per_character: likewise.
        validation_loss: of the best step.
        best_step: steps until then.
        steps: of the optimizer.
        paper_perplexity: what the paper prints, if it does.
        paper_source: where it prints it.
        parameters: trainable parameters.
        tokens_per_second: of training, the median over the measurements.
        seconds: of training, the measurements included.
        device: what computed.
        threads: CPU threads.
    """

    recipe: str
    protocol_note: str
    seed: int
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
    parameters: int
    tokens_per_second: float
    seconds: float
    device: str
    threads: int

    @property
    def score(self) -> float:
        """What comparisons rank by."""
        return self.test_score
