"""Environments of gymnasium: which are supported, and the returns that scores are relative to."""

import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flowformer.data.trajectories.records import (
    EnvironmentOptions,
    Space,
    WrapperOptions,
    refuse_pictures,
)
from flowformer.machine import library

if TYPE_CHECKING:
    import gymnasium

logger = logging.getLogger(__name__)

# The returns of a random and of an expert policy (D4RL, d4rl/infos.py), of gym's version 2 on
# MuJoCo 2: what version 5 gives on today's MuJoCo is not the same.
REFERENCES: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
}
# Wrappers that draw, record or count, and change nothing of what is acted in.
_SHOWS = (
    "gymnasium.wrappers.rendering:",
    "gymnasium.wrappers.common:RecordEpisodeStatistics",
    "gymnasium.wrappers.common:PassiveEnvChecker",
)


def task_of(env: str | None, name: str) -> str | None:
    """Return which of D4RL's environments a set is of, by its environment or name, or None.

    "Hopper-v5" and "hopper_medium-v2" are "hopper".
    """
    for text in (env, name):
        word = re.split(r"[-_/]", (text or "").rpartition("/")[2])[0].lower()
        if word in REFERENCES:
            return word
    return None


def references_of(env: str | None, name: str) -> tuple[float, float] | None:
    """D4RL's returns of a random and of an expert policy; None for other environments."""
    task = task_of(env, name)
    return None if task is None else REFERENCES[task]


def make_environment(
    env: str, *, options: EnvironmentOptions | None = None, render_mode: str | None = None
) -> "gymnasium.Env":
    """Make an environment whose observations are a box and whose actions are supported.

    Args:
        env: gymnasium's name.
        options: what it is made with, other than its name says.
        render_mode: as `gymnasium.make` takes it.

    Raises:
        ImportError: gymnasium, or the simulator, is not installed; or a wrapper is in a module that
            nobody has imported.
        NotImplementedError: its observations or actions are of another kind.
        ValueError: gymnasium has no such environment, or it takes no such options.
    """
    gymnasium = library("gymnasium", "for environments", extra="rl")
    _log_mujoco(env)
    options = EnvironmentOptions() if options is None else options
    given: dict[str, Any] = {**options.kwargs}
    if render_mode is not None:
        given["render_mode"] = render_mode
    if options.max_episode_steps is not None:
        given["max_episode_steps"] = options.max_episode_steps
    try:
        # The checker looks at every step, and costs a third of the time.
        made = gymnasium.make(env, disable_env_checker=True, **given)
        for wrapper in options.wrappers:
            made = _wrapped(made, wrapper)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(
            f"{env} needs a package that is missing: pip install 'flowformer[rl]' ({error})"
        ) from error
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium has no environment {env!r}: {error}") from error
    except TypeError as error:  # of arguments that a constructor does not take
        raise ValueError(f"{options.in_words(env)} cannot be made: {error}") from error
    space_of(made.action_space)
    feature_count(made.observation_space)
    return made


def _wrapped(env: "gymnasium.Env", options: WrapperOptions) -> "gymnasium.Env":
    """Put gymnasium's own wrapper around an environment, or one whose module is imported already.

    A set of data names it: no code is loaded for that.
    """
    from gymnasium import Wrapper

    module, _, name = options.entry_point.partition(":")
    kind = getattr(sys.modules.get(module), name, None)
    if not (isinstance(kind, type) and issubclass(kind, Wrapper)):
        raise ImportError(
            f"the environment of the data is wrapped in {options.entry_point}, and nothing has "
            f"imported that: import {module}, or name another environment (evaluation.env)"
        )
    if options.kwargs is None:
        raise ValueError(
            f"the environment of the data is wrapped in {options.entry_point}, whose arguments "
            "were not kept: name another environment (evaluation.env)"
        )
    return kind(env, **options.kwargs)


def options_of(spec: Mapping[str, Any]) -> EnvironmentOptions:
    """Return how gymnasium's record of an environment differs from what its name says.

    What only draws or records is left out.

    Args:
        spec: the fields of an `EnvSpec`, as Minari keeps them.
    """
    own, limit = _registered(spec.get("id"))
    kwargs = {
        name: value
        for name, value in (spec.get("kwargs") or {}).items()
        if name != "render_mode" and (name not in own or _plain(own[name]) != value)
    }
    steps = spec.get("max_episode_steps")
    return EnvironmentOptions(
        kwargs=kwargs,
        max_episode_steps=None if steps == limit else -1 if steps is None else steps,
        wrappers=tuple(
            WrapperOptions(entry_point=each["entry_point"], kwargs=each["kwargs"])
            for each in spec.get("additional_wrappers") or ()
            if not each["entry_point"].startswith(_SHOWS)
        ),
    )


def _registered(env: str | None) -> tuple[Mapping[str, Any], int | None]:
    """Return the keyword arguments and the time limit of a name, where gymnasium knows it."""
    try:
        import gymnasium
    except ImportError:
        return {}, None
    try:
        found = None if env is None else gymnasium.spec(env.rpartition(":")[2])
    except gymnasium.error.Error:  # its module may be imported later
        found = None
    return ({}, None) if found is None else (found.kwargs, found.max_episode_steps)


def _plain(value: object) -> object:
    """Return a value as it comes back from JSON."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def space_of(space: "gymnasium.Space") -> Space:
    """Return a space of actions without gymnasium.

    Raises:
        NotImplementedError: it is neither a box with one axis nor discrete values from 0 on.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Space(shape=(), n=int(space.n))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return Space(
            shape=space.shape, low=_bound(space.low, -np.inf), high=_bound(space.high, np.inf)
        )
    raise NotImplementedError(
        "expected actions of a Box with one axis or Discrete ones from 0 on, got "
        f"{space}: others are not supported"
    )


def feature_count(space: "gymnasium.Space") -> int:
    """Return the number of features of an observation, flattened.

    Raises:
        NotImplementedError: it is no box, or one of pictures.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        refuse_pictures(space.shape, space.dtype)
        return int(np.prod(space.shape))
    raise NotImplementedError(
        f"expected observations of a Box, got {space}: others are not supported"
    )


def _log_mujoco(env: str) -> None:
    """Take the simulator's warnings into Python's log: it writes MUJOCO_LOG.TXT where one is.

    Raises:
        ImportError: the library that it is to draw with is missing.
    """
    import gymnasium

    try:
        made_by = str(gymnasium.spec(env).entry_point)
        if made_by.startswith("gymnasium.envs.mujoco"):
            import mujoco

            mujoco.set_mju_user_warning(logger.info)  # pyright: ignore[reportAttributeAccessIssue] - compiled
    except (gymnasium.error.Error, ImportError):
        return  # `gymnasium.make` says it better
    except AttributeError as error:  # PyOpenGL's
        raise ImportError(
            f"{env}: MuJoCo finds no library for MUJOCO_GL={os.environ.get('MUJOCO_GL')} "
            f"({error}): install it (Debian's libosmesa6 for osmesa, libegl1 for egl)"
        ) from error


def _bound(values: np.ndarray, none: float) -> float | tuple[float, ...] | None:
    given = [float(value) for value in values]
    if all(value == none for value in given):
        return None
    return given[0] if len(set(given)) == 1 else tuple(given)
