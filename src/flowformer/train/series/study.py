"""Training a time-series classifier from a configuration to a run folder."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from flowformer.data import EpochSampler, SeriesDataset, TimeSeriesData, collate
from flowformer.models.series.model import SeriesClassifier, build_classifier
from flowformer.train.classification import ClassificationTask, Tested, write_outcome
from flowformer.train.config import HELD_OUT, NO_TEST_NOTE, TimeSeriesConfig
from flowformer.train.digests import digest_series
from flowformer.train.folder import (
    RunFolder,
    RunRecord,
    RunResult,
    has_ended,
    holds_folder,
    open_folder,
    read_versions,
    write_json,
)
from flowformer.train.loop.fit import fit, keep_best, torch_settings
from flowformer.train.loop.optimizers import build_constant
from flowformer.train.loop.recording import EpochRecorder, count_parameters
from flowformer.train.prediction import choose_device, predict_probabilities
from flowformer.train.processes.group import current
from flowformer.train.series.data import Prepared, load_again, load_data, prepare

logger = logging.getLogger(__name__)


@holds_folder
def train(
    config: TimeSeriesConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    data: TimeSeriesData | None = None,
) -> RunResult:
    """Trains a classifier and writes the run folder.

    Killed at any moment, a run that is resumed ends bitwise as it would have without the kill (on
    the CPU, with as many threads): all randomness is a function of the seed and the epoch, and
    every epoch ends with a checkpoint.

    Args:
        config: the experiment.
        run_dir: folder of the run; made when missing.
        resume: go on with the run in `run_dir`; where there is none yet, start it.
        data: the series, in place of those that `config.data` names. The run records that they
            were given in Python: nothing takes the named ones for those it was trained on.

    Returns:
        The figures, as in result.json.

    Raises:
        BlockingIOError: another process writes to `run_dir`.
        FileExistsError: `run_dir` holds something already, and `resume` was not asked for.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM came; its code is 143.
        NonFiniteLossError: the loss became NaN or infinite; the batch is saved in the folder.
        ShareDoneError: in all processes but the first, once the training has ended.
        ValueError: the configuration does not fit the data, or not the run to be resumed, or a file
            of that run is damaged.
    """
    folder = RunFolder(Path(run_dir))
    group = current()
    started = group.agree(lambda: folder.begin(resume=resume))
    device = choose_device(config.training.accelerator)
    if data is not None:
        config = replace(config, data=config.data.without_source())
    else:
        with group.first_alone():  # it fetches what there is to fetch
            data = _load(config, folder, again=started)
    prepared = prepare(config, data)
    record = _record(config, data, prepared)
    digests = group.agree(lambda: digest_series(config, data))
    if started and has_ended(folder, record, digests):
        return RunResult.read(folder)
    with torch_settings(config.training.threads):
        torch.manual_seed(config.training.seed)
        model = build_classifier(
            config.model,
            channels=data.channels,
            num_classes=len(data.classes),
            max_length=prepared.max_length,
        )
        if group.is_first:
            open_folder(folder, record, digests, started=started)
            write_json(folder.preprocessing, prepared.preprocessing.to_dict())
        logger.info(
            "%s: %d series to train on, %d for %s, %d parameters, folder %s",
            *(config.name, len(prepared.train), len(prepared.validation)),
            *(HELD_OUT[config.training.protocol], count_parameters(model), folder.root),
        )
        recorder = fit(
            ClassificationTask(
                model,
                lambda model: build_constant(model.parameters(), config.optimizer),
                seed=config.training.seed,
            ),
            folder,
            config.training,
            train=_loader(prepared.train, config, shuffle=True),
            validation=_loader(prepared.validation, config, shuffle=False),
            held_out=HELD_OUT[config.training.protocol],
            gradient_clip=config.optimizer.gradient_clip,
        )
        return _finish(model.to(device), config, data, prepared, folder, recorder)


def _load(config: TimeSeriesConfig, folder: RunFolder, *, again: bool) -> TimeSeriesData:
    if again:
        remedy = "give them again (data=...) to go on"
        return load_again(config.data, folder.root, instead=remedy)
    return load_data(config.data)


def _record(config: TimeSeriesConfig, data: TimeSeriesData, prepared: Prepared) -> RunRecord:
    return RunRecord(
        recipe=config.name,
        config=config,
        versions=read_versions(),
        classes=data.classes,
        channels=data.channels,
        max_length=prepared.max_length,
        sizes={
            "train": len(prepared.train),
            "validation": len(prepared.validation),
            "test": 0 if data.test is None else len(data.test),
        },
    )


def _loader(series: SeriesDataset, config: TimeSeriesConfig, *, shuffle: bool) -> DataLoader:
    sampler = EpochSampler(len(series), config.training.seed) if shuffle else None
    return DataLoader(series, config.data.batch_size, sampler=sampler, collate_fn=collate)


def _finish(
    model: SeriesClassifier,
    config: TimeSeriesConfig,
    data: TimeSeriesData,
    prepared: Prepared,
    folder: RunFolder,
    recorder: EpochRecorder,
) -> RunResult:
    keep_best(model, folder)
    tested = None
    if data.test is not None:
        test = SeriesDataset(data.test, prepared.preprocessing)
        probabilities = predict_probabilities(model, test, batch_size=config.data.batch_size)
        tested = Tested(probabilities=probabilities, labels=data.test.labels)
    # A configuration cannot know of data given in Python.
    note = NO_TEST_NOTE if tested is None else config.protocol_note
    return write_outcome(
        config, model, folder, recorder, classes=data.classes, tested=tested, note=note
    )
