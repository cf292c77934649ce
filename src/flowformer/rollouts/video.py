"""An episode as a film: a GIF, or an MP4 where imageio finds ffmpeg."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from flowformer.rollouts.policy import DecisionModel
from flowformer.rollouts.rollouts import Rollouts, RolloutSettings, rollout

_SUFFIXES = (".gif", ".mp4")


def record_episode(
    model: DecisionModel,
    env: gymnasium.Env[Any, Any],
    path: Path,
    *,
    target_return: float,
    seed: int,
    settings: RolloutSettings,
    frames_per_second: float = 25.0,
) -> Rollouts:
    """Let the model act for the first episode of a seed, and film it.

    It plays as fast as the environment says that it runs, with as many pictures a second as that
    allows and no more than asked for. The file appears when it is whole.

    Args:
        model: see `rollout`, here and for all that is not said.
        env: made with render_mode="rgb_array"; it is closed.
        path: the film's file, .gif or .mp4.
        target_return: unscaled.
        seed: the episode is number 0 of it.
        settings: the form and its settings.
        frames_per_second: the film's largest frame rate.

    Raises:
        ValueError: the environment draws no pictures, or the file or the rate has no such form.
        ImportError: a library is missing: imageio, ffmpeg for MP4, or what the environment draws
            with.
        RuntimeError: the environment cannot draw here, as without a display.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"expected a file with {' or '.join(_SUFFIXES)}, got {path.name}")
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second must be positive, got {frames_per_second}")
    if env.render_mode != "rgb_array":
        raise ValueError(
            f"expected an environment made with render_mode='rgb_array', got {env.render_mode!r}"
        )
    try:
        import imageio.v2 as imageio
    except ImportError as error:
        raise ImportError("imageio is needed for films: pip install 'flowformer[rl]'") from error
    _follow(env)
    # Environments that do not say are taken at the rate of the film.
    rate = float(env.metadata.get("render_fps") or frames_per_second)
    every = max(1, math.ceil(rate / frames_per_second))
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        unfinished = Path(folder) / path.name
        with _open(imageio, unfinished, rate / every) as film:
            rollouts = rollout(
                model,
                lambda: _Filmed(env, film, every),
                target_return=target_return,
                episodes=1,
                seed=seed,
                settings=settings,
            )
        unfinished.replace(path)
    return rollouts


def _follow(env: gymnasium.Env[Any, Any]) -> None:
    """Let MuJoCo's camera go with the body, unless another was chosen: it would walk out of view.

    The camera that gymnasium's models have for it; its renderer leaves it for one that stands.
    """
    renderer: Any = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is None or renderer.camera_id != -1:
        return
    names = [renderer.model.camera(number).name for number in range(renderer.model.ncam)]
    if "track" in names:
        renderer.camera_id = names.index("track")


def _open(imageio: Any, path: Path, rate: float) -> Any:
    """Open a film for writing."""
    if path.suffix == ".gif":
        return imageio.get_writer(path, mode="I", duration=1000 / rate, loop=0)
    try:
        return imageio.get_writer(path, mode="I", fps=rate)
    except (ImportError, ValueError) as error:  # ValueError: no plugin of imageio opens such files
        raise ImportError(
            "imageio-ffmpeg is needed for .mp4: pip install imageio-ffmpeg; a .gif needs nothing "
            f"more ({error})"
        ) from error


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Appends a picture of each n-th step to a film."""

    def __init__(self, env: gymnasium.Env[Any, Any], film: Any, every: int) -> None:
        super().__init__(env)
        self._film, self._every, self._steps = film, every, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        result = self.env.reset(seed=seed, options=options)
        self._append()
        return result

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._steps += 1
        if self._steps % self._every == 0 or result[2] or result[3]:
            self._append()
        return result

    def _append(self) -> None:
        self._film.append_data(np.asarray(_picture(self.env), np.uint8))


def _picture(env: gymnasium.Env[Any, Any]) -> Any:
    name = env.unwrapped if env.spec is None else env.spec.id
    try:
        return env.render()
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"a library is missing that {name} draws with: {error}") from error
    except Exception as error:  # of whatever class the library of the environment raises
        raise RuntimeError(
            f"{name} cannot draw here ({error}): without a display, MuJoCo draws with "
            "MUJOCO_GL=egl or MUJOCO_GL=osmesa in the environment's variables"
        ) from error
