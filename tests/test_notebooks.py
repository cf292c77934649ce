"""The notebooks in examples/ run, and each within two minutes."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowformer.nn import MIXERS
from flowformer.nn.mixers import ATTENTIONS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.py"))
QUICK = re.compile(r"^(\w+ = ).+?  # quick: (.+)$", re.MULTILINE)
SECONDS = 120


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("FLOWFORMER_DATA", str(tmp_path / "cache"))
    tables: tuple[Any, ...] = (MIXERS, ATTENTIONS)
    before = [dict(table) for table in tables]
    yield tmp_path
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def test_there_are_five():
    assert [notebook.stem for notebook in NOTEBOOKS] == [
        "constant_cost",
        "decision_model",
        "image_attention",
        "own_mixer",
        "sensor_data",
    ]


@pytest.mark.usefixtures("shape_checks_off")  # a script of a user's has none
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_with_its_quick_values(folder, notebook, monkeypatch):
    text, changed = QUICK.subn(r"\1\2", notebook.read_text())
    assert changed
    assert text.startswith("# %% [markdown]\n# # ")
    module = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)
    exec(compile(text, str(notebook), "exec"), vars(module))
    assert list(folder.glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_takes_two_minutes_at_most(folder, notebook):
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, notebook], check=True, timeout=SECONDS, env=environment)
    assert list(folder.glob("*.png"))
