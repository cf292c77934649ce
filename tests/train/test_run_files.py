"""The files of a run folder are read strictly, and what is wrong with one is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from flowformer.train.classification import report_classifier
from flowformer.train.folder import RunFolder
from flowformer.train.run_files import ClassifierResult, read_history, read_predictions
from flowformer.train.series.config import SeriesConfig, SeriesDataConfig, SeriesRecord

COLUMNS = "epoch,step,train_loss,train_accuracy,validation_loss,validation_accuracy\n"
FILES = ["config.json", "result.json", "metrics.csv", "predictions.csv"]


@pytest.fixture
def finished(tmp_path: Path) -> RunFolder:
    """What a run of two epochs on series of two classes has left, but its weights."""
    folder = RunFolder(tmp_path / "run")
    SeriesRecord(
        recipe="tiny",
        config=SeriesConfig(name="tiny", data=SeriesDataConfig()),
        versions={"python": "3"},
        classes=("up", "down"),
        channels=2,
        max_length=9,
        sizes={"train": 3},
    ).write(folder)
    ClassifierResult(
        recipe="tiny",
        protocol_note="a note",
        seed=0,
        parameters=3,
        seconds=1.0,
        device="cpu",
        threads=1,
        protocol="clean",
        test_accuracy=0.75,
        validation_accuracy=0.9,
        validation_loss=0.1,
        best_epoch=2,
        epochs=2,
        paper_accuracy=None,
        paper_source=None,
    ).write(folder)
    folder.metrics.write_text(f"{COLUMNS}1,3,0.5,0.7,0.5,0.8\n2,6,0.2,0.8,,0.9\n")
    rows = "0,up,up\n1,up,up\n2,down,up\n3,down,down\n"
    folder.predictions.write_text(f"index,label,predicted\n{rows}")
    return folder


def test_a_gap_in_a_curve_is_no_number(finished):
    history = read_history(finished)
    assert list(history) == COLUMNS.strip().split(",")
    np.testing.assert_array_equal(history["validation_loss"], [0.5, np.nan])


def test_a_line_break_in_a_class_name_splits_no_row(finished):
    classes = ("walk\nslowly", "walk\u2028fast")
    finished.predictions.write_text(f'label,predicted\n"{classes[0]}",{classes[1]}\n')
    labels, predicted = read_predictions(finished, classes)
    assert (labels.tolist(), predicted.tolist()) == ([0], [1])


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(finished, name):
    (finished.root / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"run.*{name}"):
        report_classifier(finished.root)
    assert not finished.report.exists()


def test_a_missing_run_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere holds no run"):
        report_classifier(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("result.json", "{", r"result\.json is not JSON", id="not-json"),
        pytest.param("config.json", "[]", r"config\.json must be a mapping", id="no-mapping"),
        pytest.param("metrics.csv", "epoch\n1\n", "line 1: expected the columns", id="columns"),
        pytest.param("metrics.csv", "", "line 1: expected the columns", id="empty"),
        pytest.param(
            "metrics.csv",
            f"{COLUMNS}1,1,0.1,0.9,0.1,0.9\n2,2,0.1,0.9,0.1,many\n",
            "line 3: validation_accuracy must be a number, got 'many'",
            id="not-a-number",
        ),
        pytest.param(
            "metrics.csv", f"{COLUMNS}2,0.1\n", "line 2: expected 6 values", id="short-row"
        ),
        pytest.param(
            "metrics.csv",
            f"{COLUMNS}1,1,0.1,0.9,0.1,0.9\n",
            "best_epoch 2 has no row in metrics.csv",
            id="best-epoch",
        ),
        pytest.param(
            "predictions.csv", "index,label,predicted\n", "at least one row", id="no-predictions"
        ),
        pytest.param(
            "predictions.csv",
            "index,label,predicted\n0,up,up\n1,up,ten\n",
            "line 3: predicted must be one of the classes up, down, got 'ten'",
            id="unknown-class",
        ),
        pytest.param(
            "predictions.csv",
            "index,label,predicted\n0,up,up\n1,up,down\n",
            "test_accuracy 0.7500, but 0.5000 of the rows",
            id="of-another-run",
        ),
    ],
)
def test_a_malformed_file_is_named_with_its_line(finished, name, content, message):
    (finished.root / name).write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        report_classifier(finished.root)
    assert str(finished.root) in str(raised.value)
    assert not finished.report.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"protocol": "mine"}, "protocol must be one of 'clean', 'publ", id="name"),
        pytest.param({"seed": "0"}, "seed must be of type int, got '0'", id="type"),
        pytest.param({"paper_accuracy": True}, "paper_accuracy must be of type float", id="bool"),
        pytest.param({"protocol_note": None}, "protocol_note must be of type str", id="none"),
    ],
)
def test_a_wrong_entry_of_the_result_is_named(finished, changes, message):
    result = json.loads(finished.result.read_text())
    finished.result.write_text(json.dumps(result | changes))
    with pytest.raises(ValueError, match=message):
        report_classifier(finished.root)


def test_a_missing_entry_of_the_result_is_named(finished):
    result = json.loads(finished.result.read_text())
    del result["protocol_note"]
    finished.result.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"missing key .*protocol_note"):
        report_classifier(finished.root)
