"""`flowformer compare`: what it asks for, prints, and leaves."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowformer.compare import methods
from flowformer.compare.plan import RunState
from tests.compare.comparison_methods import FAKES
from tests.compare.in_process import in_this_process

__all__ = ["in_this_process"]  # a fixture

ROOT = Path(__file__).parents[2]
TINY = ["--model.dim", 16, "--model.num-heads", 2, "--model.num-layers", 1]
TINY += ["--model.feedforward", 32, "--training.epochs", 1, "--training.accelerator", "cpu"]


@pytest.fixture
def compare(flowformer, monkeypatch, tmp_path):
    """`compare("japanese-vowels", ...)`, with the methods that only tests know."""
    monkeypatch.setattr(methods, "METHODS", FAKES)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: flowformer("compare", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: flowformer compare RECIPE"),
        (["--seeds", 3], "usage: flowformer compare RECIPE"),
        (["japanese-vowel"], "did you mean japanese-vowels"),
        (["japanese-vowels", "--mixers", "flwo"], "unknown mixer 'flwo': did you mean flow?"),
        (
            ["char-shakespeare", "--mixers", "flow,linformer"],
            "linformer has no causal form, which char-shakespeare needs: choose from flow,",
        ),
        (["japanese-vowels", "--methods", "rockt"], "unknown method 'rockt': expected one of"),
        (["japanese-vowels", "--mixers", "flow,flow"], "each once, got flow, flow"),
        (
            ["japanese-vowels", "--mixers", "flow,quick"],
            "quick is no mixer but another method: giv",
        ),
        (
            ["japanese-vowels", "--methods", "quick,linear"],
            "linear is a mixer: give it to --mixers",
        ),
        (["japanese-vowels", "--mixers", ""], "expected names of methods, each once, got none"),
        (["japanese-vowels", "--seeds", 0], "seeds must be at least 1, got 0"),
        (["japanese-vowels", "--jobs", 0], "jobs must be at least 1, got 0"),
        (["japanese-vowels", "--model.mixer", "softmax"], "the mixer is what is compared: give"),
        (
            ["japanese-vowels", "--mixers", "flow", "--mixer-options", "flow.clamps=1"],
            "has no option clamps",
        ),
        (
            ["japanese-vowels", "--mixers", "flow", "--mixer-options", "linear.eps=1"],
            "linear.eps=1: linear is not compared here, flow are",
        ),
        (["japanese-vowels", "--mixer-options", "clamp=1"], "expected NAME.OPTION=VALUE, got"),
        (["japanese-vowels", "--memory-limit", "much"], "a size such as 512M or 8G, got 'much'"),
        (["japanese-vowels", "--cluster", "slrum"], "ray, slurm or local, got 'slrum'"),
        (["japanese-vowels", "--gpus", 1], "are for runs on a --cluster"),
        (
            ["japanese-vowels", "--cluster", "local", "--cluster-options", "time"],
            "expected NAME=VALUE, got 'time'",
        ),
        (["japanese-vowels", "--cost", "none.json"], "none.json: no such file"),
        (
            ["japanese-vowels", "heartbeat", "--datasets", "BasicMotions"],
            "each data set can be given once",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_code_2_and_runs_nothing(compare, tmp_path, arguments, message):
    outcome = compare(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_help_goes_to_standard_output(compare):
    assert "--mixers flow,softmax,linear" in compare("--help").out
    out = compare("japanese-vowels", "--help").out
    assert "--mixer-options" in out
    assert "--memory-limit" in out


@pytest.fixture
def untimed(monkeypatch):
    """Dry runs that time nothing."""
    monkeypatch.setattr("flowformer.compare.rehearsal.rehearse", lambda *_, **__: [])


@pytest.mark.usefixtures("untimed")
def test_a_dry_run_shows_the_plan_and_leaves_nothing(compare, tmp_path):
    options = [
        "--mixers",
        "flow,linformer",
        "--mixer-options",
        "linformer.rank=8",
        "flow.clamp=1.5",
    ]
    options += ["--seeds", 2, "--training.seed", 5, "--memory-limit", "2G", "--dry-run"]
    outcome = compare("japanese-vowels", "heartbeat", *options)
    assert outcome.code == 0
    for line in (
        "comparison  comparisons/japanese-vowels-heartbeat-clean",
        "data        JapaneseVowels, Heartbeat",
        "methods     flow (clamp=1.5), linformer (rank=8)",
        "seeds       5, 6",
        "runs        8, of which 0 have finished; 1 at a time, each within 2.00 GiB",
    ):
        assert line in outcome.out.splitlines()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("recipe", "sizes", "field"),
    [
        ("japanese-vowels", TINY, "feedforward"),
        ("recall-small", ["--training.accelerator", "cpu"], "feedforward"),
        ("fashion-mnist", ["--model.feedforward-ratio", 2], "feedforward_ratio"),
    ],
)
def test_models_of_equal_size_are_as_large_as_the_first(compare, recipe, sizes, field):
    mixers = ["--mixers", "flow,gated", "--equal-parameters", "--dry-run"]
    outcome = compare(recipe, *sizes, *mixers)
    assert outcome.code == 0, outcome.err
    found = re.findall(rf"^size .*?(\w+): {field} (\S+)(.*), ([\d,]+) param", outcome.out, re.M)
    first, gated = (int(each[-1].replace(",", "")) for each in found)
    assert [each[0] for each in found] == ["flow", "gated"]
    assert found[0][2] == ""
    assert "in place of" in found[1][2]
    assert abs(gated - first) <= 0.02 * first


def test_equal_sizes_are_those_of_the_runs(compare, tmp_path):
    asked = [*TINY, "--mixers", "flow,gated", "--seeds", 1, "--equal-parameters"]
    outcome = compare("japanese-vowels", *asked, "--output", "c")
    assert outcome.code == 0, outcome.err
    sizes = [
        json.loads((tmp_path / "c/runs/JapaneseVowels" / f"{name}-seed0/result.json").read_text())
        for name in ("flow", "gated")
    ]
    shown = re.findall(r"^size .* ([\d,]+) parameters$", outcome.out, re.M)
    assert [f"{size['parameters']:,}" for size in sizes] == shown


@pytest.mark.usefixtures("untimed")
def test_no_feedforward_makes_up_for_a_mixer_that_is_much_larger(compare):
    asked = ["--model.dim", 64, "--model.feedforward", 2, "--mixers", "flow,gated"]
    outcome = compare("japanese-vowels", *asked, "--equal-parameters", "--dry-run")
    assert outcome.code == 2
    assert "JapaneseVowels: no feedforward gives gated the" in outcome.err


@pytest.mark.usefixtures("in_this_process")
def test_a_dry_run_times_the_first_steps_and_leaves_nothing(compare, tmp_path):
    command = ["japanese-vowels", "--mixers", "flow", "--methods", "quick", "--seeds", 2, *TINY]
    outcome = compare(*command, "--dry-run")
    assert outcome.code == 0
    assert "[1/1] JapaneseVowels flow: " in outcome.err
    row = r"\| flow \| JapaneseVowels \| [\d.]+ m?s \| 14 \| [\d.]+ m?s \| [\d.]+ \w+ \| 2 \|"
    assert re.search(row, outcome.out)
    assert "| quick | JapaneseVowels | – | – | no steps to time | – | 2 |" in outcome.out
    assert re.search(r"^in all      about \S+ s, 1 at a time", outcome.out, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
    failed = compare(*command, "--data.max-length", 3, "--dry-run")
    assert failed.code == 1
    assert "failed: ValueError: data.max_length must be at least 29" in failed.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("untimed")
def test_all_are_the_mixers_with_a_bidirectional_form(compare):
    from flowformer.nn import MIXERS

    out = compare("japanese-vowels", "--dry-run").out
    (line,) = [line for line in out.splitlines() if line.startswith("methods")]
    names = line.removeprefix("methods").strip().split(", ")
    assert set(MIXERS) - set(names) == {
        name for name, kind in MIXERS.items() if not kind.capabilities.bidirectional
    }


@pytest.mark.usefixtures("untimed")
def test_several_data_sets_may_be_named_in_place_of_recipes(compare):
    out = compare("time-series", "--datasets", "BasicMotions,JapaneseVowels", "--dry-run").out
    assert "data        BasicMotions, JapaneseVowels\n" in out


def test_it_prints_progress_table_and_files_and_goes_on_where_it_was(compare, tmp_path):
    command = ["japanese-vowels", "--mixers", "", "--methods", "quick,other", "--seeds", 2]
    command += ["--mixer-options", "other.wrong=12", "--output", "folder"]
    outcome = compare(*command)
    assert outcome.code == 0
    assert "[4/4] JapaneseVowels other seed 1: 40.0% in " in outcome.err
    assert "| quick | 100.0 ± 0.0 | 2 |" in outcome.out
    assert "significantly worse" in outcome.out
    assert outcome.out.endswith("page   folder/index.html\n")
    assert (tmp_path / "folder/table.csv").exists()
    again = compare(*command)
    assert "runs        4, of which 4 have finished" in again.out
    assert "[" not in again.err
    more = compare(*command[:-2], "--seeds", 3, "--output", "folder")
    assert "runs        6, of which 4 have finished" in more.out
    assert "[6/6]" in more.err


def test_the_table_is_shown_where_there_is_no_room_for_the_page(compare, monkeypatch):
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "index.html")

    monkeypatch.setattr("flowformer.compare.page.write_comparison", fail)
    outcome = compare("japanese-vowels", "--mixers", "", "--methods", "quick", "--seeds", 1)
    assert outcome.code == 1
    assert "| quick | 100.0 |" in outcome.out
    assert "error: index.html: no space left on device" in outcome.err


def test_a_folder_of_something_else_is_not_written_to(compare, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.csv").write_text("mine")
    outcome = compare("japanese-vowels", "--mixers", "flow", "--output", "mine", "--dry-run")
    assert outcome.code == 2
    assert "expected an empty folder or a comparison, and mine has table.csv" in outcome.err


def test_a_run_that_fails_is_code_1_and_one_that_does_not_fit_is_not(compare):
    command = ["japanese-vowels", "--mixers", "", "--seeds", 1]
    failed = compare(*command, "--methods", "quick,broken", "--output", "failed")
    assert failed.code == 1
    assert "| broken | failed | 0 of 1 |" in failed.out
    assert "failed: ArithmeticError: the loss became nan" in failed.out
    large = compare(*command, "--methods", "quick,killed", "--output", "large")
    assert large.code == 0
    assert "| killed | does not fit in memory | 0 of 1 |" in large.out
    none = compare(*command, "--methods", "killed", "--output", "none")
    assert none.code == 1


def test_a_changed_configuration_is_code_2_and_is_named(compare):
    command = ["japanese-vowels", "--mixers", "", "--methods", "quick", "--seeds", 1]
    compare(*command)
    outcome = compare(*command, "--training.epochs", 7)
    assert outcome.code == 2
    assert "quick-seed0 was run otherwise: --training.epochs was 100, got 7" in outcome.err


@pytest.mark.parametrize(
    "stop",
    # Ctrl-C as of any command: test_cli.py stops a training by it.
    [
        pytest.param(signal.SIGINT, id="ctrl-c", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, id="sigterm"),
    ],
)
def test_stopped_it_ends_its_runs_and_says_how_to_go_on(tmp_path, stop, stop_when_there):
    code = (
        "from flowformer.cli import main; from flowformer.compare import methods; "
        "from tests.compare.comparison_methods import FAKES; "
        "methods.METHODS = FAKES; main()"
    )
    command = ["compare", "japanese-vowels", "--mixers", "", "--methods", "quick"]
    command += ["--mixer-options", "quick.seconds=600", f"quick.calls={tmp_path / 'calls'}"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command, "--output", str(tmp_path / "folder")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        cwd=tmp_path,
    )
    err = stop_when_there(process, tmp_path / "calls", stop)
    assert process.returncode == 128 + stop
    assert "stopped; the same command goes on" in err
    assert "Traceback" not in err
    (path,) = (tmp_path / "folder").glob("runs/*/*.json")
    assert RunState.read(path).status == "started"


@pytest.mark.slow
def test_mixers_on_a_real_data_set(compare, flowformer, tmp_path):
    options = ["--mixers", "flow,softmax,linformer", "--seeds", 1, "--output", "folder"]
    options += ["--mixer-options", "linformer.rank=1000000000"]
    outcome = compare("japanese-vowels", *options, *TINY)
    assert outcome.code == 0
    assert re.search(r"\| flow \| \d+\.\d \| 1 \| 98\.9 \|", outcome.out)
    assert re.search(r"\| softmax \| \d+\.\d \| 1 \| – \|", outcome.out)
    assert "| linformer | does not fit in memory | 0 of 1 |" in outcome.out
    html = (tmp_path / "folder/index.html").read_text()
    assert "Learning curves" in html
    assert "Accuracy against cost" in html
    run = tmp_path / "folder/runs/JapaneseVowels/flow-seed0"
    assert ": the same" in flowformer("evaluate", run).out
