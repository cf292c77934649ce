"""The figures of a run go where its configuration says, beside its folder."""

import csv
import importlib.util
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from flowformer.train.run import train

FIGURES = {"train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds"}


def logged(file: Path) -> dict[str, list[float]]:
    """The columns of a table of Lightning's, without the places where nothing was logged."""
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def recorded(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open() as opened:
        return [float(row[name]) for row in csv.DictReader(opened)]


def test_a_table_has_the_figures_of_each_epoch_and_the_settings(tmp_path, tiny_config, waves):
    train(tiny_config(epochs=3, logger=("csv",)), tmp_path / "run", data=waves)
    table = logged(tmp_path / "run" / "csv" / "version_0" / "metrics.csv")
    for name in FIGURES:
        assert table[name] == pytest.approx(recorded(tmp_path / "run", name), rel=1e-6), name
    settings = (tmp_path / "run" / "csv" / "version_0" / "hparams.yaml").read_text()
    assert "model.mixer: flow" in settings
    assert (tmp_path / "run" / "tensorboard").is_dir()


def test_a_run_that_goes_on_may_log_elsewhere(tmp_path, tiny_config, waves):
    train(tiny_config(), tmp_path / "run", data=waves)
    train(tiny_config(logger=("csv",)), tmp_path / "run", data=waves, resume=True)


class Kept(Logger):
    """A logger of somebody's own."""

    @property
    def name(self) -> str:
        return "kept"

    @property
    def version(self) -> str:
        return "0"

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.figures: dict[str, float] = {}

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.settings = dict(params)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        del step
        self.figures |= metrics


def test_in_python_any_logger_takes_the_figures(tmp_path, tiny_config, waves):
    kept = Kept()
    result = train(tiny_config(), tmp_path / "run", data=waves, loggers=[kept])
    assert kept.figures.keys() >= FIGURES
    assert kept.settings["training.epochs"] == 2
    best = recorded(tmp_path / "run", "validation_accuracy")
    assert kept.figures["validation_accuracy"] == pytest.approx(best[-1])
    assert result.validation_accuracy == max(best)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_logger_whose_library_is_missing_is_refused_before_anything_is_written(
    tmp_path, tiny_config, waves, monkeypatch, name
):
    monkeypatch.setattr("flowformer.train.config.find_spec", lambda _: None)
    message = rf"{name} is needed .*: pip install 'flowformer\[{name}\]'"
    with pytest.raises(ImportError, match=message):
        train(tiny_config(logger=(name,)), tmp_path / "run", data=waves)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.fixture(params=["mlflow", "wandb"])
def service(request, tmp_path, monkeypatch) -> str:
    """A service that needs no network."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")  # an extra, too large for dev
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return request.param


@pytest.mark.filterwarnings("ignore")  # of these libraries
def test_a_service_is_told_and_goes_on_in_the_same_run(service, tmp_path, tiny_config, waves):
    run = tmp_path / "run"
    train(tiny_config(logger=(service,)), run, data=waves)
    name = json.loads((run / "services.json").read_text())
    assert name.keys() == {service}
    if service == "wandb":
        assert len(list((run / "wandb").glob("offline-run-*"))) == 1
        return
    tracking = import_module("mlflow.tracking")
    told = tracking.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(name["mlflow"])
    assert told.data.metrics.keys() >= FIGURES
    assert told.data.params["model.mixer"] == "flow"
    assert told.info.run_name == "run"
