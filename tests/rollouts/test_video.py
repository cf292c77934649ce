from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest

from flowformer.data.trajectories.records import Space
from flowformer.rollouts.rollouts import rollout
from flowformer.rollouts.video import record_episode
from tests.rollouts.rollout_cases import Walk, build, numbers, settings

SEED = 3  # its first episode has 8 steps


def film(path: Path, env: Any = None, **options: Any) -> Any:
    called: dict[str, Any] = {"target_return": 3.0, "seed": SEED, "settings": settings()}
    env = Walk(render_mode="rgb_array") if env is None else env
    return record_episode(build(), env, path, **{**called, **options})


def test_a_film_shows_the_first_episode_of_the_seed(tmp_path):
    path = tmp_path / "films" / "walk.gif"
    env = Walk(render_mode="rgb_array")
    filmed = film(path, env, frames_per_second=100.0)
    played = rollout(build(), Walk, target_return=3.0, episodes=1, seed=SEED, settings=settings())
    assert filmed.returns.tolist() == played.returns.tolist()
    assert env.closed
    pictures = imageio.imread(path, index=None)
    assert pictures.shape == (played.lengths[0] + 1, 16, 24, 3)
    shown = [20 * step for step in range(len(pictures))]
    np.testing.assert_allclose(pictures.mean((1, 2, 3)), shown, atol=1)
    assert imageio.immeta(path)["duration"] == 10
    assert [each.name for each in path.parent.iterdir()] == ["walk.gif"]


@pytest.mark.parametrize(("asked", "every", "milliseconds"), [(50.0, 2, 20), (30.0, 4, 40)])
def test_pictures_are_left_out_so_that_it_plays_at_the_environments_pace(
    tmp_path, asked, every, milliseconds
):
    path = tmp_path / "walk.gif"
    steps = int(film(path, frames_per_second=asked).lengths[0])
    pictures = imageio.imread(path, index=None)
    shown = [step for step in range(steps + 1) if step % every == 0 or step == steps]
    np.testing.assert_allclose(pictures.mean((1, 2, 3)), np.multiply(20, shown), atol=1)
    assert imageio.immeta(path)["duration"] == milliseconds


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("walk.avi", {}, r"expected a file with .gif or .mp4, got walk.avi"),
        ("walk.gif", {"frames_per_second": 0.0}, "frames_per_second must be positive, got 0"),
        ("walk.gif", {"env": Walk()}, "render_mode='rgb_array', got None"),
    ],
    ids=["file", "rate", "environment"],
)
def test_a_wrong_argument_is_refused(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        film(tmp_path / name, **options)


def test_a_film_that_ffmpeg_is_missing_for_says_what_to_do(tmp_path, monkeypatch):
    def without(*_: Any, **__: Any) -> Any:
        raise ValueError("Could not find a backend")

    monkeypatch.setattr("imageio.v2.get_writer", without)
    with pytest.raises(ImportError, match=r"imageio-ffmpeg is needed for \.mp4: pip"):
        film(tmp_path / "walk.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (
            gymnasium.error.DependencyNotInstalled("pygame is not installed"),
            ImportError,
            "a library is missing .* pygame is not installed",
        ),
        (AttributeError("no glGetError"), RuntimeError, "cannot draw here .* MUJOCO_GL=egl"),
    ],
    ids=["library", "display"],
)
def test_what_cannot_be_drawn_is_said_and_the_old_film_stays(tmp_path, error, raised, message):
    class Blind(Walk):
        def render(self) -> Any:
            if self.taken > 1:
                raise error
            return super().render()

    path, env = tmp_path / "walk.gif", Blind(render_mode="rgb_array")
    path.write_bytes(b"old")
    with pytest.raises(raised, match=message):
        film(path, env)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert env.closed


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imageio.v2", None)
    with pytest.raises(ImportError, match=r"imageio is needed for films: .*flowformer\[rl\]"):
        film(tmp_path / "walk.gif")


@pytest.mark.slow
def test_a_hopper_is_filmed(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    space = Space(shape=(3,), low=-1.0, high=1.0)
    played = record_episode(
        build(observation_dim=11, action_dim=3),
        gymnasium.make("Hopper-v5", render_mode="rgb_array"),
        tmp_path / "hopper.gif",
        target_return=3600.0,
        seed=0,
        settings=settings(preprocessing=numbers(space, features=11)),
    )
    pictures = imageio.imread(tmp_path / "hopper.gif", index=None)
    assert pictures.shape[1:] == (480, 480, 3)
    assert len(pictures) == 1 + -(-int(played.lengths[0]) // 5)  # 125 a second to 25
    assert played.terminated.all()  # it falls


@pytest.mark.parametrize(("options", "camera"), [({}, "track"), ({"camera_id": 5}, None)])
def test_the_camera_goes_with_the_body_unless_another_was_chosen(
    tmp_path, monkeypatch, options, camera
):
    env = gymnasium.make("Hopper-v5", render_mode="rgb_array", max_episode_steps=3, **options)
    monkeypatch.setattr(type(env.unwrapped), "render", lambda _: np.zeros((16, 16, 3), np.uint8))
    record_episode(
        build(observation_dim=11, action_dim=3),
        env,
        tmp_path / "hopper.gif",
        target_return=3600.0,
        seed=0,
        settings=settings(
            preprocessing=numbers(Space(shape=(3,), low=-1.0, high=1.0), features=11)
        ),
    )
    renderer: Any = env.unwrapped.mujoco_renderer  # pyright: ignore[reportAttributeAccessIssue]
    expected = 5
    if camera is not None:
        expected = renderer.model.camera(camera).id
    assert renderer.camera_id == expected != -1
