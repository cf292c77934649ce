"""The report of a run that predicts numbers: its errors, predictions against labels, flow maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from flowformer.config_json import flatten
from flowformer.report.classifier import HELD_OUT, flow_map_parts
from flowformer.report.curves import method_curves
from flowformer.report.figures import BLUE, GREY, SeriesFlowMap, flow_map, plain, png_bytes
from flowformer.report.page import (
    heading,
    headline,
    paragraph,
    picture,
    save_with_pictures,
    settings,
    table,
)
from flowformer.report.words import duration
from flowformer.scores.measures import RMSE
from flowformer.scores.metrics import RegressionMetrics, regression_metrics

_WORST = 10  # cases that a table lists

Numbers = Float[np.ndarray, " n"]


def write_regression_report(
    folder: Path,
    *,
    record: Mapping[str, Any],
    result: Mapping[str, Any],
    history: Mapping[str, Float[np.ndarray, " rounds"]],
    test: tuple[Numbers, Numbers] | None,
    flow_maps: Sequence[SeriesFlowMap] = (),
) -> Path:
    """Write FOLDER/index.html, one file that stands alone, and its figures.

    Args:
        folder: the report's folder.
        record: the content of config.json.
        result: the content of result.json.
        history: the columns of metrics.csv.
        test: labels and predictions of the test set; None without one.
        flow_maps: test series to draw flow maps of.

    Returns:
        The page.
    """
    recipe, held_out = str(result["recipe"]), HELD_OUT[result["protocol"]]
    metrics = None if test is None else regression_metrics(*test)
    curves = method_curves({recipe: [history]}, RMSE, held_out=held_out)
    pictures = {"learning-curves.png": png_bytes(curves)}
    if test is not None:
        pictures["predictions.png"] = png_bytes(predictions_figure(*test))
    pictures |= {f"flow-map-{at}.png": png_bytes(flow_map(m)) for at, m in enumerate(flow_maps, 1)}
    return save_with_pictures(
        folder,
        recipe,
        [
            paragraph(f"{result['protocol_note']}.", soft=True),
            headline(_cards(result, metrics)),
            *(_predictions(*test, pictures["predictions.png"]) if test is not None else []),
            heading("Learning curves"),
            picture(
                pictures["learning-curves.png"],
                alt=f"Training loss and {held_out} RMSE over the epochs.",
            ),
            *flow_map_parts(flow_maps, pictures),
            heading("Settings"),
            settings(flatten(record["config"])),
        ],
        pictures,
    )


def predictions_figure(labels: Numbers, predicted: Numbers) -> Figure:
    """Draw predictions over labels, with the line on which both are equal."""
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = figure.subplots()
    ends = [
        float(min(labels.min(), predicted.min())),
        float(max(labels.max(), predicted.max())),
    ]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=":")
    axes.plot(labels, predicted, "o", color=BLUE, markersize=4, alpha=0.6, markeredgewidth=0)
    plain(axes, title="Test series")
    axes.set_xlabel("label", fontsize=9)
    axes.set_ylabel("prediction", fontsize=9)
    return figure


def _cards(
    result: Mapping[str, Any], metrics: RegressionMetrics | None
) -> list[tuple[str, str, str]]:
    protocol = f"{result['protocol']} protocol"
    kept = (
        "Epoch kept",
        f"{result['best_epoch']:,}",
        f"of {result['epochs']:,}; {duration(result['seconds'])}, seed {result['seed']}",
    )
    if metrics is None:
        note = "of the series that chose the weights; there was no test set"
        error = RMSE.show(result["validation_rmse"])
        return [(f"Validation RMSE, {protocol}", error, note), kept]
    r2 = "" if metrics.r2 is None else f", R² {metrics.r2:.3f}"
    note = f"of {metrics.count} series; mean absolute error {RMSE.show(metrics.mae)}{r2}"
    return [(f"Test RMSE, {protocol}", RMSE.show(metrics.rmse), note), kept]


def _predictions(labels: Numbers, predicted: Numbers, png: bytes) -> list[str]:
    worst = np.argsort(-np.abs(predicted - labels), kind="stable")[:_WORST]
    rows = [
        [str(index), RMSE.show(float(labels[index])), RMSE.show(float(predicted[index]))]
        for index in worst.tolist()
    ]
    return [
        heading("Predictions"),
        picture(png, alt=f"Predictions of {len(labels)} test series over their labels."),
        paragraph("The largest errors:"),
        table(("series", "label", "prediction"), rows),
    ]
