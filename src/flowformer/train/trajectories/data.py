"""From the configuration of a run on trajectories to its data, its model and its environment."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch.utils.data import DataLoader

from flowformer.data.loaders import StepBatches, as_it_is
from flowformer.data.trajectories.batches import (
    DecisionPreprocessing,
    DecisionWindows,
    split_episodes,
)
from flowformer.data.trajectories.environments import make_environment
from flowformer.data.trajectories.minari import is_d4rl, open_trajectories
from flowformer.data.trajectories.records import EnvironmentOptions, Space, Trajectories
from flowformer.models.trajectories.config import BehaviourCloningConfig
from flowformer.models.trajectories.model import BehaviourCloning, DecisionTransformer
from flowformer.rollouts.rollouts import RolloutSettings, check_spaces
from flowformer.train.digests import Digests, digest_values
from flowformer.train.folder import RunFolder, read_json, read_versions
from flowformer.train.trajectories.config import (
    DecisionDataConfig,
    TrajectoriesConfig,
    TrajectoriesRecord,
)

DecisionNetwork = DecisionTransformer | BehaviourCloning


def load_trajectories(config: DecisionDataConfig) -> Trajectories:
    """Open the data that a configuration names.

    Raises:
        ValueError: it names none, or both a set and a file; they are damaged, or do not mix.
        FileNotFoundError: there is no such set or file.
        ImportError: a library is missing; the message names the extra to install.
    """
    config.require_source()
    said: dict[str, Any] = {
        "time_limit": config.time_limit,
        "num_actions": config.num_actions,
        "action_bounds": config.action_bounds,
    }
    data = open_trajectories(config.path or config.dataset or "", **said)
    if (other := config.mixed_with) is not None:
        data = data.mixed(open_trajectories(other, **(said if is_d4rl(other) else {})))
    return data


def digest_data(config: TrajectoriesConfig, data: Trajectories | None = None) -> Digests:
    """Return a digest of all episodes; of two sets that are mixed, one of both."""
    if data is None:
        data = load_trajectories(config.data)
    own = config.data
    name = str(own.path or own.dataset)
    if own.mixed_with is not None:
        name += f" or {own.mixed_with}"
    arrays = (data.observations, data.actions, data.rewards, data.starts, data.terminated)
    return {name: digest_values(arrays)}


def decision_record(config: TrajectoriesConfig, data: Trajectories) -> TrajectoriesRecord:
    """Return what a run knows of its data and its environment before it begins.

    Raises:
        ValueError: the data name no environment or have no reference returns, and the configuration
            neither; or an episode is longer than the model has time steps.
    """
    own = config.evaluation
    references = own.references or data.references
    env, options = data.env, data.env_options
    if own.env is not None:
        if env is not None:
            warn_of_another(own.env, "evaluation.env", env, options)
            options = EnvironmentOptions()
        env = own.env
    if env is None:
        raise ValueError(f"{data.name} names no environment: give evaluation.env, as Hopper-v5")
    if references is None:
        raise ValueError(
            f"{data.name} has no reference returns: give evaluation.references, a random policy's "
            "and an expert's"
        )
    if (longest := int(data.lengths.max())) > config.model.max_timestep:
        raise ValueError(
            f"model.max_timestep must be at least {longest}, the longest episode of {data.name}, "
            f"got {config.model.max_timestep}"
        )
    returns = data.returns
    mean, best = float(returns.mean()), float(returns.max())
    _require_apart(references, returns, own.episodes)
    train, validation = split_episodes(data, config.data.validation_fraction, seed=0)
    return TrajectoriesRecord(
        recipe=config.name,
        config=config,
        versions=read_versions("gymnasium", "minari", "mujoco"),
        source=data.source,
        env=env,
        # Between the data's mean and best, whatever their sign; of episodes all alike there is one.
        targets=own.targets or tuple(dict.fromkeys((best, (mean + best) / 2))),
        references=references,
        features=data.observations.shape[1],
        episodes={"train": len(train), "validation": len(validation)},
        steps=data.steps,
        data_mean=mean,
        data_best=best,
        data_worst=float(returns.min()),
        env_options=options.record(),
    )


def _require_apart(
    references: tuple[float, float], returns: Float64[np.ndarray, " episodes"], episodes: int
) -> None:
    """Warn where a mean of so many episodes varies by as much as the references differ."""
    apart = references[1] - references[0]
    noise = 2 * float(returns.std()) / math.sqrt(episodes)  # two standard errors
    if apart < noise:
        warnings.warn(
            f"the references {references[0]:,.1f} and {references[1]:,.1f} differ by {apart:,.1f}, "
            f"and the mean of {episodes} episodes like those of the data varies by {noise:,.1f}: "
            "scores say nothing. Give evaluation.references that are further apart, or more "
            "evaluation.episodes",
            stacklevel=3,
        )


def warn_of_another(chosen: str, by: str, env: str, options: EnvironmentOptions) -> None:
    """Warn of an environment that is not that of the data.

    Args:
        chosen: its name; it is made as that says.
        by: what was given to choose it.
        env: that of the data.
        options: what the data's environment is made with.
    """
    if (chosen, EnvironmentOptions()) != (env, options):
        warnings.warn(
            f"{by}: the model acts in {chosen}, as gymnasium has it, and the data are of "
            f"{options.in_words(env)}: returns and references need not be comparable",
            stacklevel=3,
        )


def read_preprocessing(folder: RunFolder) -> DecisionPreprocessing:
    """Read the preprocessing of a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged.
    """
    try:
        return DecisionPreprocessing.of(read_json(folder.preprocessing))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder.preprocessing} is damaged: {error!r}") from error


def build_decision_model(record: TrajectoriesRecord, space: Space) -> DecisionNetwork:
    """Build the model of a run, with new parameters."""
    config = record.config.model
    sizes: dict[str, Any] = {"observation_dim": record.features}
    sizes |= {"num_actions": space.n} if space.n is not None else {"action_dim": space.shape[0]}
    bounded = space.n is not None or space.bounded
    if config.encoder == "behaviour-cloning":
        kind = BehaviourCloningConfig(
            dim=config.dim, num_layers=config.num_layers, dropout=config.dropout
        )
        return BehaviourCloning(kind, bounded=bounded, **sizes)
    return DecisionTransformer(config, bounded=bounded, **sizes)


def decision_loaders(
    config: TrajectoriesConfig, data: Trajectories, preprocessing: DecisionPreprocessing
) -> tuple[DataLoader, DataLoader]:
    """Return the batches of one measurement's steps, and those of the validation loss."""
    train, validation = split_episodes(data, config.data.validation_fraction, seed=0)
    context = config.model.context
    windows = DecisionWindows(data, preprocessing, context=context, episodes=train)
    held_out = DecisionWindows(
        data, preprocessing, context=context, episodes=validation, stride=context
    )
    batches = StepBatches(
        len(windows),
        batch_size=config.data.batch_size,
        steps_per_round=config.training.evaluate_every,
        seed=config.training.seed,
    )
    return (
        DataLoader(windows, batch_sampler=batches, collate_fn=as_it_is),
        DataLoader(held_out, config.data.batch_size, collate_fn=as_it_is),
    )


def rollout_settings(
    config: TrajectoriesConfig, preprocessing: DecisionPreprocessing
) -> RolloutSettings:
    """Return how a run's model acts."""
    own = config.evaluation
    return RolloutSettings(
        preprocessing=preprocessing,
        form=own.form,
        context=config.model.context if own.form == "windowed" else None,
        parallel=own.parallel,
        max_steps=config.model.max_timestep,
    )


def environment_maker(
    name: str,
    options: EnvironmentOptions | None = None,
    *,
    preprocessing: DecisionPreprocessing,
    render_mode: str | None = None,
) -> Callable[[], Any]:
    """Return what makes an environment of that name, tried once.

    Args:
        name: gymnasium's name of it.
        options: see `make_environment`, which says what raises too.
        preprocessing: that of the model that is to act in it.
        render_mode: see `make_environment`.

    Raises:
        ValueError: it is another than the model's; the message says in what.
    """
    make = partial(make_environment, name, options=options, render_mode=render_mode)
    made = make()
    try:
        check_spaces(made, preprocessing)
    finally:
        made.close()
    return make
