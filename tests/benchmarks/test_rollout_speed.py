from typing import Any

import numpy as np
import pytest

from benchmarks.models import rollout_speed
from benchmarks.models.rollout_speed import FEATURES, SIDES, act, measure, policies, summarize
from flowformer.models.trajectories.config import DecisionModelConfig

CONFIG = DecisionModelConfig(dim=16, num_layers=1, num_heads=2, context=4, max_timestep=6)


def test_sides_take_turns_step_by_step_and_read_the_same():
    turns: list[str] = []
    read: dict[str, list[Any]] = {"a": [], "b": []}

    class Reader:
        def __init__(self, name: str) -> None:
            self.name = name

        def act(self, observations: Any, returns_to_go: Any) -> None:
            turns.append(self.name)
            read[self.name].append((observations, returns_to_go))

    sides: dict[str, Any] = {name: Reader(name) for name in read}
    seconds = act(sides, 3, 2)
    assert turns == ["a", "b"] * 3
    assert [len(each) for each in seconds.values()] == [3, 3]
    for ours, theirs in zip(read["a"], read["b"], strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert ours[0].shape == (2, FEATURES)


def test_state_and_window_act_alike_while_the_window_holds_the_episode():
    sides = policies(CONFIG, SIDES)
    random = np.random.default_rng(0)
    for step in range(6):
        observations, left = random.standard_normal((2, FEATURES)), np.array([900.0, 300.0])
        acts = {name: policy.act(observations, left) for name, policy in sides.items()}
        for mixer in ("flow", "softmax"):
            apart = np.abs(acts[f"{mixer} streaming"] - acts[f"{mixer} windowed"]).max()
            assert (apart < 1e-6) == (step < CONFIG.context)


def test_the_ends_are_compared():
    summary = summarize([0.001, 0.002, 0.9, 0.9, 0.9, 0.003, 0.003], 10, at_ends=2)
    assert summary["first_ms"] == pytest.approx(1.5)
    assert summary["last_ms"] == pytest.approx(3)
    assert summary["last_over_first"] == pytest.approx(2)
    assert summary["steps_per_second"] == pytest.approx(70 / 2.709)


def test_rounds_are_reported_by_their_median(monkeypatch):
    drawn = iter([0.5, 0.1, 0.3, 0.2])  # the first is of the call that loads code

    def drawing(sides: dict[str, Any], steps: int, _batch: int) -> dict[str, list[float]]:
        return dict.fromkeys(sides, [next(drawn)] * steps)

    monkeypatch.setattr(rollout_speed, "act", drawing)
    figures = measure(CONFIG, steps=6, batch=1, rounds=3)
    assert list(figures) == [side.name for side in SIDES]
    assert figures["flow streaming"]["first_ms"] == pytest.approx(200)
