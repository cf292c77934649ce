"""The first steps of a run of every kind, by which the time of the whole is known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowformer.train.rehearsal import rehearse
from tests.train.small_images import tiny_vision, write_images
from tests.train.small_sequences import tiny_sequences
from tests.train.small_trajectories import random_trajectories, tiny_decisions

__all__ = ["tiny_sequences"]  # a fixture


@pytest.fixture
def config_of(tmp_path, tiny_language, tiny_sequences) -> Callable[[str], Any]:
    def decisions(folder: Path) -> Any:
        random_trajectories().save(folder)
        config = tiny_decisions(folder, evaluation={"targets": (-60.0,)})
        return replace(config, training=replace(config.training, steps=60, evaluate_every=20))

    def images(folder: Path) -> Any:
        write_images(folder, {"train": 8, "test": 2})
        return tiny_vision(folder, epochs=7, accumulate=2)

    makers: dict[str, Callable[[], Any]] = {
        "language": lambda: tiny_language(steps=60, evaluate_every=20, accumulate=2),
        "sequences": lambda: tiny_sequences(steps=60, evaluate_every=20),
        "images": lambda: images(tmp_path / "data"),
        "trajectories": lambda: decisions(tmp_path / "data"),
    }
    return lambda kind: makers[kind]()


@pytest.mark.parametrize(
    ("kind", "steps", "rounds"),
    # 12 images of 16 to train on, in batches of 4: two steps of two, of which one has one.
    [("language", 20, 3), ("sequences", 20, 3), ("images", 2, 7), ("trajectories", 20, 3)],
)
def test_a_run_of_each_kind_is_timed_by_a_few_of_its_steps(
    tmp_path, config_of, kind, steps, rounds
):
    found = rehearse(config_of(kind), tmp_path / "run", resume=True)
    assert (found.steps, found.rounds) == (steps, rounds)
    assert found.step_seconds > 0
    assert found.step_seconds * steps <= found.round_seconds * 1.5  # a last step may be a part
    assert (
        found.seconds()
        == found.prepare_seconds + rounds * found.round_seconds
        > found.seconds(done=rounds)
    )
