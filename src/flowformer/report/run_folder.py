"""Reading what a finished run left in its folder, strictly: a report must not guess."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

HISTORY_COLUMNS = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
)
# What the report needs of result.json; None is allowed where the type says so.
RESULT_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "recipe": str,
    "protocol": str,
    "protocol_note": str,
    "seed": int,
    "test_accuracy": (int, float, type(None)),  # None without a test set
    "validation_accuracy": (int, float),
    "best_epoch": int,
    "epochs": int,
    "paper_accuracy": (int, float, type(None)),
    "paper_source": (str, type(None)),
    "parameters": int,
    "seconds": (int, float),
}
CONFIG_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "recipe": str,
    "config": dict,
    "versions": dict,
    "classes": list,
}
PROTOCOLS = ("clean", "published")


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The checked contents of a run folder; accuracies are fractions.

    `test` holds the labels and the predictions of the test set, as indices into `classes`; None
    when there was no test set.
    """

    config: Mapping[str, Any]
    result: Mapping[str, Any]
    classes: tuple[str, ...]
    history: Mapping[str, Float[np.ndarray, " epochs"]]
    test: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]] | None

    @property
    def over(self) -> str:
        """What its training counts, and its curves are drawn over: epoch or step."""
        return count_of(self.config)

    @property
    def kept(self) -> int:
        """The epoch or step whose parameters were kept."""
        return int(self.result[f"best_{self.over}"])

    @property
    def cases(self) -> str:
        """What was classified, in the plural."""
        return str(self.config.get("task", "series"))


def count_of(config: Mapping[str, Any]) -> str:
    """Return what the training of a config.json counts: epoch or step."""
    return "step" if "steps" in config["config"].get("training", {}) else "epoch"


def read_run(run_dir: Path) -> FinishedRun:
    """Read config.json, result.json, metrics.csv and, if there was a test set, predictions.csv.

    Raises:
        FileNotFoundError: the folder or one of the files is missing.
        ValueError: a file does not hold what it should; the message names file and line or key.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"no run folder {run_dir}: expected what a training run leaves")
    config = _read_object(run_dir / "config.json", CONFIG_TYPES)
    result = _read_object(run_dir / "result.json", RESULT_TYPES)
    if result["protocol"] not in PROTOCOLS:
        raise ValueError(
            f"{run_dir / 'result.json'}: protocol must be one of {', '.join(PROTOCOLS)}, "
            f"got {result['protocol']!r}"
        )
    classes = tuple(str(name) for name in config["classes"])
    over = count_of(config)
    history = _read_history(run_dir / "metrics.csv", over)
    if result.get(f"best_{over}") not in history[over]:
        raise ValueError(
            f"{run_dir / 'result.json'}: best_{over} {result.get(f'best_{over}')} "
            "has no row in metrics.csv"
        )
    test = None
    if result["test_accuracy"] is not None:
        test = _read_predictions(run_dir / "predictions.csv", classes)
        _check_agreement(run_dir, result["test_accuracy"], *test)
    return FinishedRun(
        config=config,
        result=result,
        classes=classes,
        history=history,
        test=test,
    )


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a finished run has it, train or resume first")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got {error}") from error


def _read_object(path: Path, types: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    try:
        values = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: expected JSON, got {error.msg}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    for key, kind in types.items():
        if key not in values:
            raise ValueError(f"{path}: missing key {key!r}")
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise ValueError(f"{path}: {key} must be {names}, got {values[key]!r}")
    return values


def _read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of a CSV file that must have at least these columns and one row."""
    # Not splitlines: the name of a class may hold a line break, which CSV quotes.
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{path}, line 1: expected the columns {', '.join(missing)}")
    empty = True
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(
                f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} values"
            )
        empty = False
        yield reader.line_num, row
    if empty:
        raise ValueError(f"{path}: expected at least one row under the header, got none")


def _read_history(path: Path, over: str) -> dict[str, Float[np.ndarray, " epochs"]]:
    names = (over, *HISTORY_COLUMNS)
    columns: dict[str, list[float]] = {column: [] for column in names}
    for line, row in _read_rows(path, names):
        for column, values in columns.items():
            try:
                # An empty cell is an epoch without that measurement: a gap in the curve.
                values.append(float(row[column]) if row[column] else math.nan)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {line}: {column} must be a number, got {row[column]!r}"
                ) from error
    return {column: np.array(values) for column, values in columns.items()}


def _read_predictions(
    path: Path, classes: tuple[str, ...]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    numbers = {name: number for number, name in enumerate(classes)}
    pairs: list[tuple[int, int]] = []
    for line, row in _read_rows(path, ("label", "predicted")):
        for column in ("label", "predicted"):
            if row[column] not in numbers:
                raise ValueError(
                    f"{path}, line {line}: {column} must be one of the classes "
                    f"{', '.join(classes)}, got {row[column]!r}"
                )
        pairs.append((numbers[row["label"]], numbers[row["predicted"]]))
    labels, predicted = np.array(pairs).T
    return labels, predicted


def _check_agreement(
    run_dir: Path, accuracy: float, labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"]
) -> None:
    counted = float(np.mean(labels == predicted))
    # Half a test case: more than any rounding, less than any real difference.
    if not abs(counted - accuracy) < 0.5 / len(labels):
        raise ValueError(
            f"{run_dir}: result.json has test_accuracy {accuracy:.4f}, but {counted:.4f} of the "
            "rows of predictions.csv are correct: the files are not of one run"
        )
