"""The report of a finished run: one HTML page that stands alone, and its figures as PNG files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flowformer.config_json import flatten
from flowformer.report.attention_maps import AttentionPicture, attention_parts
from flowformer.report.figures import (
    SeriesFlowMap,
    confusion_matrix,
    flow_map,
    learning_curves,
    png_bytes,
)
from flowformer.report.page import (
    details,
    heading,
    headline,
    paragraph,
    picture,
    save_with_pictures,
    table,
)
from flowformer.scores.metrics import ClassificationMetrics, classification_metrics

# What the validation columns of metrics.csv were measured on.
HELD_OUT: Mapping[str, str] = {"clean": "validation", "published": "test (chose the weights)"}
# Of config.json, what is shown elsewhere.
_NO_SETTINGS = ("recipe", "config", "versions", "classes")
FLOW_MAP_NOTE = (
    "Each row is one head of a layer, on the time axis of the series above it. Source competition "
    "shows which steps the head draws on (dark red: many times an even share; dark blue: next to "
    "nothing), sink allocation how wide each step opens to what reaches it (yellow: widest)."
)


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a run of a classifier has left; accuracies are fractions.

    Attributes:
        record: what config.json holds.
        result: what result.json holds.
        history: the columns of metrics.csv.
        test: the labels and the predictions of the test set, as indices into the classes of the
            record; None when there was no test set.
        over: what the training counts, and the curves are drawn over: epoch or step.
        kept: the epoch or step whose parameters were kept.
        cases: what was classified, in the plural.
    """

    record: Mapping[str, Any]
    result: Mapping[str, Any]
    history: Mapping[str, Float[np.ndarray, " rounds"]]
    test: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]] | None
    over: str = "epoch"
    kept: int
    cases: str = "series"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.record["classes"])


def write_report(
    folder: Path,
    run: FinishedRun,
    *,
    flow_maps: Sequence[SeriesFlowMap] = (),
    attention: Sequence[AttentionPicture] = (),
) -> Path:
    """Write FOLDER/index.html and its figures from what a finished run has left.

    The page embeds its figures, so it can be sent as one file. Each file appears whole or not at
    all, index.html last.

    Args:
        folder: the folder of the report.
        run: the finished run.
        flow_maps: the test series to draw flow maps of; without any, the page has no such part.
        attention: what the run's model attends to in images; without any, likewise.

    Returns:
        The path of index.html.
    """
    metrics = classification_metrics(*run.test, run.classes) if run.test else None
    pictures = {
        "learning-curves.png": png_bytes(
            learning_curves(
                run.history,
                kept=run.kept,
                over=run.over,
                held_out=HELD_OUT[run.result["protocol"]],
                target=run.result["paper_accuracy"],
            )
        ),
    }
    if metrics is not None:
        matrix = confusion_matrix(metrics.confusion, run.classes)
        pictures["confusion-matrix.png"] = png_bytes(matrix)
    for at, flow in enumerate(flow_maps, 1):
        pictures[f"flow-map-{at}.png"] = png_bytes(flow_map(flow))
    shown: list[str] = []
    if attention:
        files, parts = attention_parts([[each] for each in attention])
        pictures |= files
        shown = [heading("What the layers attend to"), *parts]
    parts = [
        *_headline(run, metrics),
        *_curves(run, pictures["learning-curves.png"]),
        *(_classes(run, metrics, pictures["confusion-matrix.png"]) if metrics else ()),
        *flow_map_parts(flow_maps, pictures),
        *shown,
        *_settings(run),
    ]
    return save_with_pictures(folder, run.result["recipe"], parts, pictures)


