"""From the configuration of a classifier of sequences to its data and its model."""

import logging
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DataLoader, Subset

from flowformer.data.arrays import require_classes, stratified_indices
from flowformer.data.loaders import StepBatches
from flowformer.data.options import SequenceOptions
from flowformer.data.sequences.batches import LabelledSequences, TensorCase, collate_sequences
from flowformer.data.sequences.preparation import find_sequence_set, prepare_sequences
from flowformer.data.sequences.records import SequenceData
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import PairClassifier, SequenceClassifier
from flowformer.train.digests import Digests, digest_values
from flowformer.train.sequences.config import SequenceDataConfig, SequencesConfig, SequencesRecord

logger = logging.getLogger(__name__)

GENERATED = {"min_length", "max_depth", "difficulty", "sizes"}


def load_sequences(config: SequenceDataConfig) -> SequenceData:
    """Prepare the set that a configuration names, or open what is there already.

    Raises:
        ValueError: there is no such set, it does not take an option, or a file is damaged.
        FileNotFoundError: a file is missing.
        ImportError: a library is missing; the message names the extra to install.
    """
    of = find_sequence_set(config.dataset)
    # A picture has nothing to cut, and a set with parts of its own nothing to draw.
    names = {"dataset", "folder"} | ({"max_length", "seed"} & set(of.options))
    if of.generate is not None and config.folder is not None:
        names.remove("seed")  # nor do files that stand in for what is generated
        _say_unused(config)
    else:
        names |= GENERATED
    values = {name: getattr(config, name) for name in names}
    return prepare_sequences(
        SequenceOptions(**values),
        output=config.cache,
        workers=config.workers,
    )


def digest_data(config: SequencesConfig, data: SequenceData | None = None) -> Digests:
    """Return digests of each part of a set of labelled sequences."""
    if data is None:
        data = load_sequences(config.data)
    name = data.name if config.data.folder is None else str(config.data.folder)
    found = {}
    for part, split in data.splits.items():
        read = [split.inputs] if split.others is None else [split.inputs, split.others]
        arrays = [array for each in read for array in (each.offsets, each.values)]
        found[f"{name} ({part})"] = digest_values([data.classes, split.labels, *arrays])
    return found


def _say_unused(config: SequenceDataConfig) -> None:
    # No error, as data prepare has it: they may be those of the recipe, which is for either.
    unused = [name for name in sorted(GENERATED) if getattr(config, name) is not None]
    if unused:
        logger.info(
            "%s is read from %s: %s, of what is generated, %s nothing",
            *(config.dataset, config.folder, ", ".join(f"data.{name}" for name in unused)),
            "changes" if len(unused) == 1 else "change",
        )


class Parts(NamedTuple):
    """What the loop trains and validates on, and what is tested at the end."""

    train: Subset[TensorCase]
    validation: Subset[TensorCase]
    test: Subset[TensorCase]
    test_labels: Int64[np.ndarray, " n"]


def part_sequences(config: SequencesConfig, data: SequenceData) -> Parts:
    """Part the data as the protocol says.

    Under "clean" the validation part is the set's own, or else cut from its training part; under
    "published" it is the test part.

    Raises:
        ValueError: cases of one class only, or too few of a class to part.
    """
    require_classes(data.splits["train"].labels, data.classes, name=data.name, what="cases")
    every = {part: LabelledSequences(split) for part, split in data.splits.items()}
    places = {part: np.arange(len(cases)) for part, cases in every.items()}
    training, seed = config.training, config.data.seed
    test = _drawn(places["test"], training.test_cases, seed)
    if training.protocol == "published":
        validation = Subset(every["test"], test.tolist())
    elif "validation" in every:
        chosen = _drawn(places["validation"], training.validation_cases, seed)
        validation = Subset(every["validation"], chosen.tolist())
    else:
        places["train"], chosen = stratified_indices(
            data.splits["train"].labels,
            config.data.validation_fraction,
            seed,
            name=data.name,
            what="cases",
            classes=data.classes,
        )
        chosen = _drawn(chosen, training.validation_cases, seed)
        validation = Subset(every["train"], chosen.tolist())
    return Parts(
        train=Subset(every["train"], places["train"].tolist()),
        validation=validation,
        test=Subset(every["test"], test.tolist()),
        test_labels=np.asarray(data.splits["test"].labels)[test],
    )


def _drawn(
    places: Int64[np.ndarray, " n"], count: int | None, seed: int
) -> Int64[np.ndarray, " m"]:
    """Return so many of them: drawn, since the files of a user may be sorted."""
    if count is None or count >= len(places):
        return places
    return np.sort(np.random.default_rng(seed).permutation(places)[:count])


def train_loader(config: SequencesConfig, cases: Subset[TensorCase]) -> DataLoader:
    """Return the batches of one measurement's steps."""
    training = config.training
    batches = StepBatches(
        len(cases),
        batch_size=config.data.batch_size,
        steps_per_round=training.evaluate_every,
        seed=training.seed,
    )
    return DataLoader(cases, batch_sampler=batches, collate_fn=collate_sequences)


def test_loader(config: SequencesConfig, cases: Subset[TensorCase]) -> DataLoader:
    """Return batches of all cases, in their order."""
    return DataLoader(cases, config.data.batch_size, collate_fn=collate_sequences)


def room_for(config: SequenceDataConfig, data: SequenceData) -> int:
    """Return the longest sequence that the model has room for.

    Raises:
        ValueError: the data have a longer one.
    """
    longest = max(
        int(sequences.lengths.max())
        for split in data.splits.values()
        for sequences in (split.inputs, split.others)
        if sequences is not None and len(sequences)
    )
    room = config.max_length or find_sequence_set(config.dataset).max_length or longest
    if room < longest:
        raise ValueError(
            f"data.max_length must be at least {longest}, the longest sequence of {data.name}, "
            f"got {room}"
        )
    return room


def build_sequence_model(
    config: SequenceModelConfig, record: SequencesRecord
) -> SequenceClassifier | PairClassifier:
    """Build the classifier of single sequences or of pairs, whichever the data are."""
    kind = PairClassifier if record.paired else SequenceClassifier
    return kind(
        config,
        vocab_size=record.vocab_size,
        num_classes=len(record.classes),
        max_length=record.max_length,
    )
