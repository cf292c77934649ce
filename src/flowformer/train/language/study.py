"""Language modelling: the parts of a run, and the use of a finished one."""

import csv
import hashlib
import io
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flowformer.config_json import to_plain
from flowformer.data.language.recall_samples import read_tokens
from flowformer.data.language.tokenizers import Tokenizer, load_tokenizer
from flowformer.generation.text import generate_text
from flowformer.models.language.model import LanguageModel
from flowformer.report.language import write_language_report
from flowformer.scores.measures import ACCURACY_BY_STEP
from flowformer.scores.perplexity import Perplexity
from flowformer.train.folder import RunFolder, read_versions
from flowformer.train.language.config import LanguageConfig, LanguageRecord, LanguageResult
from flowformer.train.language.data import Score, Text, open_source
from flowformer.train.prediction import load_weights
from flowformer.train.run_files import read_history
from flowformer.train.study import Evaluation, Study, Trained

if TYPE_CHECKING:  # it needs Lightning, and a finished run does not
    from flowformer.train.loop.task import EpochRecorder, RecordedTask

TOKENIZER = "tokenizer.json"  # in the run folder: a run is used without the text it learned from
PROMPTS = ("The ", "In ", "It was ", "When ")  # of the samples in a report
SAMPLE_TOKENS = 60


@dataclass(frozen=True, kw_only=True)
class LanguageRun(Trained):
    """A trained language model and what is needed to use it.

    Attributes:
        tokenizer: from text to tokens and back; None of a model that learned a task.
    """

    tokenizer: Tokenizer | None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token that ends a document, of tokenizers that have one; a line's end is none."""
        tokenizer = self.tokenizer
        if tokenizer is None or tokenizer.end_id is None or tokenizer.kind == "word":
            return ()
        return (tokenizer.end_id,)


@dataclass(frozen=True, kw_only=True)
class LanguageEvaluation(Evaluation):
    """The score of a run on its test part, beside what its training found.

    Attributes:
        score: with the context that the configuration gives.
        streaming: with all of the text before each token, which only a state can carry; None of a
            mixer without one of constant size, of a model whose places end, and of a task.
        trained: the figures of the training.
    """

    score: Score
    streaming: Perplexity | None
    trained: LanguageResult

    @property
    def differs(self) -> bool:
        """Whether the test part gives another score than the training found."""
        before = self.trained.test_score
        return abs(self.score.value - before) > 1e-4 * max(1.0, abs(before))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        streaming = self.streaming
        return {
            "measure": self.trained.measure,
            "score": self.score.value,
            "trained_score": self.trained.test_score,
            "loss": self.score.loss,
            "perplexity": self.score.perplexity,
            "bits_per_character": self.score.bits_per_character,
            "streaming_perplexity": None if streaming is None else streaming.per_word,
            "streaming_bits_per_character": (
                None if streaming is None else streaming.bits_per_character
            ),
            "paper_perplexity": self.trained.paper_perplexity,
            "protocol_note": self.trained.protocol_note,
        }

    def describe(self) -> str:
        """Return the figures in words."""
        measure, score = self.trained.measure, self.score
        shown = f"{100 * score.value:.2f} %" if score.perplexity is None else f"{score.value:.4g}"
        lines = [f"test {measure}  {shown}"]
        if score.perplexity is not None:
            lines.append(
                f"                perplexity {score.perplexity:.4g} per word, "
                f"{score.bits_per_character:.4f} bits per character"
            )
        if self.streaming is not None:
            lines.append(
                f"streaming       perplexity {self.streaming.per_word:.4g} per word, "
                f"{self.streaming.bits_per_character:.4f} bits per character: after all that came "
                "before, in one pass"
            )
        verdict = "differs" if self.differs else "the same"
        lines.append(f"training found  {self.trained.test_score:.4g}: {verdict}")
        if self.trained.paper_perplexity is not None:
            lines.append(f"the paper's     {self.trained.paper_perplexity}")
        lines.append(f"protocol        {self.trained.protocol_note}")
        return "\n".join(lines) + "\n"


