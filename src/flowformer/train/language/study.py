"""Training a language model from a configuration to a run folder."""

import hashlib
import logging
import math
import statistics
from pathlib import Path

import torch

from flowformer.data.language.tokenizers import Tokenizer
from flowformer.models.language.model import LanguageModel
from flowformer.train.digests import digest_text
from flowformer.train.folder import (
    RunFolder,
    has_ended,
    holds_folder,
    open_folder,
    read_versions,
)
from flowformer.train.language.config import LanguageConfig
from flowformer.train.language.data import Score, open_source
from flowformer.train.language.folder import LanguageRecord, LanguageResult
from flowformer.train.language.task import LanguageTask
from flowformer.train.loop.fit import describe_device, fit, keep_best, torch_settings
from flowformer.train.loop.recording import EpochRecorder, count_parameters
from flowformer.train.prediction import choose_device
from flowformer.train.processes.group import current

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"  # in the run folder: a run is used without the text it learned from


@holds_folder
def train(config: LanguageConfig, run_dir: str | Path, *, resume: bool = False) -> LanguageResult:
    """Trains a language model and writes the run folder.

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
        ValueError: the configuration does not fit the text, or not the run to be resumed, or a file
            of that run is damaged.
    """
    folder = RunFolder(Path(run_dir))
    group = current()
    started = group.agree(lambda: folder.begin(resume=resume))
    device = choose_device(config.training.accelerator)
    with group.first_alone():  # it fills the cache
        source = open_source(config)
    record = LanguageRecord(
        recipe=config.name,
        config=config,
        versions=read_versions(),
        vocab_size=source.vocab_size,
        sizes=dict(source.sizes),
        tokenizer=None if source.tokenizer is None else _digest(source.tokenizer),
    )
    digests = group.agree(lambda: digest_text(config, source.text))
    if started and has_ended(folder, record, digests):
        return LanguageResult.read(folder)
    with torch_settings(config.training.threads):
        torch.manual_seed(config.training.seed)
        model = LanguageModel(config.model, vocab_size=record.vocab_size)
        if model.max_positions is not None and source.length > model.max_positions:
            raise ValueError(
                f"a sample has {source.length} tokens and the model reads at most "
                f"{model.max_positions}: raise model.max_length, or lower data.length"
            )
        model.set_gradient_checkpointing(config.training.checkpoint_activations)
        if group.is_first:
            open_folder(folder, record, digests, started=started)
            if source.tokenizer is not None:
                source.tokenizer.save(folder.root / TOKENIZER)
        logger.info(
            "%s: %s to train on, a vocabulary of %s, %s parameters, folder %s",
            *(config.name, f"{record.sizes['train']:,}", f"{record.vocab_size:,}"),
            *(f"{count_parameters(model):,}", folder.root),
        )
        train_loader, validation_loader = source.loaders()
        recorder = fit(
            LanguageTask(
                model,
                config.optimizer,
                steps=config.training.steps,
                seed=config.training.seed,
                column=config.measure.column,
                score_of=source.score_of,
            ),
            folder,
            config.training,
            train=train_loader,
            validation=validation_loader,
            held_out="validation",
            gradient_clip=config.optimizer.gradient_clip,
            accumulate=config.training.accumulate,
        )
        keep_best(model, folder)
        score = source.test(model.to(device))
        result = _result(config, score, recorder, model, source.length)
        result.keep(folder, {}, figure=_in_words(config, result))
        return result


def _digest(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _in_words(config: LanguageConfig, result: LanguageResult) -> str:
    measure = config.measure
    return f"the test {measure.name} is {measure.show(result.score)}{measure.unit}"


def _result(
    config: LanguageConfig,
    score: Score,
    recorder: EpochRecorder,
    model: LanguageModel,
    length: int,
) -> LanguageResult:
    if not math.isfinite(score.value):
        raise ValueError(
            f"the test {config.measure.name} is {score.value}: the model has not learned"
        )
    best, training = recorder.best, config.training
    tokens = length * config.data.batch_size * training.evaluate_every * training.accumulate
    return LanguageResult(
        recipe=config.name,
        protocol_note=config.protocol_note,
        seed=training.seed,
        measure=config.measure.name,
        test_score=score.value,
        test_loss=score.loss,
        test_perplexity=score.perplexity,
        test_bits_per_character=score.bits_per_character,
        validation_loss=best["validation_loss"],
        best_step=int(best["step"]),
        steps=training.steps,
        paper_perplexity=config.paper_perplexity,
        paper_source=config.paper_source,
        parameters=count_parameters(model),
        tokens_per_second=statistics.median(tokens / row["train_seconds"] for row in recorder.rows),
        seconds=sum(row["seconds"] for row in recorder.rows),
        device=describe_device(next(model.parameters()).device),
        threads=torch.get_num_threads(),
    )
