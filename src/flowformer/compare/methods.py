"""Classical methods of a comparison behind the call of a training (see `flowformer.train.kinds`).

Each leaves a run folder with predictions.csv and, written last, result.json. No torch here: the
functions import what they need when they run.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from flowformer.train.folder import RunFolder, holds_folder, keep_digests
from flowformer.train.records import Outcome
from flowformer.train.series.config import SeriesConfig


@dataclass(frozen=True, kw_only=True)
class MethodResult(Outcome):
    """What result.json holds of a method that is not trained by epochs.

    Attributes:
        test_accuracy: in [0, 1].
        seconds: of fitting and predicting.
        parameters: that it fits, where that can be counted.
    """

    test_accuracy: float
    seconds: float
    parameters: int | None = None

    @property
    def score(self) -> float:
        """The test accuracy."""
        return self.test_accuracy

    @property
    def in_words(self) -> str:
        """The test accuracy in percent."""
        return f"the test accuracy is {100 * self.test_accuracy:.2f}"

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
        config: the experiment, of which it reads the data, the seed and the threads.
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
    from flowformer.train.prediction import format_predictions
    from flowformer.train.series.data import digest_data, load_data

    folder = RunFolder(run_dir)
    data = load_data(config.data)
    keep_digests(folder, digest_data(config, data))
    outcome = classical.run_classical(
        method,
        data,
        seed=config.training.seed,
        threads=config.training.threads or 1,
        missing=config.data.missing,
        **options,
    )
    predictions = format_predictions(outcome.probabilities, data.classes, outcome.labels)
    result = MethodResult(test_accuracy=outcome.accuracy, seconds=outcome.seconds)
    result.keep_tested(folder, predictions)
    return result


dtw = partial(run_classical, method="dtw")
rocket = partial(run_classical, method="rocket")
xgboost = partial(run_classical, method="xgboost")
