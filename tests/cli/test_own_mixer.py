"""A mixer of one's own on the command line: trained, compared, read back, refused without it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flowformer.nn.mixers.head_attention import leave

ROOT = Path(__file__).parents[2]
MIXER = """
import torch
from torch import nn

from flowformer.nn import register_mixer


class Mean(nn.Module):
    def __init__(self, dim, factor=1.0):
        super().__init__()
        self.value = nn.Linear(dim, dim)
        self.factor = factor

    def forward(self, x, mask=None):
        real = x.new_ones(x.shape[:2]) if mask is None else mask.to(x)
        count = real.sum(1)[:, None, None].clamp(min=1)
        mean = (self.value(x) * real[..., None]).sum(1, keepdim=True) / count
        return self.factor * mean.expand_as(x)


register_mixer("mean", Mean)
"""
TINY = ["--model.dim", 16, "--model.num-heads", 2, "--model.num-layers", 1]
TINY += ["--model.feedforward", 32, "--training.epochs", 1, "--training.accelerator", "cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder that is current, with a mixer in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it tells texts of one second apart by
    (tmp_path / "my_mixer.py").write_text(MIXER)
    yield tmp_path
    forget()


def forget() -> None:
    """What a new process has not: the module, and its mixer."""
    leave("mean")
    sys.modules.pop("my_mixer", None)


def test_a_run_says_which_module_it_needs_and_so_does_who_reads_it(flowformer, here):
    asked = [*TINY, "--model.mixer", "mean", "--run-dir", "run"]
    ended = flowformer("train", "japanese-vowels", *asked, "--import", "my_mixer")
    assert ended.code == 0
    file = here / "my_mixer.py"
    assert f"(each with --import {file})" in ended.out
    assert "mixer mean: variable length, bidirectional, exact mask\n" in ended.err
    record = json.loads((here / "run" / "config.json").read_text())["mixer_module"]
    assert (record["name"], record["file"]) == ("my_mixer", str(file))
    forget()
    for command in ("evaluate", "visualize"):
        refused = flowformer(command, "run")
        assert refused.code == 2
        assert f"needs the mixer 'mean' of the module my_mixer: give --import {file}" in refused.err
    assert flowformer("evaluate", f"--import={file}", "run").code == 0
    forget()
    file.write_text(MIXER.replace("factor * mean", "factor + mean"))
    changed = flowformer("evaluate", "run", "--import", "my_mixer")
    assert "run: the mixer mean is another since: my_mixer" in changed.err
    again = flowformer("train", "japanese-vowels", *asked, "--resume", "--import", "my_mixer")
    assert again.code == 2
    assert "can only be resumed as it began: mixer_module.digest was" in again.err


@pytest.mark.usefixtures("here")
def test_without_it_the_name_is_unknown_and_the_way_is_named(flowformer):
    outcome = flowformer("train", "japanese-vowels", *TINY, "--model.mixer", "mean")
    assert outcome.code == 2
    assert "unknown mixer 'mean': " in outcome.err
    assert "calls flowformer.nn.register_mixer (on the command line --import MODULE)" in outcome.err
    assert flowformer("train", "japanese-vowels", "--import").code == 2


def test_a_comparison_hands_it_to_its_workers_and_knows_when_it_has_changed(here):
    command = ["compare", "japanese-vowels", *TINY]
    command += ["--mixers", "mean,linear", "--mixer-options", "mean.factor=2.0", "--seeds", 1]
    command += ["--import", "my_mixer", "--output", "out"]
    first = typed(*command)
    assert first.returncode == 0, first.stderr
    assert "mean (factor=2.0), linear" in first.stdout
    states = [json.loads(path.read_text()) for path in Path("out").rglob("*-seed0.json")]
    modules = {state["request"]["method"]: state["request"]["mixer_module"] for state in states}
    assert modules["mean"]["file"] == str(here / "my_mixer.py")
    assert modules["linear"] is None
    (here / "my_mixer.py").write_text(MIXER + "# another\n")
    second = typed(*command)
    assert second.returncode == 2
    assert "mean-seed0 was run otherwise: mixer_module.digest was" in second.stderr


def test_the_commands_of_the_page_do_what_it_says(tmp_path):
    """From equation to table as typed on the page, on a small text and with a small model."""
    page = (ROOT / "docs" / "attention" / "own-mixer.md").read_text()
    (module,) = re.findall(r"^```python\n# my_mixer.py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len([line for line in module.splitlines() if line]) <= 30
    (tmp_path / "my_mixer.py").write_text(module)
    (tmp_path / "text").mkdir()
    words = "to be or not to be that is the question whether tis nobler in the mind to suffer "
    (tmp_path / "text" / "words.txt").write_text(words * 60)
    small = ["--data.corpus", "text", "--data.folder", "text", "--data.length", 16]
    small += ["--model.dim", 16, "--model.num-heads", 2, "--model.feedforward", 16]
    small += ["--training.steps", 2, "--training.evaluate-every", 1, "--training.threads", 1]
    commands = re.findall(r"^    flowformer (.*)$", page, re.MULTILINE)
    printed = {}
    for name, *rest in map(shlex.split, commands):
        less = small * (name in ("compare", "train")) + ["--seeds", 1] * (name == "compare")
        ended = typed(name, *rest, *less, folder=tmp_path)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        printed[name] = ended.stdout
    assert list(printed) == ["check-mixer", "compare", "train", "generate"]
    assert [line.split()[1] for line in printed["check-mixer"].splitlines()[2:]] == ["holds"] * 9
    rows = re.findall(r"^\| ([\w-]+) \| \d", printed["compare"], re.MULTILINE)
    assert rows[:4] == ["taylor", "flow", "softmax", "gated-deltanet"]


def typed(*arguments: object, folder: Path = Path()) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which imports nothing of the current folder by itself."""
    command = [sys.executable, "-P", "-m", "flowformer", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=folder
    )


@pytest.mark.slow
def test_a_training_in_several_processes_hands_it_on(here):
    command = ["train", "japanese-vowels", *TINY, "--model.mixer", "mean", "--import", "my_mixer"]
    done = typed(*command, "--training.devices", 2, "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    assert (here / "run" / "result.json").exists()
