"""Runs that were trained once and kept are read, used and gone on with by the code of today.

Runs of users are older than the code that reads them. tests/train/kept_runs says what is kept.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowformer.cli import main

KEPT = Path(__file__).with_name("kept_runs")
PLACE = "/KEPT"  # of the data, in the kept files
USED = {
    "series": "predict series data/waves_TEST.ts",
    "language": "generate language one --max-new-tokens 20",
    "sequences": "predict sequences data/expressions.txt",
    "images": "predict images data/images/test/red/0.png data/images/test/blue/0.png",
    "trajectories": "rollout trajectories --json --episodes 1 --form streaming",
}
# What `evaluate --json` calls a figure of result.json.
FIGURES = {
    "series": {"accuracy": "test_accuracy"},
    "language": {
        "score": "test_score",
        "loss": "test_loss",
        "perplexity": "test_perplexity",
        "bits_per_character": "test_bits_per_character",
    },
    "sequences": {"accuracy": "test_accuracy"},
    "images": {"accuracy": "test_accuracy"},
    "trajectories": {"outcomes": "outcomes", "behaviour_score": "behaviour_score"},
}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

every_kind = pytest.mark.parametrize("kind", USED)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what is kept, as if it had been trained there; the current folder."""
    folder = tmp_path / "kept"
    shutil.copytree(KEPT, folder)
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().replace(PLACE, json.dumps(str(folder))[1:-1]))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FLOWFORMER_DATA", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def flowformer(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`flowformer("evaluate", ...)` as on the command line: code, output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@every_kind
def test_a_finished_run_gives_its_figures_again(kept, flowformer, kind):
    # On another CPU the last digits may differ, which `evaluate` then says: its code is 0 or 1.
    _, out, _ = flowformer("evaluate", kind, "--json")
    now, then = json.loads(out), result_of(kept / kind)
    for name, kept_as in FIGURES[kind].items():
        assert_alike(json.dumps(now[name]), json.dumps(then[kept_as]))


@every_kind
def test_a_finished_run_is_used_as_before(kept, flowformer, kind):
    code, out, _ = flowformer(*USED[kind].split())
    assert code == 0
    assert_alike(out, (kept / "printed" / f"{kind}.txt").read_text())


@pytest.mark.usefixtures("kept")
def test_finished_runs_are_used_without_what_trains():
    # Lightning takes longer to import than torch. In a process of its own: this one has trained.
    script = """if True:
        import sys
        from flowformer.cli import main
        codes = []
        for line in sys.argv[1:]:
            try:
                main(line.split())
            except SystemExit as ended:
                codes.append(ended.code)
        print(*codes, *sys.modules)
    """
    lines = [*USED.values(), *(f"evaluate {kind}" for kind in USED)]
    done = subprocess.run(
        [sys.executable, "-c", script, *lines], capture_output=True, text=True, check=True
    )
    told = done.stdout.splitlines()[-1].split()
    assert set(told[: len(lines)]) <= {"0", "1"}  # 1: the last digits are those of another CPU
    assert {"flowformer.train.run", "timm"} <= set(told)
    assert {"lightning", "torchmetrics", "tensorboard"} & set(told) == set()


def test_its_predictions_for_the_test_set_are_those_that_it_has_kept(kept, flowformer):
    _, out, _ = flowformer(*USED["series"].split())
    assert_alike(out, (kept / "series" / "predictions.csv").read_text())


@every_kind
def test_a_stopped_run_goes_on_and_ends_as_one_that_was_never_stopped(kept, flowformer, kind):
    whole, stopped = kept / kind, kept / f"{kind}-stopped"
    before = {name: (stopped / name).read_bytes() for name in ("config.json", "data.json")}
    rows = (stopped / "metrics.csv").read_text()
    code, _, error = resume(flowformer, kind)
    assert code == 0, error
    # It went on from the checkpoint: the row before it holds the seconds of that day.
    assert (stopped / "metrics.csv").read_text().startswith(rows)
    assert before == {name: (stopped / name).read_bytes() for name in before}
    weights = load_file(whole / "weights.safetensors")
    torch.testing.assert_close(
        load_file(stopped / "weights.safetensors"), weights, rtol=0, atol=1e-5
    )
    assert_alike(json.dumps(result_of(stopped)), json.dumps(result_of(whole)))
    assert_alike(metrics_of(stopped), metrics_of(whole))
    for name in ("predictions.csv", "episodes.csv", "preprocessing.json", "tokenizer.json"):
        assert (stopped / name).exists() == (whole / name).exists()
        if (whole / name).exists():
            assert_alike((stopped / name).read_text(), (whole / name).read_text())
    assert (stopped / "report" / "index.html").is_file()
    code, out, _ = flowformer("evaluate", stopped.name)
    assert (code, "the same" in out) == (0, True)


@every_kind
def test_the_digests_that_it_has_kept_are_compared(kept, flowformer, kind):
    path = kept / f"{kind}-stopped" / "data.json"
    place, digest = next(iter(json.loads(path.read_text()).items()))
    path.write_text(path.read_text().replace(digest, digest[::-1]))
    code, _, error = resume(flowformer, kind)
    assert code == 2
    assert f"{place} has changed" in error


def test_a_run_of_before_there_were_digests_and_best_steps_is_read_and_gone_on_with(
    kept, flowformer
):
    stopped, path = kept / "series-stopped", kept / "series" / "result.json"
    (stopped / "data.json").unlink()
    (kept / "series" / "data.json").unlink()
    result = json.loads(path.read_text())
    del result["best_step"], result["test_top5"]
    path.write_text(json.dumps(result))
    code, out, _ = flowformer("evaluate", "series", "--json")
    assert code in (0, 1)
    assert_alike(json.dumps(json.loads(out)["accuracy"]), json.dumps(result["test_accuracy"]))
    code, _, error = resume(flowformer, "series")
    assert code == 0, error
    weights = load_file(kept / "series" / "weights.safetensors")
    torch.testing.assert_close(
        load_file(stopped / "weights.safetensors"), weights, rtol=0, atol=1e-5
    )
    assert (stopped / "data.json").is_file()


def resume(flowformer: Callable[..., tuple[int, str, str]], kind: str) -> tuple[int, str, str]:
    recipe = json.loads(Path(kind, "result.json").read_text())["recipe"]
    return flowformer("train", recipe, "--run-dir", f"{kind}-stopped", "--resume")


def result_of(folder: Path) -> dict[str, object]:
    """Returns the figures of a run but for the time that it took."""
    result = json.loads((folder / "result.json").read_text())
    return {name: result[name] for name in sorted(result) if "second" not in name}


def metrics_of(folder: Path) -> str:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return "\n".join(f"{name} {row[name]}" for row in rows for name in row if "second" not in name)


def assert_alike(now: str, then: str) -> None:
    """Compares texts word by word, and the numbers in them but for the rounding of a CPU."""
    assert NUMBER.sub("#", now) == NUMBER.sub("#", then)
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (now, then)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-5)
