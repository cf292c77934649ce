"""Training a classifier of sequences from a configuration to a run folder."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from flowformer.train.classification import ClassificationTask, Tested, write_outcome
from flowformer.train.config import HELD_OUT
from flowformer.train.digests import digest_sequences
from flowformer.train.folder import (
    RunFolder,
    RunResult,
    has_ended,
    holds_folder,
    open_folder,
    read_versions,
)
from flowformer.train.loop.fit import fit, keep_best, torch_settings
from flowformer.train.loop.optimizers import build_scheduled
from flowformer.train.loop.recording import count_parameters
from flowformer.train.prediction import choose_device, classify
from flowformer.train.processes.group import current
from flowformer.train.sequences.config import SequenceConfig
from flowformer.train.sequences.data import (
    build_sequence_model,
    load_sequences,
    part_sequences,
    room_for,
    test_loader,
    train_loader,
)
from flowformer.train.sequences.folder import SequenceRecord

logger = logging.getLogger(__name__)


@holds_folder
def train(config: SequenceConfig, run_dir: str | Path, *, resume: bool = False) -> RunResult:
    """Trains a classifier of sequences, or of pairs of them, and writes the run folder.

    Killed at any moment, a run that is resumed ends bitwise as it would have without the kill (on
    the CPU, with as many threads): all randomness is a function of the seed and the step, and every
    measurement ends with a checkpoint.

    Args:
        config: the experiment.
        run_dir: folder of the run; made when missing.
        resume: go on with the run in `run_dir`; where there is none yet, start it.

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
    if not config.is_benchmark:
        config = replace(config, paper_dataset=None)  # and with it the figure, which is of others
    device = choose_device(config.training.accelerator)
    with group.first_alone():  # it prepares the set
        data = load_sequences(config.data)
    parts = part_sequences(config, data)
    record = SequenceRecord(
        recipe=config.name,
        config=config,
        versions=read_versions(),
        source=data.source,
        classes=data.classes,
        vocab_size=data.vocab_size,
        paired=data.paired,
        max_length=room_for(config.data, data),
        sizes={name: len(getattr(parts, name)) for name in ("train", "validation", "test")},
        picture=data.picture,
    )
    digests = group.agree(lambda: digest_sequences(config, data))
    if started and has_ended(folder, record, digests):
        return RunResult.read(folder)
    training = config.training
    with torch_settings(training.threads):
        torch.manual_seed(training.seed)
        model = build_sequence_model(config.model, record)
        if group.is_first:
            open_folder(folder, record, digests, started=started)
        logger.info("%s: %s", data.name, data.source)
        logger.info(
            "%s: %s cases to train on, %s for %s, %s parameters, folder %s",
            *(config.name, f"{record.sizes['train']:,}", f"{record.sizes['validation']:,}"),
            *(HELD_OUT[training.protocol], f"{count_parameters(model):,}", folder.root),
        )
        recorder = fit(
            ClassificationTask(
                model,
                # Of all parameters alike, weight decay too, as flax's Adam has it.
                lambda model: build_scheduled(
                    model.parameters(), config.optimizer, steps=training.steps
                ),
                seed=training.seed,
                steps=training.steps,
            ),
            folder,
            training,
            train=train_loader(config, parts.train),
            validation=test_loader(config, parts.validation),
            held_out=HELD_OUT[training.protocol],
            gradient_clip=config.optimizer.gradient_clip,
        )
        keep_best(model, folder)
        probabilities = classify(model.to(device), test_loader(config, parts.test))
        return write_outcome(
            config,
            model,
            folder,
            recorder,
            classes=data.classes,
            tested=Tested(probabilities=probabilities, labels=parts.test_labels),
            note=config.protocol_note,
        )
