"""Training a decision model from a configuration to a run folder."""

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from flowformer.data.trajectories.batches import DecisionPreprocessing
from flowformer.data.trajectories.records import EnvironmentOptions, Trajectories, normalized_score
from flowformer.rollouts.rollouts import Rollouts, rollout
from flowformer.rollouts.scores import (
    check_target,
    evaluate_returns,
    summarize_returns,
)
from flowformer.train.digests import digest_trajectories
from flowformer.train.folder import (
    RunFolder,
    has_ended,
    holds_folder,
    open_folder,
    write_json,
)
from flowformer.train.loop.fit import describe_device, fit, keep_best, torch_settings
from flowformer.train.loop.recording import EpochRecorder, count_parameters
from flowformer.train.prediction import choose_device
from flowformer.train.processes.group import current
from flowformer.train.trajectories.config import DecisionConfig
from flowformer.train.trajectories.data import (
    build_decision_model,
    decision_loaders,
    decision_record,
    environment_maker,
    load_trajectories,
    read_preprocessing,
    rollout_settings,
)
from flowformer.train.trajectories.folder import (
    EPISODES,
    DecisionRecord,
    DecisionResult,
    TargetOutcome,
)
from flowformer.train.trajectories.task import DecisionTask

logger = logging.getLogger(__name__)

# The episodes of the curve are others than those of the end.
_CURVE_SEED = 1


@holds_folder
def train(config: DecisionConfig, run_dir: str | Path, *, resume: bool = False) -> DecisionResult:
    """Trains a decision model, lets it act in its environment, and writes the run folder.

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
        FileNotFoundError: there is no such data set.
        ImportError: a library is missing; the message names the extra to install.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM came; its code is 143.
        NonFiniteLossError: the loss became NaN or infinite; the batch is saved in the folder.
        ShareDoneError: in all processes but the first, once the training has ended.
        NotImplementedError: streaming with a mixer that carries no state.
        ValueError: the configuration does not fit the data or the environment, or not the run to be
            resumed, or a file of that run is damaged.
    """
    folder = RunFolder(Path(run_dir))
    group = current()
    started = group.agree(lambda: folder.begin(resume=resume))
    device = choose_device(config.training.accelerator)
    with group.first_alone():  # it fetches what there is to fetch
        data = load_trajectories(config.data)
    record = decision_record(config, data)
    if started and not config.evaluation.targets:  # an earlier version chose others of the data
        record = replace(record, targets=DecisionRecord.read(folder).targets)
    digests = group.agree(lambda: digest_trajectories(config, data))
    if started and has_ended(folder, record, digests):
        return DecisionResult.read(folder)
    options = EnvironmentOptions.of(record.env_options)
    for target in record.targets:
        check_target(target, data.returns)
    preprocessing = _preprocessing(config, data, folder if started else None)
    make_env = environment_maker(record.env, options, preprocessing=preprocessing)
    settings = rollout_settings(config, preprocessing)
    with torch_settings(config.training.threads):
        torch.manual_seed(config.training.seed)
        model = build_decision_model(record, data.action_space)
        if config.evaluation.form == "streaming" and not model.has_state:
            raise NotImplementedError(
                f"{config.model.mixer} carries no state: give evaluation.form windowed"
            )
        if group.is_first:
            open_folder(folder, record, digests, started=started)
            write_json(folder.preprocessing, preprocessing.record())
        logger.info("%s: %s", data.name, data.source)
        logger.info("tested in %s", options.in_words(record.env))
        logger.info(
            "%s: %s episodes to train on, %s for validation, returns %s to %s, %s parameters, "
            "folder %s",
            *(config.name, f"{record.episodes['train']:,}", f"{record.episodes['validation']:,}"),
            *(f"{record.data_worst:,.1f}", f"{record.data_best:,.1f}"),
            *(f"{count_parameters(model):,}", folder.root),
        )

        def score(acting: nn.Module) -> float:
            played = rollout(
                acting,
                make_env,
                target_return=record.targets[0],
                episodes=config.evaluation.validation_episodes,
                seed=config.evaluation.seed + _CURVE_SEED,
                settings=settings,
            )
            return normalized_score(float(played.returns.mean()), record.references)

        train_batches, held_out = decision_loaders(config, data, preprocessing)
        recorder = fit(
            DecisionTask(
                model,
                config.optimizer,
                steps=config.training.steps,
                seed=config.training.seed,
                score=score,
            ),
            folder,
            config.training,
            train=train_batches,
            validation=held_out,
            held_out="validation",
            gradient_clip=config.optimizer.gradient_clip,
        )
        keep_best(model, folder)
        played = evaluate_returns(
            model.to(device),
            make_env,
            targets=record.targets,
            seeds=[config.evaluation.seed],
            episodes=config.evaluation.episodes,
            settings=settings,
            on_rollouts=say_rollouts,
        )
        result = _result(record, played, recorder, model)
        result.keep(
            folder,
            {folder.root / EPISODES: format_episodes(played)},
            figure=f"the normalised score is {result.score:.1f}",
        )
        return result


def _preprocessing(
    config: DecisionConfig, data: Trajectories, begun: RunFolder | None
) -> DecisionPreprocessing:
    """That of a run which has begun already, whatever version of ours began it; else a new one."""
    if begun is not None and begun.preprocessing.exists():
        return read_preprocessing(begun)
    return DecisionPreprocessing.fit(
        data,
        return_scale=config.data.return_scale,
        constant_features=config.data.constant_features,
    )


def say_rollouts(played: Rollouts) -> None:
    """Logs what came of a target return."""
    logger.info(
        "target return %s: %s of %d episodes",
        *(f"{played.target_return:,.1f}", f"{played.returns.mean():,.1f}", len(played.returns)),
    )


def outcomes_of(
    played: Sequence[Rollouts], references: tuple[float, float]
) -> tuple[TargetOutcome, ...]:
    """What rollouts came to, one outcome for each."""
    found = []
    for each in played:
        summary = summarize_returns([each], references=references)
        assert summary.score is not None
        found.append(
            TargetOutcome(
                target=summary.target_return,
                mean=summary.mean,
                std=summary.episode_std,
                length=summary.length,
                terminated=summary.terminated,
                score=summary.score,
            )
        )
    return tuple(found)


def format_episodes(played: Sequence[Rollouts]) -> str:
    """Returns a row for each episode, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("target", "episode", "return", "length", "terminated"))
    for each in played:
        rows = zip(each.returns, each.lengths, each.terminated, strict=True)
        for number, (value, length, ended) in enumerate(rows):
            writer.writerow((each.target_return, number, float(value), int(length), bool(ended)))
    return text.getvalue()


def _result(
    record: DecisionRecord,
    played: Sequence[Rollouts],
    recorder: EpochRecorder,
    model: nn.Module,
) -> DecisionResult:
    config = record.config
    return DecisionResult(
        recipe=config.name,
        protocol_note=record.protocol_note,
        seed=config.training.seed,
        env=EnvironmentOptions.of(record.env_options).in_words(record.env),
        form=config.evaluation.form,
        episodes=config.evaluation.episodes,
        outcomes=outcomes_of(played, record.references),
        behaviour_score=normalized_score(record.data_mean, record.references),
        validation_loss=recorder.best["validation_loss"],
        steps=config.training.steps,
        parameters=count_parameters(model),
        seconds=sum(row["seconds"] for row in recorder.rows),
        device=describe_device(next(model.parameters()).device),
        threads=torch.get_num_threads(),
    )
