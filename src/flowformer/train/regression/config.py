"""The configuration, record and result of a run that predicts a number; no torch here."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from flowformer.scores.measures import RMSE, Measure
from flowformer.train.config import STRATIFIED, Protocol
from flowformer.train.run_files import Lines, Result
from flowformer.train.series.config import SeriesConfig, SeriesRecord

_DRAWN = "a part of the training set, drawn at random, chose the epoch"


@dataclass(frozen=True, kw_only=True)
class RegressionConfig(SeriesConfig):
    """A whole experiment of time-series regression.

    Attributes:
        task: what tells it from a classification.
    """

    regression: ClassVar[bool] = True

    task: Literal["regression"] = "regression"

    @property
    def measure(self) -> Measure:
        """The figure that runs are ranked by."""
        return RMSE

    @property
    def protocol_note(self) -> str:
        """The protocol in words, to stand beside every figure."""
        note = super().protocol_note.replace(STRATIFIED, _DRAWN)
        return note.replace("best test accuracy", "least test error")

    @property
    def note_without_test(self) -> str:
        """The same where there turned out to be no test set."""
        return super().note_without_test.replace(STRATIFIED, _DRAWN)


@dataclass(frozen=True, kw_only=True)
class RegressionRecord(SeriesRecord):
    """What config.json holds of a run that predicts a number: there are no classes."""

    config: RegressionConfig
    classes: tuple[str, ...] = ()
    task: Literal["regression"] = "regression"


@dataclass(frozen=True, kw_only=True)
class RegressionResult(Result):
    """What result.json holds of a run that predicts a number.

    Attributes:
        protocol: what chose the epoch.
        test_rmse: root of the mean squared error of the best epoch, in the unit of the labels; None
            without a test set, as the next two.
        test_mae: mean absolute error.
        test_r2: coefficient of determination.
        validation_rmse: of the best epoch; under the published protocol that of the test set.
        best_epoch: counted from 1.
        best_step: steps of the optimizer until then.
        epochs: passes over the training set.
    """

    width: ClassVar[int] = 15

    protocol: Protocol
    test_rmse: float | None
    test_mae: float | None
    test_r2: float | None
    validation_rmse: float
    best_epoch: int
    best_step: int
    epochs: int

    @property
    def score(self) -> float:
        """The error on the test set; without one, on the validation part."""
        return self.validation_rmse if self.test_rmse is None else self.test_rmse

    @property
    def in_words(self) -> str:
        """The error."""
        part = "validation" if self.test_rmse is None else "test"
        return f"the {part} RMSE is {RMSE.show(self.score)}"

    def lines(self, record: RegressionRecord, run: str) -> Lines:
        """Return what to say at the end of a run: no figure without its protocol."""
        del record
        lines = [("validation RMSE", f"{RMSE.show(self.validation_rmse)} (no test set)")]
        if self.test_rmse is not None and self.test_mae is not None:
            r2 = "" if self.test_r2 is None else f", R² {self.test_r2:.3f}"
            lines = [
                ("test RMSE", f"{RMSE.show(self.test_rmse)} (MAE {RMSE.show(self.test_mae)}{r2})")
            ]
        return [
            *lines,
            ("protocol", f"{self.protocol}: {self.protocol_note}"),
            ("epoch", f"{self.best_epoch} of {self.epochs}, {self.seconds:.0f} s in all"),
            ("run", run),
        ]
