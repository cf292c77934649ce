"""The report of a run: its figures, and the flow maps of a few test series."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from flowformer.data import SeriesDataset, TimeSeriesData
from flowformer.models.series.model import TimeSeriesClassifier
from flowformer.report.classifier import write_report
from flowformer.report.figures import SeriesFlowMap
from flowformer.train.folder import holds_folder
from flowformer.train.prediction import Run, load_run, predict_probabilities
from flowformer.train.series.data import load_again


@holds_folder
def write_run_report(
    run_dir: str | Path, *, num_series: int = 4, data: TimeSeriesData | None = None
) -> Path:
    """Writes the report of a finished run.

    Args:
        run_dir: folder of the run.
        num_series: test series of which to draw flow maps; there are none for a mixer other than
            flow.
        data: the series, where they were given to `train`.

    Returns:
        The HTML page.

    Raises:
        BlockingIOError: another process writes to the folder.
        FileNotFoundError: there is no finished run.
        ValueError: a file of the run is damaged, or its series were given in Python, and not here.
    """
    run = load_run(run_dir)
    maps: list[SeriesFlowMap] = []
    is_flow = isinstance(run.model, TimeSeriesClassifier) and run.config.model.mixer == "flow"
    if is_flow and num_series > 0:
        if data is None:
            remedy = "give them here too (data=...), or draw no flow maps (--num-series 0)"
            data = load_again(run.config.data, run_dir, instead=remedy)
        maps = _flow_maps(run, data, num_series)
    return write_report(Path(run_dir), flow_maps=maps)


def _flow_maps(run: Run, data: TimeSeriesData, count: int) -> list[SeriesFlowMap]:
    assert isinstance(run.model, TimeSeriesClassifier)
    if data.test is None:
        return []
    test = SeriesDataset(data.test, run.preprocessing)
    predicted = predict_probabilities(run.model, test, batch_size=run.config.data.batch_size)
    predicted = predicted.argmax(axis=1)
    maps = []
    for index in choose_series(data.test.labels, predicted, count):
        series = test.series[index]
        # One by one, without padding: what is drawn is this series and nothing else.
        layers = run.model.flow_maps(series[None])
        length = len(series)
        maps.append(
            SeriesFlowMap(
                series=data.test.series[index].T,
                label=run.classes[data.test.labels[index]],
                predicted=run.classes[predicted[index]],
                source_competition=torch.stack(
                    [layer.source_competition[0, :length] for layer in layers]
                ).numpy(),
                sink_allocation=torch.stack(
                    [layer.sink_allocation[0, :length] for layer in layers]
                ).numpy(),
                index=index,
            )
        )
    return maps


def choose_series(
    labels: Int64[np.ndarray, " n"], predicted: Int64[np.ndarray, " n"], count: int
) -> list[int]:
    """Returns the first mistake, if any, the first of further classes, then whichever follow."""
    mistakes = np.flatnonzero(labels != predicted)[:1].tolist()
    firsts = np.unique(labels, return_index=True)[1].tolist()
    chosen = mistakes + [i for i in firsts if not mistakes or labels[i] != labels[mistakes[0]]]
    chosen += [index for index in range(len(labels)) if index not in chosen]
    return chosen[:count]
