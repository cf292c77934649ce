"""Training a classifier of images from a configuration to a run folder."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch.utils.data import DataLoader

from flowformer.data.images.records import ImageData
from flowformer.data.images.transforms import Mixing
from flowformer.models.images.model import VisionClassifier
from flowformer.scores.metrics import top5_accuracy
from flowformer.serialization import to_plain
from flowformer.train.classification import Tested, write_outcome
from flowformer.train.config import HELD_OUT, NO_TEST_NOTE, PROTOCOL_NOTES
from flowformer.train.digests import digest_images
from flowformer.train.folder import (
    RunFolder,
    RunResult,
    has_ended,
    holds_folder,
    open_folder,
    read_versions,
    write_json,
)
from flowformer.train.images.config import VisionConfig
from flowformer.train.images.data import (
    Parts,
    build_vision_model,
    load_images,
    load_start,
    parameter_groups,
    part_images,
    test_loader,
    train_loader,
)
from flowformer.train.images.folder import VisionRecord
from flowformer.train.images.task import AVERAGE, VisionTask
from flowformer.train.loop.fit import fit, keep_best, torch_settings
from flowformer.train.loop.optimizers import build_scheduled
from flowformer.train.loop.recording import EpochRecorder, count_parameters
from flowformer.train.prediction import choose_device, classify
from flowformer.train.processes.group import current

logger = logging.getLogger(__name__)


@holds_folder
def train(config: VisionConfig, run_dir: str | Path, *, resume: bool = False) -> RunResult:
    """Trains a classifier of images and writes the run folder.

    Killed at any moment, a run that is resumed ends bitwise as it would have without the kill (on
    the CPU, with as many threads): all randomness is a function of the seed, the epoch and the
    place of an image or batch, and every epoch ends with a checkpoint.

    Args:
        config: the experiment.
        run_dir: folder of the run; made when missing.
        resume: go on with the run in `run_dir`; where there is none yet, start it.

    Returns:
        The figures, as in result.json.

    Raises:
        BlockingIOError: another process writes to `run_dir`.
        FileExistsError: `run_dir` holds something already, and `resume` was not asked for.
        FileNotFoundError: a folder, class or file is missing.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM came; its code is 143.
        NonFiniteLossError: the loss became NaN or infinite; the batch is saved in the folder.
        ShareDoneError: in all processes but the first, once the training has ended.
        ValueError: the configuration does not fit the images, or not the run to be resumed, or a
            file of that run or of an image is damaged.
    """
    folder = RunFolder(Path(run_dir))
    group = current()
    started = group.agree(lambda: folder.begin(resume=resume))
    device = choose_device(config.training.accelerator)
    with group.first_alone():  # it fetches what there is to fetch
        data = load_images(config.data)
    parts = part_images(config, data)
    record = _record(config, data, parts)
    digests = group.agree(lambda: digest_images(config, data))
    if started and has_ended(folder, record, digests):
        return RunResult.read(folder)
    group.agree(parts.require_readable)
    training = config.training
    train_batches = train_loader(config, parts)  # before anything is written: it may be refused
    with torch_settings(training.threads):
        torch.manual_seed(training.seed)
        model = _start(record)
        if group.is_first:
            open_folder(folder, record, digests, started=started)
            write_json(folder.preprocessing, to_plain(parts.preprocessing))
        logger.info(
            "%s: %s images to train on, %s for %s, %d classes, %s parameters, folder %s",
            *(config.name, f"{len(parts.train):,}", f"{len(parts.validation):,}"),
            *(HELD_OUT[training.protocol], len(data.classes)),
            *(f"{count_parameters(model):,}", folder.root),
        )
        recorder = fit(
            _task(config, model, train_batches, num_classes=len(data.classes)),
            folder,
            training,
            train=train_batches,
            validation=_loader(config, parts, "validation"),
            held_out=HELD_OUT[training.protocol],
            gradient_clip=config.optimizer.gradient_clip,
            accumulate=training.accumulate,
        )
        return _finish(model.to(device), config, data, parts, folder, recorder)


def _record(config: VisionConfig, data: ImageData, parts: Parts) -> VisionRecord:
    return VisionRecord(
        recipe=config.name,
        config=config,
        versions=read_versions(),
        classes=data.classes,
        channels=data.channels,
        sizes={
            "train": len(parts.train),
            "validation": len(parts.validation),
            "test": 0 if parts.test is None else len(parts.test),
        },
    )


def _start(record: VisionRecord) -> VisionClassifier:
    training = record.config.training
    if training.model_from is None:
        model = build_vision_model(record)
    else:
        model = load_start(training.model_from, record)
    model.checkpointing = training.checkpoint_activations
    return model


def _task(
    config: VisionConfig, model: VisionClassifier, batches: DataLoader, *, num_classes: int
) -> VisionTask:
    training, chance = config.training, config.augmentation
    steps = math.ceil(len(batches) / training.accumulate)
    optimizer = config.optimizer.by_steps(
        steps, images=config.data.batch_size * training.accumulate
    )
    return VisionTask(
        model,
        lambda trained: build_scheduled(
            parameter_groups(cast(VisionClassifier, trained), optimizer.weight_decay),
            optimizer,
            steps=training.epochs * steps,
        ),
        seed=training.seed,
        mixing=Mixing(
            num_classes,
            mixup=chance.mixup,
            cutmix=chance.cutmix,
            label_smoothing=chance.label_smoothing,
        ),
        average=training.average,
    )


def _loader(config: VisionConfig, parts: Parts, part: str) -> DataLoader:
    return test_loader(
        getattr(parts, part),
        parts.preprocessing,
        batch_size=config.data.batch_size,
        workers=config.data.workers,
    )


def _finish(
    model: VisionClassifier,
    config: VisionConfig,
    data: ImageData,
    parts: Parts,
    folder: RunFolder,
    recorder: EpochRecorder,
) -> RunResult:
    keep_best(model, folder, prefix="model." if config.training.average is None else AVERAGE)
    tested, note = None, NO_TEST_NOTE
    if parts.test is not None:
        probabilities = classify(model, _loader(config, parts, "test"))
        labels = parts.test.labels
        tested = Tested(
            probabilities=probabilities, labels=labels, top5=top5_accuracy(probabilities, labels)
        )
        note = parts.note or PROTOCOL_NOTES[config.training.protocol]
    if len(data.classes) != config.paper_classes:
        config = replace(config, paper_accuracy=None, paper_source=None)
    return write_outcome(
        config, model, folder, recorder, classes=data.classes, tested=tested, note=note
    )
