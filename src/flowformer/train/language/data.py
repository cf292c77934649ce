"""From a language model's configuration to what it learns from: a tokenised text, or a task."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from flowformer.config_json import to_plain
from flowformer.data.files import data_cache, digest
from flowformer.data.language.addition import VOCAB_SIZE, AdditionProblems, count_exact
from flowformer.data.language.batches import ContiguousBlocks, PackedDocuments, collate_packed
from flowformer.data.language.corpora import Corpus, load_corpus
from flowformer.data.language.preparation import prepare_text
from flowformer.data.language.recall import RecallSizes
from flowformer.data.language.recall_samples import PARTS, RecallSamples
from flowformer.data.language.tokenizers import Tokenizer, load_tokenizer
from flowformer.data.language.tokens import PreparedText, read_meta
from flowformer.data.loaders import StepBatches
from flowformer.data.options import TextOptions
from flowformer.generation.generate import generate
from flowformer.generation.steps import evaluation_mode
from flowformer.models.language.model import LanguageModel
from flowformer.progress import counted
from flowformer.scores.measures import bits_of, exp_of
from flowformer.scores.perplexity import Perplexity, evaluate_perplexity, streaming_perplexity
from flowformer.train.digests import Digests, digest_values
from flowformer.train.language.config import ADDITION, LanguageConfig, TextDataConfig

logger = logging.getLogger(__name__)

BPE_VOCAB_SIZE = 8192  # of a vocabulary that is trained and whose size nobody gave
ADDITION_VALIDATION = 500  # problems held back from training, to choose the step
RECALL_VALIDATION, RECALL_TEST = 500, 2000  # samples
_DIGESTED = 500  # samples of each part: the others are drawn in the same way


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a model does on a part that it was not trained on.

    Attributes:
        value: as the configuration's measure has it.
        loss: nats a token.
        perplexity: per word, whatever a token is; None of a task.
        bits_per_character: of the text; None of a task.
    """

    value: float
    loss: float
    perplexity: float | None = None
    bits_per_character: float | None = None


def open_source(config: LanguageConfig) -> "Text | Addition | Recall":
    """Open what a configuration names: fetched and tokenised, or as it lies there already.

    Raises:
        ValueError: there is no such corpus, a part is shorter than a sample, or a file is damaged.
        FileNotFoundError: a file is missing.
        ImportError: a library is missing; the message names the extra to install.
    """
    if config.data.corpus == ADDITION:
        return Addition(config)
    if config.recall is not None:
        return Recall(config, config.recall)
    config.data.require_source()
    return Text(config, load_text(config.data))


def load_text(config: TextDataConfig) -> PreparedText:
    """Fetch and tokenise a text, or open what is there already; raise as `open_source`."""
    vocab_size = config.vocab_size
    tokenizer: str | Tokenizer = config.tokenizer
    if config.tokenizer_file is not None:
        tokenizer = load_tokenizer(config.tokenizer_file)
    elif config.tokenizer == "bpe":
        vocab_size = vocab_size or BPE_VOCAB_SIZE
    corpus = load_corpus(config.corpus, folder=config.folder)
    return prepare_text(
        corpus,
        config.cache or _default_cache(config, corpus, tokenizer),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        min_count=config.min_count,
    )


def digest_data(config: LanguageConfig, text: PreparedText | None = None) -> Digests:
    """Return digests of each part: of a tokenised text, of what is drawn; of sums, none."""
    own = config.data
    if own.corpus == ADDITION:
        return {}
    if config.recall is not None:
        return {f"{own.corpus} ({part})": _digest_drawn(config.recall, part) for part in PARTS}
    if text is None:
        text = load_text(own)
    name = own.corpus if own.folder is None else str(own.folder)
    # Those of the shards were compared with the files when these were opened.
    return {
        f"{name} ({part})": digest_values([shard.sha256 for shard in shards])
        for part, shards in read_meta(text.folder).shards.items()
    }


def _digest_drawn(sizes: RecallSizes, part: str) -> str:
    """Return the digest of the first samples of a part: NumPy may come to draw others."""
    samples = RecallSamples(sizes, part, count=_DIGESTED)
    return digest_values(
        samples[index][name].numpy() for index in range(_DIGESTED) for name in samples[0]
    )


