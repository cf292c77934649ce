"""A finished run of a language model: reading it back, and measuring it again."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowformer.compare.plan import read_history
from flowformer.data.language.tokenizers import Tokenizer, load_tokenizer
from flowformer.generation.text import generate_text
from flowformer.models.language.model import LanguageModel
from flowformer.report.language import write_language_report
from flowformer.scores.perplexity import Perplexity
from flowformer.serialization import to_plain
from flowformer.train.folder import RunFolder, holds_folder
from flowformer.train.language.config import LanguageConfig
from flowformer.train.language.data import Score, Text, open_source
from flowformer.train.language.folder import LanguageRecord, LanguageResult
from flowformer.train.language.study import TOKENIZER
from flowformer.train.prediction import choose_device, load_weights

PROMPTS = ("The ", "In ", "It was ", "When ")  # of the samples in a report
SAMPLE_TOKENS = 60


@dataclass(frozen=True, kw_only=True)
class LanguageRun:
    """A trained language model and what is needed to use it.

    Attributes:
        model: in evaluation mode, on the CPU.
        tokenizer: from text to tokens and back; None of a model of sums.
        config: of its training.
    """

    model: LanguageModel
    tokenizer: Tokenizer | None
    config: LanguageConfig

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token that ends a document, of tokenizers that have one; a line's end is none."""
        tokenizer = self.tokenizer
        if tokenizer is None or tokenizer.end_id is None or tokenizer.kind == "word":
            return ()
        return (tokenizer.end_id,)


def load_language_run(run_dir: str | Path) -> LanguageRun:
    """Reads back what training left in a folder; no code in it runs.

    Raises:
        FileNotFoundError: there is no run, or it has not ended.
        ValueError: it is that of a classifier, or a file is damaged.
    """
    folder = RunFolder(Path(run_dir))
    record = LanguageRecord.read(folder)
    model = LanguageModel(record.config.model, vocab_size=record.vocab_size)
    load_weights(model, folder)
    path = folder.root / TOKENIZER
    return LanguageRun(
        model=model.eval(),
        tokenizer=load_tokenizer(path) if path.exists() else None,
        config=record.config,
    )


@dataclass(frozen=True, kw_only=True)
class LanguageEvaluation:
    """The score of a run on its test part, beside what its training found.

    Attributes:
        score: with the context that the configuration gives.
        streaming: with all of the text before each token, which only a state can carry; None of a
            mixer without one of constant size, of a model whose places end, and of sums.
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
        """Returns the figures as JSON values."""
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
        """Returns the figures in words."""
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


def evaluate_language_run(run_dir: str | Path, file: Path | None = None) -> LanguageEvaluation:
    """Scores the test part of a finished run again.

    Raises:
        FileNotFoundError: there is no finished run, or its text is gone.
        ValueError: a file of the run is damaged, the text is another one, or a file is given.
    """
    if file is not None:
        raise ValueError(f"{run_dir} is a language model's: it is tested on its own text")
    folder, run = RunFolder(Path(run_dir)), load_language_run(run_dir)
    trained, sizes = LanguageResult.read(folder), LanguageRecord.read(folder).sizes
    source = open_source(run.config)
    if source.vocab_size != run.model.vocab_size:
        raise ValueError(
            f"{run_dir} has a vocabulary of {run.model.vocab_size}, its text now has one of "
            f"{source.vocab_size}"
        )
    if source.sizes != sizes:
        raise ValueError(f"{run_dir} is of a text of {sizes} tokens, which now is {source.sizes}")
    model = run.model.to(choose_device(run.config.training.accelerator))
    streaming = None
    endless = model.has_state and not model.state_grows and model.max_positions is None
    if isinstance(source, Text) and endless:
        streaming = source.stream(model)
    return LanguageEvaluation(score=source.test(model), streaming=streaming, trained=trained)


@holds_folder
def write_language_run_report(run_dir: str | Path, *, num_samples: int = 4) -> Path:
    """Writes the report of a finished run: figures, curves, and samples of what the model writes.

    Args:
        run_dir: folder of the run.
        num_samples: texts to make, each from one of PROMPTS; none of a model of sums.

    Returns:
        The HTML page.

    Raises:
        BlockingIOError: another process writes to the folder.
        FileNotFoundError: there is no finished run.
        ValueError: a file of the run is damaged.
    """
    folder = RunFolder(Path(run_dir))
    run, result = load_language_run(run_dir), LanguageResult.read(folder)
    history = read_history(folder.metrics)
    assert history is not None
    samples = []
    if run.tokenizer is not None:
        limit = run.model.max_positions
        for prompt in PROMPTS[:num_samples]:
            room = SAMPLE_TOKENS
            if limit is not None:  # the last new token is not read
                room = min(room, limit + 1 - len(run.tokenizer.encode(prompt)))
            if room < 1:
                continue
            with warnings.catch_warnings():  # of what a vocabulary lacks in prompts of ours
                warnings.simplefilter("ignore")
                text = generate_text(
                    run.model,
                    run.tokenizer,
                    prompt,
                    max_new_tokens=room,
                    stop_ids=run.stop_ids,
                    do_sample=True,
                    temperature=0.8,
                    seed=0,
                )
            samples.append((prompt, text))
    return write_language_report(
        folder.report,
        measure=run.config.measure,
        result=to_plain(result),
        config=to_plain(run.config),
        history=history,
        samples=samples,
    )
