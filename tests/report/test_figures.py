import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import LogNorm
from numpy.testing import assert_array_equal

from flowformer.report.figures import (
    MOST_LINES,
    confusion_matrix,
    flow_map,
    learning_curves,
    png_bytes,
)

HISTORY = {
    "epoch": np.arange(1.0, 6.0),
    "train_loss": np.array([2.0, 1.0, 0.5, 0.3, 0.2]),
    "train_accuracy": np.array([0.3, 0.6, 0.8, 0.9, 1.0]),
    "validation_loss": np.array([2.1, 1.2, 0.8, 0.7, 0.7]),
    "validation_accuracy": np.array([0.2, 0.5, 0.7, 0.8, 0.75]),
}


def _texts(axes):
    return {text.get_text() for text in axes.texts}


def test_learning_curves_draw_the_history_the_kept_epoch_and_the_target():
    figure = learning_curves(HISTORY, kept=4, held_out="held out", target=0.989)
    loss, accuracy = figure.axes
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        lines = {str(line.get_label()): line for line in axes.lines}
        assert_array_equal(lines["training"].get_ydata(), HISTORY[f"train_{quantity}"])
        assert_array_equal(lines["held out"].get_ydata(), HISTORY[f"validation_{quantity}"])
        assert [4, 4] in [list(np.asarray(line.get_xdata())) for line in axes.lines]
    assert _texts(loss) == {"kept: epoch 4"}
    (paper,) = [line for line in accuracy.lines if line.get_label() == "paper"]
    assert_array_equal(paper.get_ydata(), [0.989, 0.989])


def test_the_note_of_the_kept_epoch_stands_above_a_loss_that_stays_high():
    flat = HISTORY | {f"{split}_loss": np.full(5, 2.2) for split in ("train", "validation")}
    figure = learning_curves(flat, kept=4)
    loss = figure.axes[0]
    png_bytes(figure)  # lays it out
    (note,) = loss.texts
    assert note.get_window_extent().y0 > loss.transData.transform((4, 2.2))[1]


def test_learning_curves_draw_no_target_that_is_not_known():
    accuracy = learning_curves(HISTORY, kept=4).axes[1]
    assert "paper" not in [line.get_label() for line in accuracy.lines]


def test_learning_curves_leave_a_gap_where_an_epoch_was_not_measured():
    gap = HISTORY | {"validation_loss": np.array([2.1, np.nan, np.nan, 0.7, 0.7])}
    assert png_bytes(learning_curves(gap, kept=4))


def test_confusion_matrix_shows_counts_and_colours_by_the_share_of_the_true_class():
    axes = confusion_matrix(np.array([[30, 10], [0, 5]]), ["a", "b"]).axes[0]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "30"),
        ((1, 0), "10"),
        ((1, 1), "5"),
    }
    assert_array_equal(np.asarray(axes.images[0].get_array()), [[0.75, 0.25], [0.0, 1.0]])


def test_confusion_matrix_takes_a_class_without_cases():
    axes = confusion_matrix(np.array([[3, 0], [0, 0]]), ["a", "absent"]).axes[0]
    assert_array_equal(np.asarray(axes.images[0].get_array()), [[1, 0], [0, 0]])


def test_class_names_are_drawn_as_they_are():
    names = ["$x^{", r"a\b_c"]  # would be a syntax error of matplotlib's mathematics
    figure = confusion_matrix(np.eye(2, dtype=np.int64), names)
    assert png_bytes(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names


def test_a_flow_map_has_one_row_a_head_under_the_series_on_one_time_axis(make_flow_map):
    flow = make_flow_map(time=19, channels=3, layers=2, heads=4)
    series, competition, allocation = flow_map(flow).axes[:3]
    assert len(series.lines) == 3
    assert_array_equal(series.lines[1].get_ydata(), flow.series[:, 1])
    for axes, values in (
        (competition, flow.source_competition),
        (allocation, flow.sink_allocation),
    ):
        rows = np.asarray(axes.images[0].get_array())
        assert rows.shape == (8, 19)
        assert_array_equal(rows[4 + 2], values[1, :, 2])  # layer 2, head 3
        assert axes.get_xlim() == series.get_xlim()
        assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 1", "layer 2"]


@pytest.mark.parametrize("peak", [1.0, 1.5, 1e4], ids=["flat", "mild", "spiked"])
def test_an_even_share_is_white_whatever_the_spread(make_flow_map, peak):
    competition = np.ones((2, 24, 8))
    competition[:, 3] = peak
    competition[:, 4] = 1 / peak
    norm = flow_map(make_flow_map(source_competition=competition)).axes[1].images[0].norm
    assert isinstance(norm, LogNorm)
    assert norm(1.0) == pytest.approx(0.5)


def test_a_competition_of_zero_is_drawn(make_flow_map):
    competition = np.ones((2, 24, 8))
    competition[:, 5] = 0.0  # what exp of a very negative score rounds to
    assert png_bytes(flow_map(make_flow_map(source_competition=competition)))


def test_many_channels_become_a_heat_map(make_flow_map):
    flow = make_flow_map(channels=MOST_LINES + 1)
    series = flow_map(flow).axes[0]
    assert not series.lines
    assert_array_equal(np.asarray(series.images[0].get_array()), flow.series.T)


@pytest.mark.parametrize(
    ("time", "channels", "layers", "heads"),
    [
        pytest.param(1, 1, 1, 1, id="one-of-everything"),
        pytest.param(63, 2, 6, 3, id="deep"),
        pytest.param(500, 963, 2, 8, id="wide"),
    ],
)
def test_any_shape_of_flow_map_is_a_png(make_flow_map, time, channels, layers, heads):
    flow = make_flow_map(time=time, channels=channels, layers=layers, heads=heads)
    assert png_bytes(flow_map(flow)).startswith(b"\x89PNG\r\n")


def test_missing_values_of_a_series_are_gaps(make_flow_map):
    series = np.ones((24, 2))
    series[3:5, 0] = np.nan
    assert png_bytes(flow_map(make_flow_map(series=series)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"series": np.zeros(24)}, r"series must be \[time, channels\]", id="series"),
        pytest.param(
            {"series": np.zeros((23, 12))},
            r"source_competition must be .* time = 23 as in series, got shape \(2, 24, 8\)",
            id="time",
        ),
        pytest.param(
            {"sink_allocation": np.ones((2, 24, 7))},
            r"sink_allocation must have the shape .* got \(2, 24, 7\)",
            id="heads",
        ),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_a_flow_map_whose_parts_disagree_is_an_error(make_flow_map, changes, message):
    with pytest.raises(ValueError, match=message):
        make_flow_map(**changes)


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys, numpy as np\n"
        "from flowformer.report.figures import confusion_matrix, png_bytes\n"
        "png_bytes(confusion_matrix(np.eye(2, dtype=int), ['a', 'b']))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