def _default_cache(config: TextDataConfig, corpus: Corpus, tokenizer: str | Tokenizer) -> Path:
    """Return the folder of a tokenised text that was given none.

    It is named after the settings and the content, so that a text that was edited is tokenised
    anew, beside what runs on the earlier one read.
    """
    values = {field.name: getattr(config, field.name) for field in fields(TextOptions)}
    # A path means the same from any folder: the command line makes some absolute, Python none.
    settings = {
        name: to_plain(value.resolve() if isinstance(value, Path) else value)
        for name, value in values.items()
    }
    settings["text"] = to_plain(corpus.identity())
    if isinstance(tokenizer, Tokenizer):
        settings["tokens"] = tokenizer.to_json()
    return data_cache() / "text" / f"{config.corpus}-{config.tokenizer}-{digest(settings)}"


class Text:
    """A tokenised text.

    Args:
        config: the experiment.
        text: the text; a part that is shorter than a sample raises ValueError.

    Attributes:
        text: the text.
        tokenizer: from text to tokens and back.
        vocab_size: entries of the vocabulary.
        sizes: tokens of each part.
        length: tokens of a sample.
        right: see `Answered.right`; None, as a text is measured by its loss.
    """

    right = None

    def __init__(self, config: LanguageConfig, text: PreparedText) -> None:
        self._config = config
        self.text, self.tokenizer = text, text.tokenizer
        self.vocab_size = text.tokenizer.vocab_size
        self.sizes = {part: counts.tokens for part, counts in text.counts.items()}
        self.length = config.data.length
        self._packed = config.data.packing == "documents"
        kind = PackedDocuments if self._packed else ContiguousBlocks
        self._train = kind(text.train, self.length)
        validation = kind(text.validation, self.length)
        limit = config.training.validation_tokens
        count = len(validation) if limit is None else max(1, limit // self.length)
        # The first ones, so that every measurement is of the same text.
        self._validation = Subset(validation, range(min(count, len(validation))))

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """Return the batches of one round, and those of the validation part."""
        collate = collate_packed if self._packed else None
        return _loaders(self._config, self._train, self._validation, collate)

    def score_of(self, loss: float) -> float:
        """Return bits per character, or perplexity per word, of a loss in nats a token.

        With the tokens to a word of the whole validation part: of its beginning alone
        (validation_tokens) it is an estimate.
        """
        counts = self.text.counts["validation"]
        if self._config.by_character:
            return bits_of(loss) * counts.tokens / counts.characters
        return exp_of(loss * counts.tokens / counts.words)

    def test(self, model: LanguageModel) -> Score:
        """Score the test part with the sliding context of the configuration.

        The token that ends a line or document stands before the text, as fairseq has it; without
        one (characters, bytes) the first token is not scored.
        """
        counts = self.text.counts["test"]
        scored = evaluate_perplexity(
            model,
            self.text.test,
            length=self.length,
            context_window=self._config.training.context_window,
            batch_size=self._config.data.batch_size,
            start_id=self.tokenizer.end_id,
            words=counts.words,
            characters=counts.characters,
        )
        assert scored.per_word is not None
        assert scored.bits_per_character is not None
        by_character = self._config.by_character
        return Score(
            value=scored.bits_per_character if by_character else scored.per_word,
            loss=scored.nll / scored.tokens,
            perplexity=scored.per_word,
            bits_per_character=scored.bits_per_character,
        )

    def stream(self, model: LanguageModel) -> Perplexity:
        """Score the test part after all that came before, in one pass, by the model's state."""
        counts = self.text.counts["test"]
        return streaming_perplexity(
            model,
            self.text.test,
            start_id=self.tokenizer.end_id,
            words=counts.words,
            characters=counts.characters,
        )


class Answered(ABC):
    """Samples that are made, not read, with answers that are right or wrong.

    Args:
        config: the experiment.
        parts: the samples of train, validation and test.

    Attributes:
        vocab_size: number of tokens.
        sizes: samples of each part.
        length: tokens that are read of a sample.
    """

    tokenizer = text = score_of = None  # no text, and nothing that follows from the loss
    vocab_size: int
    length: int

    def __init__(self, config: LanguageConfig, parts: Mapping[str, Any]) -> None:
        self._config = config
        self._parts = parts
        self.sizes = {name: len(part) for name, part in parts.items()}

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """Return the batches of one round, and those of the validation part."""
        return _loaders(self._config, self._parts["train"], self._parts["validation"], None)

    @staticmethod
    @abstractmethod
    def right(
        logits: Float[Tensor, "b t vocab"], targets: Int[Tensor, "b t"]
    ) -> Bool[Tensor, " n"]:
        """Return whether each of what counts in a batch is right."""

    def test(self, model: LanguageModel) -> Score:
        """Return the part of the test part that is right, and its loss, all answers known."""
        right, losses, count = [], 0.0, 0
        device = next(model.parameters()).device
        with evaluation_mode(model), torch.no_grad():
            batches = DataLoader(self._parts["test"], self._config.data.batch_size)
            for batch in counted(batches, "testing", unit="batches"):
                given = {name: value.to(device) for name, value in batch.items()}
                logits, loss, _ = model(**given)
                right.append(self.right(logits, given["targets"]).cpu())
                # Every sample asks for as many answers.
                losses, count = losses + float(loss) * len(logits), count + len(logits)
        return Score(value=float(torch.cat(right).double().mean()), loss=losses / count)


class Addition(Answered):
    """Sums of two numbers, which are right to the last digit or wrong."""

    vocab_size = VOCAB_SIZE

    def __init__(self, config: LanguageConfig) -> None:
        digits = config.data.digits
        problems = AdditionProblems("train", digits=digits)
        # Some of the training problems are held back, to choose the step by.
        kept = len(problems) - min(ADDITION_VALIDATION, len(problems) // 5)
        self._test = AdditionProblems("test", digits=digits)
        parts = {
            "train": Subset(problems, range(kept)),
            "validation": Subset(problems, range(kept, len(problems))),
            "test": self._test,
        }
        super().__init__(config, parts)
        self.length = 3 * digits

    @staticmethod
    def right(
        logits: Float[Tensor, "b t vocab"], targets: Int[Tensor, "b t"]
    ) -> Bool[Tensor, " b"]:
        """Return whether each sum is right, each digit after the right ones before it."""
        return ((logits.argmax(-1) == targets) | (targets < 0)).all(-1)

    def test(self, model: LanguageModel) -> Score:
        """Let the model add, and count the sums that are right to the last digit."""
        device = next(model.parameters()).device

        def add(prompts: Any, width: int) -> Any:
            output = generate(model, prompts.to(device), max_new_tokens=width)
            return output.sequences[:, -width:]

        sums = count_exact(add, self._test)
        if sums.mistakes:
            logger.info("wrong sums: %s", ", ".join(sums.mistakes))
        return replace(super().test(model), value=sums.accuracy)


class Recall(Answered):
    """Sequences that ask for what stood earlier in them; each answer counts.

    No sample is seen twice in training.

    Args:
        config: the experiment.
        sizes: the task.
    """

    def __init__(self, config: LanguageConfig, sizes: RecallSizes) -> None:
        training = config.training
        counts = {
            "train": training.steps * training.accumulate * config.data.batch_size,
            "validation": RECALL_VALIDATION,
            "test": RECALL_TEST,
        }
        parts = {part: RecallSamples(sizes, part, count=count) for part, count in counts.items()}
        super().__init__(config, parts)
        self.vocab_size, self.length = sizes.vocab_size, sizes.length

    @staticmethod
    def right(
        logits: Float[Tensor, "b t vocab"], targets: Int[Tensor, "b t"]
    ) -> Bool[Tensor, " n"]:
        """Return whether each answer is right."""
        return (logits.argmax(-1) == targets)[targets >= 0]


def _loaders(
    config: LanguageConfig, train: Any, validation: Dataset, collate: Any
) -> tuple[DataLoader, DataLoader]:
    training = config.training
    batches = StepBatches(
        len(train),
        batch_size=config.data.batch_size,
        steps_per_round=training.evaluate_every * training.accumulate,
        seed=training.seed,
    )
    return (
        DataLoader(train, batch_sampler=batches, collate_fn=collate),
        DataLoader(validation, config.data.batch_size, collate_fn=collate),
    )
