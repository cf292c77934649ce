"""The figures of a run go where its configuration says, beside its folder."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
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


def test_the_last_row_of_a_table_has_the_score(tmp_path, tiny_config, waves):
    result = train(tiny_config(logger=("csv",)), tmp_path / "run", data=waves)
    table = logged(tmp_path / "run" / "csv" / "version_0" / "metrics.csv")
    assert table["test_accuracy"] == [result.test_accuracy]
    assert table["score"] == [result.score]


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
    """A service that needs no network: an extra, too large for dev."""
    pytest.importorskip(request.param, reason=f"needs the extra {request.param}, not in dev")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # with none of the user's settings
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    if request.param == "mlflow":
        mlflow = import_module("mlflow")
        mlflow.set_tracking_uri(None)  # which Lightning sets for the whole process
    return request.param


class Ends(Kept):
    """A logger that ends the run at its first figures."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        del metrics, step
        raise self.error


@dataclass
class Told:
    """What a service has been told of a run."""

    settings: dict[str, str]
    figures: dict[str, list[float]]
    status: str


def told(service: str, run: Path) -> Told:
    """Read back by the service's own library what it was told."""
    name = json.loads((run / "services.json").read_text())[service]
    return told_mlflow(name) if service == "mlflow" else told_wandb(run, name)


def told_mlflow(name: str) -> Told:
    client = import_module("mlflow.tracking").MlflowClient()
    found = client.get_run(name)
    assert found.info.run_name == "run"
    figures = {
        key: [each.value for each in client.get_metric_history(name, key)]
        for key in found.data.metrics
    }
    return Told(found.data.params, figures, found.info.status)


def told_wandb(run: Path, name: str) -> Told:
    """Offline each process leaves a file; the service joins those of one name."""
    # Those that begin in one second are told apart by a number behind the name.
    files = (run / "wandb").glob(f"offline-run-*-{name}*/run-{name}.wandb")
    files = sorted(files, key=lambda file: file.stat().st_mtime)
    records = import_module("wandb.proto.wandb_internal_pb2")
    found = Told({}, {}, "RUNNING")
    for file in files:
        for data in log_records(file.read_bytes()):
            record = records.Record.FromString(data)
            if record.WhichOneof("record_type") == "exit":
                found.status = "FAILED" if record.exit.exit_code else "FINISHED"
            for item in (*record.run.config.update, *record.config.update):
                key = item.key or "/".join(item.nested_key)
                found.settings[key] = str(json.loads(item.value_json))
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                value = json.loads(item.value_json)
                found.figures.setdefault(key, []).append(value)
    return found


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a log as LevelDB has it, which wandb 0.31 reads in Go alone.

    Blocks of 32 KiB, after 7 bytes of wandb's in the first; in them parts of records: a checksum of
    4 bytes, a length of 2, a kind of 1 (1 whole, 2 first, 3 middle, 4 last), and the part.
    """
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")  # of these libraries
def test_a_service_has_settings_figures_and_the_score(service, tmp_path, tiny_config, waves):
    run = tmp_path / "run"
    result = train(tiny_config(epochs=3, logger=(service,)), run, data=waves)
    found = told(service, run)
    assert found.status == "FINISHED"
    assert found.settings["model.mixer"] == "flow"
    assert found.settings["training.epochs"] == "3"
    for name in FIGURES:
        assert found.figures[name] == pytest.approx(recorded(run, name), rel=1e-6), name
    assert found.figures["test_accuracy"] == [result.test_accuracy]
    assert found.figures["score"] == [result.score]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (OSError, "FAILED")])
def test_a_run_that_did_not_end_is_closed_and_goes_on_as_the_same(
    service, tmp_path, tiny_config, waves, error, status
):
    run, config = tmp_path / "run", tiny_config(epochs=3, logger=(service,))
    with pytest.raises(error):
        train(config, run, data=waves, loggers=[Ends(error)])
    assert told(service, run).status == (status if service == "mlflow" else "FAILED")
    name = (run / "services.json").read_text()
    result = train(config, run, data=waves, resume=True)
    assert (run / "services.json").read_text() == name
    found = told(service, run)
    assert found.status == "FINISHED"
    assert found.figures["seconds"][-1] == pytest.approx(recorded(run, "seconds")[-1])
    assert len(found.figures["train_loss"]) >= 3
    assert found.figures["score"] == [result.score]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("service", ["mlflow"], indirect=True)
def test_by_default_a_run_is_where_mlflow_itself_looks(service, tmp_path, tiny_config, waves):
    train(tiny_config(logger=(service,)), tmp_path / "run", data=waves)
    assert (tmp_path / "mlflow.db").is_file()
    assert not (tmp_path / "mlruns").exists()
