"""The commands of the page on comparisons, as they are typed there, on a small model."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "runs" / "compare.md").read_text()
SMALL = ["--model.dim", 16, "--model.num-heads", 2, "--model.num-layers", 1, "--seeds", 1]
SMALL += ["--model.feedforward", 16, "--training.epochs", 1, "--training.accelerator", "cpu"]


def section(title: str) -> str:
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    return text


def typed(command: str, folder: Path) -> str:
    words = [*shlex.split(command), *SMALL]
    process = subprocess.run(
        [sys.executable, "-P", "-m", "flowformer", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def commands(title: str) -> list[str]:
    return re.findall(r"^    flowformer (.*)$", section(title), re.MULTILINE)


def test_what_the_page_says_for_a_paper_is_done(tmp_path):
    dry, real = commands("For a paper")
    assert dry == f"{real} --dry-run"
    said = typed(dry, tmp_path)
    assert re.search(r"^in all      about ", said, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
    typed(real, tmp_path)
    folder = tmp_path / "comparisons" / "vowels"
    assert {"table.tex", "runs.csv", "tests.csv"} <= {path.name for path in folder.iterdir()}
    indented = re.sub(r"^```.*?^```", "", section("For a paper"), flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^    ((?!flowformer ).*)$", indented, re.MULTILINE)
    code = "\n".join(lines)
    assert "frames.curves" in code
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path)
    assert ended.returncode == 0


@pytest.mark.slow  # tests/compare/engines do the same with less
def test_what_the_page_says_for_a_cluster_is_done_without_one(tmp_path):
    """Ray's needs a cluster: tests/compare/engines/test_ray.py has one."""
    pytest.importorskip("submitit")  # the page names it for clusters alone
    (slurm,) = [each for each in commands("On a cluster") if "--cluster slurm" in each]
    alone = slurm.replace("--cluster slurm", "--cluster local --jobs 2")
    said = typed(alone, tmp_path)
    assert "cluster     local, 2 processors a run" in said
    assert (tmp_path / "comparisons" / "slurm" / "table.tex").exists()
