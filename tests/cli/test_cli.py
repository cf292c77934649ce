"""The commands: what they print, and their exit codes."""

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TextIO
from unittest.mock import Mock

import pytest

from flowformer.cli import main
from flowformer.cli.train import _choose_folder, _leave_none_empty
from flowformer.recipes import RECIPES
from flowformer.train.folder import RunFolder
from flowformer.train.series.config import SeriesRecord

TINY = ["--model.dim", "16", "--model.num-heads", "2", "--model.num-layers", "1"]
TINY += ["--model.feedforward", "32"]
QUICK = [*TINY, "--training.epochs", "1", "--training.accelerator", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of a tiny model on vowels cut to `.ts` files, and the folder of the files."""
    folder = tmp_path_factory.mktemp("cli")
    _write_ts(folder)
    with pytest.raises(SystemExit, match="0"):
        main([str(a) for a in _own_data(folder, "--run-dir", folder / "run")])
    return folder / "run", folder


def _own_data(folder: Path, *more: object) -> list[object]:
    files = ["--data.train-file", folder / "TRAIN.ts", "--data.test-file", folder / "TEST.ts"]
    return ["train", "time-series", *files, *QUICK, *more]


def _write_ts(folder: Path) -> None:
    header = (
        "@problemName steps\n@univariate true\n@dimensions 1\n@classLabel true up down\n@data\n"
    )
    for part, count in [("TRAIN", 20), ("TEST", 8)]:
        rows = [f"{i},{i + (1 if i % 2 else -1)}:{'up' if i % 2 else 'down'}" for i in range(count)]
        (folder / f"{part}.ts").write_text(header + "\n".join(rows) + "\n")
    unlabelled = header.replace("true up down", "false") + "1,2\n3,2\n4,5,6\n"
    (folder / "NEW.ts").write_text(unlabelled.replace(",6", ""))
    (folder / "LONG.ts").write_text(unlabelled)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "usage: flowformer COMMAND"),
        (["--help"], "usage: flowformer COMMAND"),
        (["--version"], "flowformer 0."),
        (["recipes"], "japanese-vowels              100 epochs      radam       98.9"),
        (["recipes", "--help"], "usage: flowformer recipes"),
        (["info", "--help"], "usage: flowformer info"),
        (["train", "--help"], "flowformer train japanese-vowels --model.mixer softmax"),
        (["train", "pems-sf", "--help"], "--optimizer.learning-rate FLOAT"),
        (["evaluate", "--help"], "usage: flowformer evaluate"),
        (["predict", "--help"], "usage: flowformer predict"),
        (["visualize", "--help"], "usage: flowformer visualize"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_lists_go_to_standard_output(flowformer, arguments, expected):
    outcome = flowformer(*arguments)
    assert outcome.code == 0
    assert expected in outcome.out
    assert outcome.err == ""


def test_the_help_of_a_recipe_shows_its_own_settings(flowformer):
    out = flowformer("train", "pems-sf", "--help").out
    assert "(default: 400)" in out
    assert "PEMS-SF)" in out


@pytest.mark.parametrize(
    ("recipe", "form"),
    [
        ("heartbeat", "bidirectional"),
        ("fashion-mnist", "bidirectional"),
        ("listops", "bidirectional"),
        ("adder", "causal"),
        ("decision", "causal"),
    ],
)
def test_the_help_of_the_mixer_names_those_of_the_table_that_have_the_form(
    flowformer, recipe, form
):
    from flowformer.nn.mixers.head_attention import able

    out = re.sub(r"[│\s]+", " ", flowformer("train", recipe, "--help").out)
    assert f"--model.mixer STR Name of the attention: {', '.join(able(form))}. (default" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "error: unknown command 'fly': choose from recipes, info, data, train"),
        (["trian"], "error: unknown command 'trian': did you mean train? choose from recipes"),
        (["train"], "usage: flowformer train NAME"),
        (["train", "japanese-vowel"], "did you mean japanese-vowels"),
        (["train", "japanese-vowels", "--model.mixer", "flwo", *TINY], "expected one of flow, "),
        (
            ["train", "japanese-vowels", "--training.epochs", "0"],
            "epochs must be at least 1, got 0",
        ),
        (["train", "japanese-vowels", "--training.protocol", "fair"], "'clean', 'published'"),
        (["train", "japanese-vowels", "--model.mixer-options", "clamp"], "expected JSON such as"),
        (["train", "japanese-vowels", "--resume"], "error: --resume needs --run-dir"),
        (["train", "time-series"], "error: no series to train on: give --data.train-file (a table"),
        (
            ["train", "japanese-vowels", "--data.max-length", "9"],
            "error: --data.max-length must be at least 29",
        ),
        (["train", "time-series", "--data.train-file", "none.ts"], "none.ts: no such file"),
        (["evaluate", "nowhere"], "error: nowhere holds no run: there is no config.json"),
        (["evaluate", __file__], f"error: expected the folder of a run, got the file {__file__}"),
        (["predict", "nowhere", "none.ts"], "error: nowhere holds no run"),
        (["visualize", "nowhere"], "error: nowhere holds no run"),
        (["evaluate"], "run"),
        (["info", "--wrong"], "--wrong"),
        (["visualize", "run", "--num-series", "-1"], "num_series must be at least 0, got -1"),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_code_2_and_says_what_is_right(
    flowformer, monkeypatch, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    outcome = flowformer(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """`unwritable("stdout", "full")`: or "closed", or a "pipe" that nobody reads."""
    streams: list[TextIO] = []

    def make(name: str, kind: str) -> None:
        if kind == "full":
            streams.append(os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"))
        elif kind == "pipe":
            reader, writer = os.pipe()
            os.close(reader)
            streams.append(os.fdopen(writer, "w"))
        for each in (name, f"__{name}__"):
            monkeypatch.setattr(sys, each, None if kind == "closed" else streams[-1])

    yield make
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("arguments", ["recipes", "info --help", "train --help"])
@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("full", 1, "error: standard output: no space left on device\n"),
        ("closed", 1, "error: standard output: bad file descriptor\n"),
        ("pipe", 141, ""),  # as of who ends by SIGPIPE
    ],
    ids=["full", "closed", "pipe"],
)
def test_output_that_cannot_be_written_is_an_error(
    flowformer, unwritable, arguments, kind, code, message
):
    unwritable("stdout", kind)
    outcome = flowformer(*arguments.split())
    assert outcome.code == code
    assert outcome.err.startswith(message)
    assert "Traceback" not in outcome.err
    assert bool(outcome.err) is bool(message)


@pytest.mark.parametrize("kind", ["full", "closed", "pipe"])
def test_errors_that_cannot_be_written_change_nothing_else(flowformer, unwritable, kind):
    unwritable("stderr", kind)
    assert flowformer("fly").code == 2
    outcome = flowformer("recipes")
    assert outcome.code == 0
    assert "japanese-vowels" in outcome.out


def test_characters_that_a_stream_has_not_are_replaced(flowformer, monkeypatch, tmp_path):
    def write(_arguments: list[str]) -> int:
        sys.stdout.write("ł × \udcff\n")
        raise ValueError("5 × 5 are ł")

    monkeypatch.setattr(import_module("flowformer.cli.info"), "recipes", write)
    for encoding, shown in [("ascii", "?"), ("latin-1", "×")]:
        streams = {}
        for name in ("stdout", "stderr"):
            streams[name] = (tmp_path / name).open("w", encoding=encoding)
            monkeypatch.setattr(sys, name, streams[name])
            monkeypatch.setattr(sys, f"__{name}__", streams[name])
        assert flowformer("recipes").code == 2
        assert (tmp_path / "stdout").read_text(encoding) == f"? {shown} ?\n"
        assert (tmp_path / "stderr").read_text(encoding) == f"error: 5 {shown} 5 are ?\n"
        for stream in streams.values():
            stream.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('{"clamp": "x"}', "flow.clamp must be of type float, got 'x'"),
        ('{"eps": null}', "flow.eps must be of type float, got None"),
    ],
)
def test_a_mixers_option_of_the_wrong_type_is_code_2(flowformer, trained, options, message):
    _, files = trained
    outcome = flowformer(*_own_data(files, "--model.mixer-options", options))
    assert outcome.code == 2
    assert message in outcome.err


def test_debug_shows_where_an_error_came_from():
    with pytest.raises(ValueError, match="unknown recipe"):
        main(["train", "fly", "--debug"])


def test_a_wrong_recipe_lists_all_recipes(flowformer):
    err = flowformer("train", "fly").err
    assert all(name in err for name in RECIPES)


def test_train_prints_its_result_with_the_protocol_and_what_to_do_next(
    flowformer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    outcome = flowformer("train", "japanese-vowels", *QUICK, "--training.progress", "lines")
    assert outcome.code == 0
    assert ", the paper's 98.9 (by its own protocol)\n" in outcome.out
    assert "protocol       clean: a stratified part of the training set" in outcome.out
    assert "runs/japanese-vowels-clean-seed0/report/index.html" in outcome.out
    assert (tmp_path / "runs/japanese-vowels-clean-seed0/report/index.html").exists()
    assert "epoch 1/1  train: loss" in outcome.err
    assert "Tip" not in outcome.out + outcome.err


def test_the_papers_figure_is_not_printed_for_another_data_set(flowformer, tmp_path):
    options = ["--data.dataset", "BasicMotions", "--data.max-length", 100]
    out = flowformer("train", "japanese-vowels", *QUICK, *options, "--run-dir", tmp_path / "r").out
    page = (tmp_path / "r" / "report" / "index.html").read_text()
    assert "test accuracy" in out
    assert "98.9" not in out + page + flowformer("evaluate", tmp_path / "r").out


def test_a_bar_counts_the_batches_of_all_epochs_beside_the_lines(
    flowformer, trained, tmp_path, monkeypatch
):
    _, files = trained
    monkeypatch.setattr("flowformer.progress._erases", lambda: True)
    options = ["--run-dir", tmp_path / "run", "--training.progress", "bar"]
    outcome = flowformer(*_own_data(files, *options))
    assert "training:   0 %|" in outcome.err
    assert "epoch 1/1  train: loss" in outcome.err
    assert "training: " not in outcome.out


def test_train_takes_a_new_folder_each_time_and_never_one_in_use(
    flowformer, trained, tmp_path, monkeypatch
):
    run, files = trained
    monkeypatch.chdir(tmp_path)
    options = ["--training.protocol", "published", "--training.seed", 3]
    for _ in range(2):
        outcome = flowformer(*_own_data(files, *options))
        assert outcome.code == 0
        assert "20 series to train on, 8 for test (chooses the weights), " in outcome.err
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "time-series-published-seed3",
        "time-series-published-seed3-2",
    ]
    outcome = flowformer(*_own_data(files, "--run-dir", run))
    assert outcome.code == 2
    assert "holds a run: go on with it (--resume), or choose another folder" in outcome.err


def test_who_starts_at_the_same_moment_takes_another_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = RECIPES["japanese-vowels"]()
    first, second = _choose_folder(config), _choose_folder(config)
    assert (first.root.name, second.root.name) == (
        "japanese-vowels-clean-seed0",
        "japanese-vowels-clean-seed0-2",
    )
    (second.root / "config.json").touch()
    for folder in (second, first):
        _leave_none_empty(folder)
    assert list(Path("runs").iterdir()) == [second.root]


def test_overrides_reach_the_run(flowformer, trained, tmp_path):
    _, files = trained
    options = ["--model.mixer-options", '{"clamp": 1.0}', "--optimizer.gradient-clip", "None"]
    options += ["--optimizer.name", "adamw", "--data.validation-fraction", 0.4]
    assert flowformer(*_own_data(files, "--run-dir", tmp_path / "run", *options)).code == 0
    record = SeriesRecord.read(RunFolder(tmp_path / "run"))
    assert record.config.model.mixer_options == {"clamp": 1.0}
    assert record.config.optimizer.gradient_clip is None
    assert record.config.optimizer.name == "adamw"
    assert record.sizes == {"train": 12, "validation": 8, "test": 8}
    assert record.classes == ("up", "down")


def test_resume_takes_the_settings_from_the_run(flowformer, trained):
    run, _ = trained
    outcome = flowformer("train", "time-series", "--run-dir", run, "--resume")
    assert outcome.code == 0
    assert "has ended already" in outcome.err
    outcome = flowformer("train", "pems-sf", "--run-dir", run, "--resume")
    assert outcome.code == 2
    assert "holds a run of time-series, not of pems-sf" in outcome.err


def test_resume_says_when_there_is_nothing_to_go_on_with(flowformer, trained, tmp_path):
    _, files = trained
    arguments = _own_data(files, "--run-dir", tmp_path / "run", "--resume")
    assert f"nothing to resume in {tmp_path / 'run'} yet: starting\n" in flowformer(*arguments).err
    assert "nothing to resume" not in flowformer(*arguments).err


def test_a_data_set_that_is_nowhere_is_code_2_and_names_the_flag(flowformer, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("the line is down")

    monkeypatch.setattr("flowformer.data.series.uea._download", fail)
    options = ["--data.dataset", "Handwriting", "--data.folder", tmp_path]
    outcome = flowformer("train", "time-series", *options, "--run-dir", tmp_path / "run")
    assert outcome.code == 2
    assert "give that folder (--data.folder, or folder=... in Python)" in outcome.err


def test_evaluate_finds_the_accuracy_of_the_training_again(flowformer, trained):
    run, files = trained
    outcome = flowformer("evaluate", run)
    assert outcome.code == 0
    assert ": the same" in outcome.out
    figures = json.loads(flowformer("evaluate", run, "--json").out)
    result = json.loads((run / "result.json").read_text())
    assert figures["accuracy"] == figures["trained_test_accuracy"] == result["test_accuracy"]
    other = json.loads(flowformer("evaluate", run, "--file", files / "TRAIN.ts", "--json").out)
    assert other["count"] == 20
    words = flowformer("evaluate", run, "--file", files / "TRAIN.ts").out
    assert "accuracy " in words
    assert "test accuracy" not in words
    assert "protocol" not in words


def test_evaluate_is_code_1_when_the_accuracy_is_another(flowformer, trained, tmp_path):
    run, _ = trained
    copy = tmp_path / "run"
    copy.mkdir()
    for path in run.glob("*.*"):
        (copy / path.name).write_bytes(path.read_bytes())
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(result | {"test_accuracy": 0.123}))
    outcome = flowformer("evaluate", copy)
    assert outcome.code == 1
    assert "training found 12.30: differs" in outcome.out


def test_evaluate_needs_labels(flowformer, trained):
    run, files = trained
    outcome = flowformer("evaluate", run, "--file", files / "NEW.ts")
    assert outcome.code == 2
    assert re.search(r"NEW\.ts: expected labels \(.*\), got none", outcome.err)


@pytest.mark.parametrize(
    ("file", "labels"), [("NEW.ts", ["", "", ""]), ("TEST.ts", ["down", "up"] * 4)]
)
def test_predict_writes_csv_with_and_without_labels(flowformer, trained, tmp_path, file, labels):
    run, files = trained
    printed = flowformer("predict", run, files / file).out
    rows = list(csv.DictReader(printed.splitlines()))
    assert [row["label"] for row in rows] == labels
    for row in rows:
        probabilities = {name: float(row[f"probability_{name}"]) for name in ("up", "down")}
        assert max(probabilities, key=lambda name: probabilities[name]) == row["predicted"]
        assert sum(probabilities.values()) == pytest.approx(1)
    output = tmp_path / "out" / "predictions.csv"
    link = tmp_path / "link.csv"
    link.symlink_to(output)
    for path in (output, link):  # what a link leads to is written
        assert flowformer("predict", run, files / file, "--output", path).out == ""
        assert output.read_text() == printed
        output.write_text("earlier")
    assert link.is_symlink()


@pytest.mark.parametrize("way", ["itself", "link", "the run's"])
def test_predict_does_not_write_over_what_it_reads(flowformer, trained, tmp_path, way):
    run, files = trained
    kept = files / "NEW.ts" if way != "the run's" else run / "predictions.csv"
    before, output = kept.read_bytes(), kept
    if way == "link":
        output = tmp_path / "out.csv"
        output.symlink_to(kept)
    outcome = flowformer("predict", run, files / "NEW.ts", "--output", output)
    assert outcome.code == 2
    assert "error: expected another file to write" in outcome.err
    assert kept.read_bytes() == before


def test_predict_says_what_a_folder_is_to_hold(flowformer, trained, tmp_path):
    run, files = trained
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "NEW.ts").write_bytes((files / "NEW.ts").read_bytes())
    outcome = flowformer("predict", run, tmp_path / "none")
    assert outcome.code == 2
    assert f"{tmp_path / 'none'}: expected files that end in .csv, " in outcome.err


def test_the_accuracy_is_told_where_there_is_no_room_for_the_report(
    flowformer, trained, tmp_path, monkeypatch
):
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "index.html")

    monkeypatch.setattr("flowformer.train.classification.write_report", fail)
    _, files = trained
    outcome = flowformer(*_own_data(files, "--run-dir", tmp_path / "run"))
    assert outcome.code == 1
    assert outcome.out.startswith("test accuracy  ")
    assert "error: the report was not written (index.html: no space left on dev" in outcome.err
    assert f"flowformer visualize {tmp_path / 'run'} writes it" in outcome.err


def test_predict_refuses_series_that_the_model_has_no_room_for(flowformer, trained):
    run, files = trained
    outcome = flowformer("predict", run, files / "LONG.ts")
    assert outcome.code == 2
    place, remedy = "LONG.ts, series 2", "train a run with --data.max-length 3"
    assert f"{place}: expected at most 2 time steps" in outcome.err
    assert remedy in outcome.err


def test_visualize_writes_the_report_again(flowformer, trained):
    run, _ = trained
    page = run / "report" / "index.html"
    page.unlink()
    outcome = flowformer("visualize", run, "--num-series", 2)
    assert outcome.out.strip() == str(page)
    assert page.exists()
    assert len(list((run / "report").glob("flow-map-*.png"))) == 2


def test_a_path_of_the_wrong_kind_is_code_2(flowformer, trained, tmp_path):
    run, files = trained
    file = files / "TEST.ts"
    for arguments in (
        ["evaluate", file / "run"],
        ["predict", run, file / "inside"],
        ["predict", run, file, "--output", tmp_path],
        _own_data(files, "--run-dir", file / "run"),
    ):
        outcome = flowformer(*arguments)
        assert outcome.code == 2, arguments
        assert "--debug" not in outcome.err
        assert "Errno" not in outcome.err


def test_a_path_that_may_not_be_written_is_code_2_and_a_full_disk_code_1(
    flowformer, trained, tmp_path, monkeypatch
):
    run, files = trained
    for number, code in [(errno.EACCES, 2), (errno.ENOSPC, 1)]:

        def refuse(_descriptor: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("flowformer.files.os.fsync", refuse)
        output = tmp_path / "predictions.csv"
        outcome = flowformer("predict", run, files / "TEST.ts", "--output", output)
        assert outcome.code == code
        assert f"error: {output}: {os.strerror(number).lower()}\n" in outcome.err


def test_a_failed_run_is_code_1(flowformer, trained, tmp_path):
    _, files = trained
    options = ["--optimizer.learning-rate", "1e30", "--training.epochs", 9]
    outcome = flowformer(*_own_data(files, "--run-dir", tmp_path / "run", *options))
    assert outcome.code == 1
    assert re.search("error: the (train|validation) loss became", outcome.err)
    assert "nan_batch.safetensors" in outcome.err


def test_where_memory_is_short_it_says_what_to_lower(flowformer, trained, tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you asked for 9 bytes")

    monkeypatch.setattr("flowformer.train.loop.fit.fit", fail)
    _, files = trained
    outcome = flowformer(*_own_data(files, "--run-dir", tmp_path / "run", "--data.max-length", 40))
    assert outcome.code == 1
    assert "error: out of memory (DefaultCPUAllocator: can't allocate memory: " in outcome.err
    assert "lower --data.batch-size (16), or lower --data.max-length (40); a run" in outcome.err


@pytest.mark.parametrize("missing", ["tyro", "lightning"])
def test_without_the_extra_it_says_what_to_install(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from flowformer.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "train", "japanese-vowels", *QUICK],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert f"error: {missing} is needed" in run.stderr
    assert "pip install 'flowformer[train]'" in run.stderr
    assert "Traceback" not in run.stderr


def test_stopped_before_its_folder_a_run_is_not_to_be_gone_on_with(
    trained, tmp_path, monkeypatch, capsys
):
    _, files = trained
    monkeypatch.setattr("flowformer.train.run.train", Mock(side_effect=KeyboardInterrupt))
    arguments = [str(a) for a in _own_data(files, "--run-dir", tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"^130$"):
        main(arguments)
    assert "stopped before there was anything to go on with" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_stopped_run_is_code_130_or_143_and_can_be_gone_on_with(
    trained, tmp_path, stop, stop_when_there
):
    _, files = trained
    arguments = [str(a) for a in _own_data(files, "--run-dir", tmp_path / "run")]
    arguments[arguments.index("--training.epochs") + 1] = "100000"
    process = subprocess.Popen(
        [sys.executable, "-c", "from flowformer.cli import main; main()", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    err = stop_when_there(process, tmp_path / "run" / "metrics.csv", stop)
    assert process.returncode == 128 + stop
    assert f"go on with: flowformer train time-series --run-dir {tmp_path / 'run'} --resume" in err
    assert "Traceback" not in err