def _headline(run: FinishedRun, metrics: ClassificationMetrics | None) -> Iterator[str]:
    result = run.result
    protocol = f"{result['protocol']} protocol"
    # Wherever an accuracy is shown, the protocol that it was measured under stands beside it.
    yield paragraph(f"{protocol.capitalize()}: {result['protocol_note']}.", soft=True)
    if metrics is None:
        note = f"of the {run.cases} that chose the weights; there was no test set"
        cards = [
            (f"Validation accuracy, {protocol}", _percent(result["validation_accuracy"]), note)
        ]
    else:
        note = f"{metrics.correct} of {metrics.count} {run.cases}; {_uncertainty(run, metrics)}"
        cards = [(f"Test accuracy, {protocol}", _percent(metrics.accuracy), note)]
    if result["paper_accuracy"] is not None:
        note = result["paper_source"] or "source not given"
        if metrics is not None:  # a validation accuracy is no match for a test accuracy
            points = f"{100 * (metrics.accuracy - result['paper_accuracy']):+.1f} points"
            note += f"; this run: {points.replace('-', '−')}"
        name = "The paper's accuracy, by its own protocol"
        cards.append((name, _percent(result["paper_accuracy"]), note))
    total = run.history[run.over][-1]
    kept = f"of {total:,.0f}; {_duration(result['seconds'])}, seed {result['seed']}"
    cards.append((f"{run.over.capitalize()} kept", f"{run.kept:,}", kept))
    yield headline(cards)


def _uncertainty(run: FinishedRun, metrics: ClassificationMetrics) -> str:
    if run.result["protocol"] == "published":
        # A binomial interval is for one look at the test set, not for the best of many.
        return f"the best of {run.result['epochs']} looks at them, so without an interval"
    low, high = _percent(metrics.accuracy_low), _percent(metrics.accuracy_high)
    return f"{metrics.confidence:.0%} interval {low} to {high}"


def _curves(run: FinishedRun, png: bytes) -> Iterator[str]:
    held_out = HELD_OUT[run.result["protocol"]]
    train, validation = (run.history[f"{s}_accuracy"][-1] for s in ("train", "validation"))
    yield heading("Learning curves")
    yield picture(
        png,
        alt=f"Loss and accuracy over {run.history[run.over][-1]:,.0f} {run.over}s. At the end: "
        f"training accuracy {_percent(train)}, {held_out} accuracy {_percent(validation)}. "
        f"{run.over.capitalize()} {run.kept:,} was kept.",
    )


def _classes(run: FinishedRun, metrics: ClassificationMetrics, png: bytes) -> Iterator[str]:
    yield heading("Confusion matrix and classes")
    yield picture(
        png,
        alt=f"Confusion matrix: {metrics.correct} of {metrics.count} test {run.cases} lie on the "
        "diagonal. The table below has the figures of each class.",
    )
    yield table(
        ("class", run.cases, "precision", "recall", "F1"),
        [
            (of.name, str(of.support), *map(_percent, (of.precision, of.recall, of.f1)))
            for of in metrics.per_class
        ],
    )
    yield paragraph(f"Macro F1, the mean over the classes: {_percent(metrics.macro_f1)}.")


def flow_map_parts(
    flow_maps: Sequence[SeriesFlowMap], pictures: Mapping[str, bytes]
) -> Iterator[str]:
    """Yield the part of a report with flow maps; nothing where there are none.

    Args:
        flow_maps: the maps.
        pictures: their pictures, flow-map-1.png and so on.
    """
    if not flow_maps:
        return
    yield heading("Flow maps of test series")
    yield paragraph(FLOW_MAP_NOTE)
    for at, flow in enumerate(flow_maps, 1):
        layers, steps, heads = flow.source_competition.shape
        winner = int(flow.source_competition.mean(axis=(0, 2)).argmax())
        yield picture(
            pictures[f"flow-map-{at}.png"],
            alt=f"Flow map of a series of {'label' if flow.numbers else 'class'} {flow.label}, "
            f"predicted {flow.predicted}: {steps} time steps, {layers} layers of {heads} heads. "
            f"Step {winner} wins the largest share of the competition on average.",
        )


def _settings(run: FinishedRun) -> Iterator[str]:
    yield heading("Settings")
    summary = {"classes": len(run.classes), "parameters": f"{run.result['parameters']:,}"}
    # What the data are: of series channels and the longest, of other cases what they have.
    own = {key: value for key, value in run.record.items() if key not in _NO_SETTINGS}
    flat = {**summary, **flatten(own), **flatten(run.record["config"])}
    yield table(("setting", "value"), [(k, str(v)) for k, v in flat.items()], numbers_from=2)
    versions = [(name, str(version)) for name, version in run.record["versions"].items()]
    yield details("Versions", table(("package", "version"), versions, numbers_from=2))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
