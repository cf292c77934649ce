"""Classification of long sequences: the parts of a run, and the use of a finished one."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from torch.utils.data import DataLoader

from flowformer.data.sequences.batches import LabelledSequences, collate_sequences, read_cases
from flowformer.models.sequences.model import PairClassifier, SequenceClassifier
from flowformer.train.classification import Classifier, Tested, sizes_of
from flowformer.train.folder import RunFolder, read_versions
from flowformer.train.prediction import classify, format_predictions, load_weights
from flowformer.train.sequences.config import SequencesConfig, SequencesRecord
from flowformer.train.sequences.data import (
    build_sequence_model,
    load_sequences,
    part_sequences,
    room_for,
    test_loader,
    train_loader,
)
from flowformer.train.study import Trained

if TYPE_CHECKING:  # it needs Lightning, and a finished run does not
    from flowformer.train.loop.task import RecordedTask


class Sequences(Classifier):
    """Classification of long sequences, or of pairs of them."""

    reads = "FILE"
    unit = "cases"

    def __init__(self, config: SequencesConfig, *, begun: RunFolder | None = None) -> None:
        del begun
        if not config.is_benchmark:
            config = replace(config, paper_dataset=None)  # and with it the figure, of other data
        self.config, self.data = config, load_sequences(config.data)
        self.parts = part_sequences(config, self.data)
        self.classes = self.data.classes
        self.record = SequencesRecord(
            recipe=config.name,
            config=config,
            versions=read_versions(),
            source=self.data.source,
            classes=self.data.classes,
            vocab_size=self.data.vocab_size,
            paired=self.data.paired,
            max_length=room_for(config.data, self.data),
            sizes=sizes_of(self.parts.train, self.parts.validation, self.parts.test),
            picture=self.data.picture,
        )

    def describe(self) -> str:
        """Return what the data are, and how many cases there are."""
        return f"{self.data.name}: {self.data.source}\n{super().describe()}"

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """Return the batches between two measurements, and those that are measured on."""
        return (
            train_loader(self.config, self.parts.train),
            test_loader(self.config, self.parts.validation),
        )

    def build(self) -> SequenceClassifier | PairClassifier:
        """Build the classifier, with new parameters."""
        return build_sequence_model(self.config.model, self.record)

    def task(self, model: nn.Module) -> "RecordedTask":
        """Return the classification, at a rate that follows the schedule."""
        from flowformer.train.loop.classification import ClassificationTask
        from flowformer.train.loop.optimizers import build_scheduled

        training = self.config.training
        return ClassificationTask(
            model,
            # Of all parameters alike, weight decay too, as flax's Adam has it.
            lambda model: build_scheduled(
                model.parameters(), self.config.optimizer, steps=training.steps
            ),
            seed=training.seed,
            steps=training.steps,
        )

    def predict_test(self, model: nn.Module) -> Tested:
        """Return the predictions for the test part."""
        probabilities = classify(model, test_loader(self.config, self.parts.test))
        return Tested(probabilities=probabilities, labels=self.parts.test_labels)

    @classmethod
    def load(cls, run_dir: str | Path) -> Trained:
        """Read back what training left in a folder; no code in it runs."""
        folder = RunFolder(Path(run_dir))
        record = SequencesRecord.read(folder)
        model = build_sequence_model(record.config.model, record)
        return Trained(model=load_weights(model, folder).eval(), record=record)

    @classmethod
    def retest(cls, run: Trained, run_dir: str | Path, file: Path | None) -> tuple[str, Tested]:
        """Test a finished run again, on the test part of its own data."""
        if file is not None:
            raise ValueError(
                f"{run_dir} is tested on its own data: flowformer predict classifies what is in a "
                "file"
            )
        record, config = run.record, run.record.config
        data = load_sequences(config.data)
        parts = part_sequences(config, data)
        if data.source != record.source or len(parts.test) != record.sizes["test"]:
            raise ValueError(
                f"{run_dir} is of other data: {record.source} ({record.sizes['test']} test "
                f"cases), which now are {data.source} ({len(parts.test)})"
            )
        probabilities = classify(run.to_device(), test_loader(config, parts.test))
        tested = Tested(probabilities=probabilities, labels=parts.test_labels)
        return f"the test part of {data.name}", tested

    @classmethod
    def predict(cls, run_dir: str | Path, *files: Path) -> str:
        """Classify what is in a file.

        Args:
            run_dir: folder of a finished run.
            files: one text with a case on each line: bytes, or an expression of ListOps; of pairs
                the two documents with a tab between them; or, of a run on pictures, an image of
                their size.
        """
        (file,) = files
        run = cls.load(run_dir)
        record = run.record
        split = read_cases(
            file,
            vocab_size=record.vocab_size,
            paired=record.paired,
            picture=record.picture,
            max_length=record.max_length,
        )
        batches = DataLoader(
            LabelledSequences(split), record.config.data.batch_size, collate_fn=collate_sequences
        )
        return format_predictions(classify(run.to_device(), batches), record.classes)
