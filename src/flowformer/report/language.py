"""The report of a language model's run: its figures, curves, and samples of its texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flowformer.config_json import flatten
from flowformer.report import page
from flowformer.report.curves import method_curves
from flowformer.report.figures import png_bytes
from flowformer.report.words import duration
from flowformer.scores.measures import Measure


def write_language_report(
    folder: Path,
    *,
    measure: Measure,
    result: Mapping[str, Any],
    config: Mapping[str, Any],
    history: Mapping[str, Float[np.ndarray, " rounds"]],
    samples: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write FOLDER/index.html, one file that stands alone.

    Args:
        folder: the report's folder.
        measure: the measure of the run.
        result: the content of result.json.
        config: the configuration in config.json.
        history: the columns of metrics.csv.
        samples: prompts, and the model's continuation of each.

    Returns:
        The page.
    """
    recipe = str(result["recipe"])
    curves = method_curves({recipe: [history]}, measure, held_out="validation")
    name = f"{measure.name[0].upper()}{measure.name[1:]}"
    return page.save(
        folder,
        recipe,
        [
            page.paragraph(f"{result['protocol_note']}.", soft=True),
            page.headline(_cards(measure, result)),
            page.heading("Learning curves"),
            page.picture(
                png_bytes(curves),
                alt=f"Training loss and validation {measure.name} over the measurements.",
            ),
            *([page.heading("Samples"), *_samples(samples)] if samples else []),
            page.heading("Settings"),
            page.settings(flatten(config)),
            page.details(
                f"{name} after each measurement",
                page.table(("step", "training loss", name), _rows(measure, history)),
            ),
        ],
        of=": run report",
    )


def _cards(measure: Measure, result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    paper = result["paper_perplexity"]
    beside = "" if paper is None else f"; the paper's perplexity is {paper}"
    score = measure.show(result["test_score"]) + measure.unit
    return [
        (f"Test {measure.name}", score, f"step {result['best_step']} of {result['steps']}{beside}"),
        ("Parameters", f"{result['parameters']:,}", f"trained in {duration(result['seconds'])}"),
        (
            "Tokens a second",
            f"{result['tokens_per_second']:,.0f}",
            f"of training, on {result['device']}, {result['threads']} threads",
        ),
    ]


def _samples(samples: Sequence[tuple[str, str]]) -> list[str]:
    return [
        page.paragraph("Drawn with temperature 0.8 and seed 0.", soft=True),
        page.table(("prompt", "what follows"), samples, numbers_from=2),
    ]


def _rows(measure: Measure, history: Mapping[str, Float[np.ndarray, " rounds"]]) -> list[list[str]]:
    columns = (history["step"], history["train_loss"], history[measure.column])
    return [
        [f"{step:,.0f}", f"{loss:.4f}", measure.show(score)]
        for step, loss, score in zip(*columns, strict=True)
    ]