class Language(Study):
    """Language modelling, on a text or on a task."""

    reads = "FILE"
    use = 'generate {run} "PROMPT"'

    def __init__(self, config: LanguageConfig, *, begun: RunFolder | None = None) -> None:
        del begun
        self.config, self.source = config, open_source(config)
        self.data = self.source.text
        tokenizer = self.source.tokenizer
        digest = None
        if tokenizer is not None:
            digest = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
        self.record = LanguageRecord(
            recipe=config.name,
            config=config,
            versions=read_versions(),
            vocab_size=self.source.vocab_size,
            sizes=dict(self.source.sizes),
            tokenizer=digest,
        )

    def describe(self) -> str:
        """Return how large the text and its vocabulary are."""
        record = self.record
        return (
            f"{self.config.name}: {record.sizes['train']:,} to train on, a vocabulary of "
            f"{record.vocab_size:,}"
        )

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """Return the batches between two measurements, and those of the validation part."""
        return self.source.loaders()

    def build(self) -> LanguageModel:
        """Build the model, with new parameters.

        Raises:
            ValueError: a sample is longer than what the model reads.
        """
        model = LanguageModel(self.config.model, vocab_size=self.record.vocab_size)
        length = self.source.length
        if model.max_positions is not None and length > model.max_positions:
            raise ValueError(
                f"a sample has {length} tokens and the model reads at most "
                f"{model.max_positions}: raise model.max_length, or lower data.length"
            )
        model.set_gradient_checkpointing(self.config.training.checkpoint_activations)
        return model

    def write(self, folder: RunFolder) -> None:
        """Write the tokenizer, if there is one."""
        if self.source.tokenizer is not None:
            self.source.tokenizer.save(folder.root / TOKENIZER)

    def task(self, model: Any) -> "RecordedTask":
        """Return the prediction of the next token."""
        from flowformer.train.language.task import LanguageTask
        from flowformer.train.loop.optimizers import build_scheduled

        training, optimizer = self.config.training, self.config.optimizer
        return LanguageTask(
            model,
            # Weight decay is of the matrices alone.
            lambda model: build_scheduled(
                model.parameter_groups(optimizer.weight_decay), optimizer, steps=training.steps
            ),
            seed=training.seed,
            steps=training.steps,
            column=self.config.measure.column,
            score_of=self.source.score_of,
            right=self.source.right,
        )

    def test(
        self, model: LanguageModel, recorder: "EpochRecorder"
    ) -> tuple[LanguageResult, Mapping[str, str]]:
        """Score the test part."""
        config, score, best = self.config, self.source.test(model), recorder.best
        if not math.isfinite(score.value):
            raise ValueError(
                f"the test {config.measure.name} is {score.value}: the model has not learned"
            )
        training = config.training
        tokens = self.source.length * config.data.batch_size
        tokens *= training.evaluate_every * training.accumulate
        speeds = [tokens / row["train_seconds"] for row in recorder.rows]
        result = LanguageResult(
            **self.common_figures(model, recorder),
            measure=config.measure.name,
            test_score=score.value,
            test_loss=score.loss,
            test_perplexity=score.perplexity,
            test_bits_per_character=score.bits_per_character,
            validation_loss=best["validation_loss"],
            best_step=int(best["step"]),
            steps=training.steps,
            paper_perplexity=config.paper_perplexity,
            paper_source=config.paper_source,
            tokens_per_second=statistics.median(speeds),
        )
        return result, {}

    @classmethod
    def load(cls, run_dir: str | Path) -> LanguageRun:
        """Read back what training left in a folder; no code in it runs."""
        folder = RunFolder(Path(run_dir))
        record = LanguageRecord.read(folder)
        model = LanguageModel(record.config.model, vocab_size=record.vocab_size)
        model, path = load_weights(model, folder).eval(), folder.root / TOKENIZER
        tokenizer = load_tokenizer(path) if path.exists() else None
        return LanguageRun(model=model, record=record, tokenizer=tokenizer)

    @classmethod
    def evaluate(cls, run_dir: str | Path, file: Path | None = None) -> LanguageEvaluation:
        """Score the test part of a finished run again."""
        if file is not None:
            raise ValueError(f"{run_dir} is a language model's: it is tested on its own text")
        run = cls.load(run_dir)
        trained, sizes = LanguageResult.read(RunFolder(Path(run_dir))), run.record.sizes
        source = open_source(run.record.config)
        if source.vocab_size != run.model.vocab_size:
            raise ValueError(
                f"{run_dir} has a vocabulary of {run.model.vocab_size}, its text now has one of "
                f"{source.vocab_size}"
            )
        if source.sizes != sizes:
            raise ValueError(
                f"{run_dir} is of a text of {sizes} tokens, which now is {source.sizes}"
            )
        model = run.to_device()
        streaming = None
        endless = model.has_state and not model.state_grows and model.max_positions is None
        if isinstance(source, Text) and endless:
            streaming = source.stream(model)
        return LanguageEvaluation(score=source.test(model), streaming=streaming, trained=trained)

    @classmethod
    def classifies(cls, run_dir: str | Path) -> bool:
        """Return whether the run learned a task of recall: a text is gone on with."""
        return LanguageRecord.read(RunFolder(Path(run_dir))).config.recall is not None

    @classmethod
    def predict(cls, run_dir: str | Path, *files: Path) -> str:
        """Answer at every token of sequences of a task of recall.

        Args:
            run_dir: folder of a finished run.
            files: one text with a sequence on each line: the numbers of its tokens.
        """
        (file,) = files
        run = cls.load(run_dir)
        sequences = read_tokens(
            file, vocab_size=run.model.vocab_size, max_length=run.model.max_positions
        )
        return format_answers(run.to_device(), sequences)

    @classmethod
    def report(cls, run_dir: str | Path, *, num_samples: int = 4) -> Path:
        """Write the page of a finished run: figures, curves, and samples of what it writes.

        Args:
            run_dir: folder of the run.
            num_samples: texts to make, each from one of PROMPTS; none of one of a task.
        """
        folder, run = RunFolder(Path(run_dir)), cls.load(run_dir)
        return write_language_report(
            folder.report,
            measure=run.config.measure,
            result=to_plain(LanguageResult.read(folder)),
            config=to_plain(run.config),
            history=read_history(folder),
            samples=_samples(run, num_samples),
        )

    @classmethod
    def uses(cls, run: str, result: LanguageResult) -> str:
        """Return the commands that use a run."""
        text = result.test_perplexity is not None
        use = f"flowformer {cls.use.format(run=run)}; " if text else ""
        if result.measure == ACCURACY_BY_STEP.name:
            use = f"flowformer predict {run} {cls.reads}; "
        return f"{use}flowformer evaluate {run}"


