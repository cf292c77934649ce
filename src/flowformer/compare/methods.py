"""The methods that a comparison can run beside the mixers: their table, and those without a model.

Those of series are classical. Those of sequences see no order: what they reach, a model reaches
without reading, and what mechanisms are compared by is above it. `METHODS` names all. Each leaves
a run folder with predictions.csv and, written last, result.json. No torch here: the functions
import what they need when they run.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32

from flowformer.scores.measures import RMSE
from flowformer.train.folder import RunFolder, holds_folder, keep_digests
from flowformer.train.kinds import Experiment, kind_of
from flowformer.train.run_files import Outcome
from flowformer.train.sequences.config import SequencesConfig
from flowformer.train.series.config import SeriesConfig

if TYPE_CHECKING:
    from flowformer.data.sequences.records import Sequences, SequenceSplit


@dataclass(frozen=True, kw_only=True)
class MethodResult(Outcome):
    """What result.json holds of a method that is not trained by epochs.

    Attributes:
        test_accuracy: in [0, 1]; None where numbers are predicted.
        seconds: of fitting and predicting.
        parameters: that it fits, where that can be counted.
        test_rmse: root of the mean squared error, where numbers are predicted.
    """

    test_accuracy: float | None = None
    seconds: float
    parameters: int | None = None
    test_rmse: float | None = None

    def __post_init__(self) -> None:
        if (self.test_accuracy is None) == (self.test_rmse is None):
            raise ValueError("expected either test_accuracy or test_rmse")

    @property
    def score(self) -> float:
        """The test accuracy, or error."""
        score = self.test_rmse if self.test_accuracy is None else self.test_accuracy
        assert score is not None
        return score

    @property
    def in_words(self) -> str:
        """The test accuracy in percent, or the error."""
        if self.test_accuracy is None:
            return f"the test RMSE is {RMSE.show(self.score)}"
        return f"the test accuracy is {100 * self.score:.2f}"

    def keep_tested(self, folder: RunFolder, predictions: str) -> None:
        """Write it, after the predictions that it is of."""
        self.keep(folder, {folder.predictions.name: predictions})


@holds_folder
def run_classical(
    config: SeriesConfig,
    run_dir: Path,
    *,
    method: Literal["dtw", "rocket", "xgboost"],
    resume: bool,
    **options: Any,
) -> MethodResult:
    """Fit a classical method on the whole training set, there being no epoch to choose.

    Args:
        config: the experiment, of which it reads the data, the seed and the threads; of one that
            predicts numbers, the library's regressor is fitted.
        run_dir: folder of the run.
        method: its name.
        resume: ignored; the fit always starts over.
        options: further keywords of the library's classifier.

    Raises:
        BlockingIOError: another process writes to `run_dir`.
        ImportError: the library is missing; the message names the extra to install.
        ValueError: there is no test set, or values are missing.
    """
    del resume
    from flowformer.compare import classical
    from flowformer.scores.metrics import regression_metrics
    from flowformer.train.prediction import format_numbers, format_predictions
    from flowformer.train.series.data import digest_data, load_data

    folder = RunFolder(run_dir)
    data = load_data(config.data, regression=config.regression)
    keep_digests(folder, digest_data(config, data))
    outcome = classical.run_classical(
        method,
        data,
        seed=config.training.seed,
        threads=config.training.threads or 1,
        missing=config.data.missing,
        **options,
    )
    if config.regression:
        error = regression_metrics(outcome.labels, outcome.predictions).rmse
        predictions = format_numbers(outcome.predictions, outcome.labels.tolist())
        result = MethodResult(test_rmse=error, seconds=outcome.seconds)
    else:
        predictions = format_predictions(outcome.probabilities, data.classes, outcome.labels)
        result = MethodResult(test_accuracy=outcome.accuracy, seconds=outcome.seconds)
    result.keep_tested(folder, predictions)
    return result


dtw = partial(run_classical, method="dtw")
rocket = partial(run_classical, method="rocket")
xgboost = partial(run_classical, method="xgboost")


@holds_folder
def bag_of_tokens(
    config: SequencesConfig, run_dir: Path, *, resume: bool, **options: Any
) -> MethodResult:
    """Gradient-boosted trees on how often each token occurs; of pairs, in either document.

    Args:
        config: the experiment, of which it reads the data and the seed.
        run_dir: folder of the run.
        resume: ignored; the fit always starts over.
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
        resume: ignored; the fit always starts over.
        options: further keywords of scikit-learn's DummyClassifier.

    Raises:
        ImportError: scikit-learn is missing.
    """
    del resume
    from sklearn.dummy import DummyClassifier

    settings = {"strategy": "most_frequent", "random_state": config.training.seed, **options}
    return _fit(DummyClassifier(**settings), config, run_dir)


def _fit(model: Any, config: SequencesConfig, run_dir: Path) -> MethodResult:
    from flowformer.train.prediction import format_predictions
    from flowformer.train.sequences.data import digest_data, load_sequences, part_sequences

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
    split: "SequenceSplit", places: Any, vocab_size: int
) -> Float32[np.ndarray, "n counts"]:
    """Return how often each token occurs in the cases at these places.

    Args:
        split: the part; of pairs the counts of the second stand beside those of the first.
        places: the places of the cases.
        vocab_size: the number of tokens.
    """

    def count(sequences: "Sequences") -> Float32[np.ndarray, "n counts"]:
        rows = [np.bincount(sequences[int(i)], minlength=vocab_size) for i in places]
        return np.stack(rows).astype(np.float32)

    sides = [split.inputs] if split.others is None else [split.inputs, split.others]
    return np.concatenate([count(side) for side in sides], axis=1)


TRAIN = "flowformer.train.run:train"
REHEARSE = "flowformer.train.rehearsal:rehearse"  # which takes the first steps alone


# What a comparison can run beside the mixers, for each kind of experiment: the function that runs
# it, function(config, run_dir, *, resume, **options). One that is trained as a model bears the name
# of its encoder.
_ON_SERIES: Mapping[str, str] = {
    "dtw": "flowformer.compare.methods:dtw",
    "rocket": "flowformer.compare.methods:rocket",
    "xgboost": "flowformer.compare.methods:xgboost",
    "lstm": TRAIN,
    "dilated-conv": TRAIN,
}
METHODS: Mapping[str, Mapping[str, str]] = {
    "series": _ON_SERIES,
    "regression": _ON_SERIES,
    "sequences": {
        "bag-of-tokens": "flowformer.compare.methods:bag_of_tokens",
        "chance": "flowformer.compare.methods:chance",
    },
    "trajectories": {"behaviour-cloning": TRAIN},
}


def methods_of(config: Experiment) -> Mapping[str, str]:
    """Return the methods that a comparison can run beside the mixers, by name."""
    return METHODS.get(kind_of(config).name, {})


def function_of(method: str, config: Experiment) -> str:
    """Return what runs a method, or what trains a model if it is the name of none but a mixer.

    Raises:
        ValueError: it is a method for another kind of experiment.
    """
    if method in methods_of(config):
        return methods_of(config)[method]
    for name, methods in METHODS.items():
        if method in methods:
            raise ValueError(
                f"{method} runs on {name}, and {config.name} is on {kind_of(config).name}"
            )
    return TRAIN


def require_tested(methods: Iterable[str], config: Experiment, remedy: str) -> None:
    """Refuse methods that choose no epoch, and so say nothing, where there is no part to test on.

    Args:
        methods: names of methods and mixers.
        config: an experiment without a test part.
        remedy: what to do.

    Raises:
        ValueError: one is such a method.
    """
    for name in methods:
        if function_of(name, config) != TRAIN:
            raise ValueError(f"{name} needs series to test on: give {remedy}")
