"""Baselines of sequences that see no order, behind the call of a training (`tasks.kinds`).

What they reach, a model reaches without reading: what mechanisms are compared by is above it.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from flowformer.compare.methods import MethodResult
from flowformer.data.sequences.records import Sequences, SequenceSplit
from flowformer.train.folder import RunFolder, holds_folder, keep_digests
from flowformer.train.prediction import format_predictions
from flowformer.train.sequences.config import SequencesConfig
from flowformer.train.sequences.data import digest_data, load_sequences, part_sequences


@holds_folder
def bag_of_tokens(
    config: SequencesConfig, run_dir: Path, *, resume: bool, **options: Any
) -> MethodResult:
    """Gradient-boosted trees on how often each token occurs; of pairs, in either document.

    Args:
        config: the experiment, of which it reads the data and the seed.
        run_dir: folder of the run.
        resume: of no matter: it starts anew.
        options: further keywords of scikit-learn's HistGradientBoostingClassifier.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: the sequences are features and no tokens.
    """
    del resume
    from sklearn.ensemble import HistGradientBoostingClassifier

    settings = {"random_state": config.training.seed, **options}
    return _fit(HistGradientBoostingClassifier(**settings), config, run_dir)


@holds_folder
def chance(config: SequencesConfig, run_dir: Path, *, resume: bool, **options: Any) -> MethodResult:
    """The class that is most frequent in training, whatever the sequence.

    Args:
        config: the experiment, of which it reads the data.
        run_dir: folder of the run.
        resume: of no matter.
        options: further keywords of scikit-learn's DummyClassifier.

    Raises:
        ImportError: scikit-learn is missing.
    """
    del resume
    from sklearn.dummy import DummyClassifier

    settings = {"strategy": "most_frequent", "random_state": config.training.seed, **options}
    return _fit(DummyClassifier(**settings), config, run_dir)


def _fit(model: Any, config: SequencesConfig, run_dir: Path) -> MethodResult:
    data, folder = load_sequences(config.data), RunFolder(run_dir)
    keep_digests(folder, digest_data(config, data))
    if data.vocab_size is None:
        raise ValueError(f"{data.name} has features, and a bag of tokens needs tokens")
    parts = part_sequences(config, data)
    train, test = (data.splits[name] for name in ("train", "test"))
    started = time.perf_counter()
    model.fit(
        count_tokens(train, parts.train.indices, data.vocab_size),
        np.asarray(train.labels)[list(parts.train.indices)],
    )
    counts = count_tokens(test, parts.test.indices, data.vocab_size)
    # Of classes that did not occur in training, the probability is 0.
    probabilities = np.zeros((len(counts), len(data.classes)))
    probabilities[:, model.classes_] = model.predict_proba(counts)
    result = MethodResult(
        test_accuracy=float(np.mean(probabilities.argmax(axis=1) == parts.test_labels)),
        seconds=time.perf_counter() - started,
    )
    result.keep_tested(folder, format_predictions(probabilities, data.classes, parts.test_labels))
    return result


def count_tokens(
    split: SequenceSplit, places: Any, vocab_size: int
) -> Float32[np.ndarray, "n counts"]:
    """Returns how often each token occurs in the cases at these places.

    Args:
        split: the part; of pairs the counts of the second stand beside those of the first.
        places: of the cases.
        vocab_size: of the tokens.
    """

    def count(sequences: Sequences) -> Float32[np.ndarray, "n counts"]:
        rows = [np.bincount(sequences[int(i)], minlength=vocab_size) for i in places]
        return np.stack(rows).astype(np.float32)

    sides = [split.inputs] if split.others is None else [split.inputs, split.others]
    return np.concatenate([count(side) for side in sides], axis=1)
