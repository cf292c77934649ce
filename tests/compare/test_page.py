"""What a comparison leaves: table.md, table.csv, and the page with its plots."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowformer.compare import read
from flowformer.compare.findings import Comparison
from flowformer.compare.page import (
    CostCell,
    MixerCost,
    cost_over_length,
    score_against_cost,
    write_comparison,
)
from flowformer.compare.paper import critical_difference, to_latex
from flowformer.compare.table import RunOutcome
from flowformer.report.curves import method_curves
from flowformer.scores.measures import ACCURACY, PERPLEXITY

CASES = 200


def outcome(method: str, seed: int, accuracy: float | None, dataset: str = "Vowels") -> RunOutcome:
    if accuracy is None:
        return RunOutcome(
            dataset=dataset,
            method=method,
            seed=seed,
            problem="does not fit in memory",
            error="asked for 9 GiB more, limit 2 GiB",
            log=f"runs/{dataset}/{method}-seed{seed}.log",
        )
    epochs = np.arange(1.0, 4.0)
    return RunOutcome(
        dataset=dataset,
        method=method,
        seed=seed,
        score=accuracy,
        paper_score=0.925 if method == "flow" else None,
        parameters=7_113,
        seconds=12.0,
        step_seconds=0.02,
        peak_memory=900 * 2**20,
        correct=np.arange(CASES) < round(accuracy * CASES),
        history={
            "epoch": epochs,
            "train_loss": 1 / epochs,
            "validation_accuracy": accuracy - 0.1 / epochs,
        },
    )


def compared(outcomes: list[RunOutcome], **changes: Any) -> Comparison:
    parts: dict[str, Any] = {
        "title": "Vowels: <3> methods",
        "protocol": "clean",
        "protocol_note": "the test set was read once",
        "measure": ACCURACY,
        "has_test": True,
        "baseline": "flow",
        "outcomes": outcomes,
        "paper_source": "the paper, its table",
        "settings": {"training.epochs": "3", "model.mixer": "flow, softmax"},
    }
    return Comparison(**{**parts, **changes})


def three_methods(dataset: str = "Vowels") -> list[RunOutcome]:
    figures: list[tuple[str, list[float | None]]] = [
        ("flow", [0.9, 0.94]),
        ("linear", [0.7, 0.72]),
        ("softmax", [None, None]),
    ]
    return [
        outcome(method, seed, accuracies[seed], dataset)
        for seed in range(2)
        for method, accuracies in figures
    ]


class _Sources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone_and_shows_table_plots_and_tests(tmp_path: Path):
    page = write_comparison(tmp_path, compared(three_methods()))
    html = page.read_text()
    sources = _Sources()
    sources.feed(html)
    assert len(sources.found) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources.found)
    assert "Vowels: &lt;3&gt; methods" in html
    assert "92.0 ± 2.8" in html
    assert "significantly worse" in html
    assert "asked for 9 GiB more, limit 2 GiB" in html
    assert "<script" not in html


def test_the_markdown_says_what_the_figures_are_and_what_was_tested(tmp_path: Path):
    write_comparison(tmp_path, compared(three_methods()))
    text = (tmp_path / "table.md").read_text()
    assert "| flow | 92.0 ± 2.8 | 2 | 92.5 | 7,113 | 12 s | 20 ms | 900 MiB |" in text
    assert "| softmax | does not fit in memory | 0 of 2 | – |" in text
    assert "Protocol clean: the test set was read once." in text
    assert "The paper's figure: the paper, its table, protocol published" in text
    assert re.search(r"\| softmax \| Vowels \| 1 \| does not fit in memory: asked for", text)
    assert "## Against flow, over the test cases of Vowels" in text
    assert "one comparison, so without correction" in text


def test_the_csv_has_a_row_for_each_method(tmp_path: Path):
    write_comparison(tmp_path, compared(three_methods()))
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["flow", "linear", "softmax"]
    assert float(rows[0]["mean"]) == pytest.approx(0.92)
    assert rows[2]["problems"] == "does not fit in memory"


def test_several_data_sets_have_an_average_and_a_test_that_says_they_are_too_few(tmp_path: Path):
    runs = [run for name in "ABC" for run in three_methods(name)]
    html = write_comparison(tmp_path, compared(runs)).read_text()
    text = (tmp_path / "table.md").read_text()
    assert "| flow | average | 92.0 | 6 |" in text
    assert "## Against flow, over data sets" in text
    assert "| linear | −21.00 | 3 | 0.25 | 0.25 | too few pairs to say |" in text
    assert "For p below 0.05 at all, 6 data sets must differ" in text
    assert html.count("<h2>Learning curves: ") == 3


def test_without_a_test_set_nothing_is_tested_and_the_table_says_so(tmp_path: Path):
    runs = [
        RunOutcome(dataset="Mine", method=method, seed=0, score=0.5)
        for method in ("flow", "linear")
    ]
    write_comparison(tmp_path, compared(runs, has_test=False))
    text = (tmp_path / "table.md").read_text()
    assert "Validation accuracy (no test set)" in text
    assert "Nothing is tested on the cases of a test set: there is no test set." in text


def test_the_published_protocol_warns_of_its_tests(tmp_path: Path):
    write_comparison(tmp_path, compared(three_methods(), protocol="published"))
    assert "The test set chose the weights of every run" in (tmp_path / "table.md").read_text()


def test_one_method_is_not_tested(tmp_path: Path):
    write_comparison(tmp_path, compared([outcome("flow", 0, 0.9)]))
    assert "there is one method only" in (tmp_path / "table.md").read_text()


COST = {
    "machine": {"cores": 2},
    "setting": {"dim": 512, "time_limit": 60},
    "cells": [
        {
            "mixer": mixer,
            "length": length,
            "pass_name": pass_name,
            "seconds": None if problem else length / 1e5,
            "memory": None if problem else length * 2**12,
            "problem": problem,
        }
        for mixer in ("flow", "softmax")
        for length in (256, 512)
        for pass_name in ("forward", "training")
        for problem in ["over 60 s" if (mixer, length) == ("softmax", 512) else None]
    ],
}


def test_a_cost_measurement_becomes_a_part_of_the_page(tmp_path: Path):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(COST))
    runs = compared(three_methods())
    html = write_comparison(tmp_path, runs, cost=MixerCost.read(path)).read_text()
    assert "Time and memory over length" in html
    assert '<td class="number">2.56 ms, 1 MiB</td>' in html
    assert "over 60 s" in html
    assert "dim 512, time limit 60" in html


@pytest.mark.parametrize(
    "text", ["[", "[]", "{}", json.dumps({**COST, "cells": [{"mixer": "flow"}]})]
)
def test_what_is_no_cost_measurement_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"expected what python -m benchmarks mixer_cost writes"):
        MixerCost.read(path)


def test_curves_are_the_mean_over_the_seeds():
    runs = [outcome("flow", seed, accuracy) for seed, accuracy in enumerate((0.8, 0.9))]
    histories = [run.history for run in runs if run.history is not None]
    figure = method_curves({"flow": histories}, held_out="validation", target=0.95)
    _, accuracy = figure.axes
    curve, target = accuracy.lines
    assert curve.get_ydata() == pytest.approx(0.85 - 0.1 / np.arange(1, 4))
    assert target.get_ydata() == pytest.approx([0.95, 0.95])


def test_a_method_looks_alike_in_every_figure_and_no_two_look_alike():
    methods = [f"method{at}" for at in range(28)]
    cells = compared([outcome(method, 0, 0.5) for method in methods]).cells
    figure: Any = score_against_cost(cells)
    left, right = (
        [(c.lines[0].get_color(), c.lines[0].get_marker()) for c in axes.containers]
        for axes in figure.axes
    )
    assert left == right
    assert len(set(left)) == len(methods)


def test_a_line_ends_where_the_mixer_did_not_fit():
    figure = cost_over_length([CostCell(**cell) for cell in COST["cells"]])
    ends = {line.get_label(): np.asarray(line.get_xdata())[-1] for line in figure.axes[0].lines}
    assert ends == {"flow": 512, "softmax": 256}


def test_a_figure_that_is_far_too_large_is_readable():
    assert PERPLEXITY.show(92475713881.21) == "9.25e+10"
    assert PERPLEXITY.show(24.371) == "24.37"
    assert ACCURACY.show(0.98149) == "98.1"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def three_sets() -> list[RunOutcome]:
    """Return three methods on two data sets, three seeds each."""
    figures = {"flow": 0.9, "linear_heads": 0.7, "softmax": 0.8}
    return [
        outcome(method, seed, accuracy + 0.01 * (seed + 1) * at + 0.01 * seed, dataset)
        for seed in range(3)
        for at, (method, accuracy) in enumerate(figures.items())
        for dataset in ("A", "B_1")
    ]


def test_a_paper_gets_every_run_and_every_pair(tmp_path: Path):
    write_comparison(tmp_path, compared(three_sets()))
    runs, tests = read_csv(tmp_path / "runs.csv"), read_csv(tmp_path / "tests.csv")
    assert len(runs) == 18
    assert (runs[0]["dataset"], runs[0]["method"], runs[0]["seed"]) == ("A", "flow", "0")
    assert float(runs[0]["score"]) == pytest.approx(0.9)
    assert len(tests) == 3 * (1 + 2 + 2)  # over data sets; over seeds and cases of each set
    seeds = [row for row in tests if (row["over"], row["dataset"]) == ("seeds", "A")]
    assert [(row["method"], row["baseline"]) for row in seeds] == [
        ("linear_heads", "flow"),
        ("softmax", "flow"),
        ("softmax", "linear_heads"),
    ]
    assert all(float(row["corrected"]) >= float(row["p"]) for row in tests)


def test_a_paper_gets_a_table_with_the_best_in_bold(tmp_path: Path):
    write_comparison(tmp_path, compared(three_sets()))
    text = (tmp_path / "table.tex").read_text()
    assert r"method & A & B\_1 & average \\" in text
    assert r"flow & \textbf{91.0} $\pm$ 1.0 &" in text
    assert r"softmax & \underline{85.0} $\pm$ 3.0 &" in text
    assert r"linear\_heads & 73.0 $\pm$ 2.0 &" in text


def test_equal_figures_are_marked_alike_and_missing_ones_are_dashes():
    runs = [outcome("flow", 0, 0.9), outcome("linear", 0, 0.9), outcome("softmax", 0, None)]
    text = to_latex(compared(runs))
    assert text.count(r"\textbf{90.0}") == 2
    assert r"softmax & -- \\" in text


def test_the_lower_is_the_better_where_the_measure_says_so():
    runs = [outcome("flow", 0, 9.0), outcome("linear", 0, 7.0)]
    assert r"linear & \textbf{7.00}" in to_latex(compared(runs, measure=PERPLEXITY))


def test_a_paper_gets_curves_and_ranks_as_pdf_and_png(tmp_path: Path):
    write_comparison(tmp_path, compared(three_sets()))
    for name in ("curves-A", "curves-B_1", "critical-difference"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_diagram_of_ranks_needs_methods_that_have_finished_every_set():
    assert critical_difference(compared(three_methods())) is None  # of one data set
    assert critical_difference(compared([*three_methods("A"), *three_methods("B")])) is None


def test_a_comparison_is_read_as_data_frames(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"has no runs\.csv"):
        read(tmp_path)
    write_comparison(tmp_path, compared(three_sets()))
    metrics = tmp_path / "runs/A/flow-seed1/metrics.csv"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("epoch,train_loss\n1,0.5\n2,0.4\n")
    frames = read(tmp_path)
    assert len(frames.runs) == 18
    assert frames.table.set_index(["method", "dataset"]).loc[("flow", "A"), "mean"] == 0.91
    assert set(frames.tests["over"]) == {"data sets", "seeds", "test cases"}
    assert frames.curves.to_dict("list") == {
        "epoch": [1, 2],
        "train_loss": [0.5, 0.4],
        "dataset": ["A", "A"],
        "method": ["flow", "flow"],
        "seed": [1, 1],
    }