def format_answers(model: LanguageModel, sequences: Sequence[Tensor]) -> str:
    """Return CSV: sequence, place, token, and what the model answers there, with its probability.

    Args:
        model: in evaluation mode.
        sequences: of tokens, int64 [t].
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "place", "token", "predicted", "probability"])
    device = next(model.parameters()).device
    for index, tokens in enumerate(sequences):
        with torch.no_grad():
            logits = model(tokens[None].to(device)).logits
        probability, predicted = (each[0].tolist() for each in logits.softmax(-1).max(-1))
        rows = zip(tokens.tolist(), predicted, probability, strict=True)
        for place, (token, answer, certain) in enumerate(rows):
            writer.writerow([index, place, token, answer, f"{certain:.9g}"])
    return text.getvalue()


def _samples(run: LanguageRun, count: int) -> list[tuple[str, str]]:
    """Return prompts, and what the model makes of each."""
    samples, limit, tokenizer = [], run.model.max_positions, run.tokenizer
    if tokenizer is None:
        return []
    for prompt in PROMPTS[:count]:
        room = SAMPLE_TOKENS
        if limit is not None:  # the last new token is not read
            room = min(room, limit + 1 - len(tokenizer.encode(prompt)))
        if room < 1:
            continue
        with warnings.catch_warnings():  # of what a vocabulary lacks in prompts of ours
            warnings.simplefilter("ignore")
            text = generate_text(
                run.model,
                tokenizer,
                prompt,
                max_new_tokens=room,
                stop_ids=run.stop_ids,
                do_sample=True,
                temperature=0.8,
                seed=0,
            )
        samples.append((prompt, text))
    return samples
