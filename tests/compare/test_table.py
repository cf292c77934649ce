"""The table of a comparison: means, spreads, what did not finish."""

import csv
import io

import pytest

from flowformer.compare.table import (
    AVERAGE,
    Cell,
    RunOutcome,
    average_over_datasets,
    summarize,
    to_csv,
    to_rows,
    unfinished_rows,
)
from flowformer.report.words import duration, memory, to_markdown


def run(
    method: str, seed: int, accuracy: float | None, dataset: str = "vowels", **more
) -> RunOutcome:
    problem = None if accuracy is not None else "failed"
    return RunOutcome(
        **{
            "dataset": dataset,
            "method": method,
            "seed": seed,
            "score": accuracy,
            "problem": problem,
            **more,
        }
    )


def only(cells: list[Cell]) -> Cell:
    (cell,) = cells
    return cell


def test_a_cell_holds_the_mean_and_the_sample_deviation_over_seeds():
    cell = only(summarize([run("flow", 0, 0.5), run("flow", 1, 0.7), run("flow", 2, 0.9)]))
    assert cell.mean == pytest.approx(0.7)
    assert cell.spread == pytest.approx(0.2)
    assert (cell.finished, cell.planned, cell.problems) == (3, 3, ())


def test_one_run_has_no_spread():
    assert only(summarize([run("flow", 0, 0.5)])).spread is None


def test_costs_are_means_and_memory_is_the_largest():
    runs = [
        run("flow", 0, 0.5, seconds=10.0, step_seconds=0.1, peak_memory=100, parameters=7),
        run("flow", 1, 0.5, seconds=20.0, step_seconds=0.3, peak_memory=300, parameters=7),
        run("flow", 2, 0.5, seconds=None, step_seconds=None, peak_memory=None),
    ]
    cell = only(summarize(runs))
    assert cell.seconds == 15.0
    assert cell.step_seconds == pytest.approx(0.2)
    assert cell.peak_memory == 300
    assert cell.parameters == 7


def test_runs_that_did_not_finish_are_counted_and_say_why_once():
    cell = only(summarize([run("flow", 0, 0.5), run("flow", 1, None), run("flow", 2, None)]))
    assert cell.mean == 0.5
    assert (cell.finished, cell.planned) == (1, 3)
    assert cell.problems == ("failed",)


def test_a_cell_without_a_figure_says_why():
    header, rows = to_rows(summarize([run("flow", 0, 0.5), run("softmax", 0, None)]))
    softmax = dict(zip(header, rows[1], strict=True))
    assert softmax["accuracy, %"] == "failed"
    assert softmax["runs"] == "0 of 1"
    assert softmax["parameters"] == "–"


def test_runs_that_did_not_finish_are_listed_with_error_and_log():
    runs = [
        run("flow", 0, 0.5),
        run("softmax", 1, None, error="ValueError: no", log="runs/vowels/softmax-seed1.log"),
    ]
    header, rows = unfinished_rows(runs)
    assert header == ["method", "data", "seed", "why", "log"]
    assert rows == [
        ["softmax", "vowels", "1", "failed: ValueError: no", "runs/vowels/softmax-seed1.log"]
    ]


def test_columns_without_content_are_left_out():
    header, rows = to_rows(summarize([run("flow", 0, 0.9811)]))
    assert header == [
        "method",
        "accuracy, %",
        "runs",
        "parameters",
        "training",
        "a step",
        "peak memory",
    ]
    assert rows == [["flow", "98.1", "1", "–", "–", "–", "–"]]
    assert "data" in to_rows(summarize([run("flow", 0, 0.5), run("flow", 0, 0.5, "digits")]))[0]
    assert "the paper's, %" in to_rows(summarize([run("flow", 0, 0.5, paper_score=0.9)]))[0]


def test_an_average_needs_every_data_set():
    cells = summarize(
        [
            run("flow", 0, 0.5),
            run("softmax", 0, 0.9),
            run("flow", 0, 0.7, "digits"),
            run("softmax", 0, None, "digits"),
        ]
    )
    averages = average_over_datasets(cells)
    assert [(cell.dataset, cell.method) for cell in averages] == [
        (AVERAGE, "flow"),
        (AVERAGE, "softmax"),
    ]
    assert averages[0].mean == pytest.approx(0.6)
    assert averages[1].mean is None


def test_csv_has_plain_numbers_and_empty_cells():
    text = to_csv(summarize([run("flow", 0, 0.5, peak_memory=2**20), run("softmax", 0, None)]))
    flow, softmax = csv.DictReader(io.StringIO(text))
    assert (flow["mean"], flow["spread"], flow["peak_memory"]) == ("0.5", "", "1048576")
    assert (softmax["mean"], softmax["problems"]) == ("", "failed")


def test_a_bar_in_a_cell_does_not_end_it():
    assert to_markdown(["a"], [["x | y"]]) == "| a |\n| --- |\n| x \\| y |\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01234, "12.3 ms"), (4.564, "4.56 s"), (485, "8 min 5 s"), (7400, "2 h 3 min")],
)
def test_durations_have_the_unit_that_suits_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(2**29, "512 MiB"), (3 * 2**29, "1.50 GiB")])
def test_memory_has_the_unit_that_suits_it(count, text):
    assert memory(count) == text
