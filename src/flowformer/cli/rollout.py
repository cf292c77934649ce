"""`flowformer rollout RUN`: a trained decision model acts in its environment."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flowformer.cli.parsing import parse
from flowformer.data.options import NOT_D4RL
from flowformer.data.trajectories.environments import task_of


@dataclass(frozen=True, kw_only=True)
class Options:
    """Let a trained decision model act. What is not given is as in the run's own test.

    Attributes:
        run: folder of the run.
        targets: returns that it is asked for.
        form: streaming carries the state over the episode; windowed reads the last steps again.
        context: steps that the windowed form reads; by default those of the training.
        episodes: at each target and seed.
        seeds: of the episodes.
        env: another environment with the same observations and actions.
        video: a file, .gif or .mp4, with the first episode at the first target; with it, no others
            are played unless --episodes is given.
        json: print the figures as JSON.
    """

    run: Path
    targets: tuple[float, ...] = ()
    form: Literal["streaming", "windowed"] | None = None
    context: int | None = None
    episodes: int | None = None
    seeds: tuple[int, ...] = ()
    env: str | None = None
    video: Path | None = None
    json: bool = False


def main(arguments: list[str]) -> int:
    """Play the episodes, print what they came to, and write the film."""
    options = parse(Options, arguments, prog="flowformer rollout")
    import numpy as np

    from flowformer.data.trajectories.environments import make_environment
    from flowformer.data.trajectories.records import EnvironmentOptions
    from flowformer.rollouts.scores import check_target, evaluate_returns
    from flowformer.serialization import to_plain
    from flowformer.train.trajectories.config import describe_outcomes
    from flowformer.train.trajectories.data import (
        environment_maker,
        rollout_settings,
        warn_of_another,
    )
    from flowformer.train.trajectories.study import Trajectories, outcomes_of, say_rollouts

    run = Trajectories.load(options.run)
    record, own = run.record, run.record.config.evaluation
    form = options.form or own.form
    config = replace(record.config, evaluation=replace(own, form=form))
    settings = rollout_settings(config, run.preprocessing)
    if options.context is not None:
        settings = replace(settings, context=options.context)
    env, made_with = record.env, EnvironmentOptions.of(record.env_options)
    if options.env is not None:
        warn_of_another(options.env, "--env", env, made_with)
        env, made_with = options.env, EnvironmentOptions()
    make_env = environment_maker(env, made_with, preprocessing=run.preprocessing)
    targets = options.targets or record.targets
    for target in targets:
        check_target(target, np.array([record.data_worst, record.data_best]))
    seeds = options.seeds or (own.seed,)
    if options.video is not None:
        from flowformer.rollouts.video import record_episode

        played = record_episode(
            run.model,
            make_environment(env, options=made_with, render_mode="rgb_array"),
            options.video,
            target_return=targets[0],
            seed=seeds[0],
            settings=settings,
        )
        say_rollouts(played)
        sys.stdout.write(f"{options.video}\n")
        if options.episodes is None:
            return 0
    played = evaluate_returns(
        run.model,
        make_env,
        targets=targets,
        seeds=seeds,
        episodes=own.episodes if options.episodes is None else options.episodes,
        settings=settings,
        on_rollouts=say_rollouts,
    )
    outcomes = outcomes_of(played, record.references)
    if options.json:
        sys.stdout.write(json.dumps(to_plain(outcomes), indent=2) + "\n")
        return 0
    steps = "" if settings.context is None else f", {settings.context} steps"
    sys.stdout.write("\n".join(describe_outcomes(outcomes)) + "\n")
    note = "" if task_of(env, "") is None else f" {NOT_D4RL}"
    sys.stdout.write(f"in {made_with.in_words(env)}, {settings.form}{steps}.{note}\n")
    return 0
