"""A finished run on sequences: reading it back, testing it again, its report, and predictions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from flowformer.data.sequences.batches import LabelledSequences, collate_sequences, read_cases
from flowformer.models.sequences.model import PairClassifier, SequenceClassifier
from flowformer.report.classifier import write_report
from flowformer.scores.metrics import classification_metrics
from flowformer.train.evaluation import Evaluation
from flowformer.train.folder import RunFolder, RunResult, holds_folder
from flowformer.train.prediction import choose_device, classify, format_predictions, load_weights
from flowformer.train.sequences.data import (
    build_sequence_model,
    load_sequences,
    part_sequences,
    test_loader,
)
from flowformer.train.sequences.folder import SequenceRecord


@dataclass(frozen=True, kw_only=True)
class SequenceRun:
    """A trained classifier and what is needed to use it.

    Attributes:
        model: in evaluation mode, on the CPU.
        record: of its training.
    """

    model: SequenceClassifier | PairClassifier
    record: SequenceRecord


def load_sequence_run(run_dir: str | Path) -> SequenceRun:
    """Reads back what training left in a folder; no code in it runs.

    Raises:
        FileNotFoundError: there is no run, or it has not ended.
        ValueError: it is one on other data, or a file is damaged.
    """
    folder = RunFolder(Path(run_dir))
    record = SequenceRecord.read(folder)
    model = build_sequence_model(record.config.model, record)
    load_weights(model, folder)
    return SequenceRun(model=model.eval(), record=record)


def evaluate_sequence_run(run_dir: str | Path, file: Path | None = None) -> Evaluation:
    """Tests a finished run again, on the test part of its own data.

    Raises:
        FileNotFoundError: there is no finished run, or its data are gone.
        ValueError: a file of the run is damaged, its data are others now, or a file is given.
    """
    if file is not None:
        raise ValueError(
            f"{run_dir} is tested on its own data: flowformer predict classifies what is in a file"
        )
    run, trained = load_sequence_run(run_dir), RunResult.read(RunFolder(Path(run_dir)))
    config = run.record.config
    data = load_sequences(config.data)
    parts = part_sequences(config, data)
    if data.source != run.record.source or len(parts.test) != run.record.sizes["test"]:
        raise ValueError(
            f"{run_dir} is of other data: {run.record.source} ({run.record.sizes['test']} test "
            f"cases), which now are {data.source} ({len(parts.test)})"
        )
    model = run.model.to(choose_device(config.training.accelerator))
    predicted = classify(model, test_loader(config, parts.test)).argmax(axis=1)
    return Evaluation(
        source=f"the test part of {data.name}",
        metrics=classification_metrics(parts.test_labels, predicted, run.record.classes),
        trained=trained,
        own_test_set=True,
        unit="cases",
    )


def predict_sequences(run_dir: str | Path, file: Path) -> str:
    """Returns predictions for what is in a file, as CSV.

    Args:
        run_dir: folder of a finished run.
        file: text with a case on each line: bytes, or an expression of ListOps; of pairs the two
            documents with a tab between them; or, of a run on pictures, an image of their size.

    Raises:
        FileNotFoundError: there is no finished run, or no such file.
        ValueError: a line is not such as the run was trained on, or longer than it has room for.
    """
    run = load_sequence_run(run_dir)
    record = run.record
    split = read_cases(
        file,
        vocab_size=record.vocab_size,
        paired=record.paired,
        picture=record.picture,
        max_length=record.max_length,
    )
    model = run.model.to(choose_device(record.config.training.accelerator))
    batches = DataLoader(
        LabelledSequences(split), record.config.data.batch_size, collate_fn=collate_sequences
    )
    return format_predictions(np.asarray(classify(model, batches)), record.classes)


@holds_folder
def write_sequence_run_report(run_dir: str | Path) -> Path:
    """Writes the report of a finished run: its figures and curves.

    Returns:
        The HTML page.

    Raises:
        BlockingIOError: another process writes to the folder.
        FileNotFoundError: there is no finished run.
        ValueError: a file of the run is damaged.
    """
    return write_report(Path(run_dir))
