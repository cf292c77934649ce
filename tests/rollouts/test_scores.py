import warnings
from typing import Any

import numpy as np
import pytest

from flowformer.data.trajectories.records import normalized_score
from flowformer.rollouts.rollouts import Rollouts, rollout
from flowformer.rollouts.scores import (
    check_target,
    evaluate_returns,
    summarize_returns,
)
from tests.rollouts.rollout_cases import Walk, build, settings


def rollouts(*returns: float, **options: Any) -> Rollouts:
    count = len(returns)
    return Rollouts(
        **{
            "target_return": 100.0,
            "form": "streaming",
            "context": None,
            "seed": 0,
            "returns": np.array(returns),
            "lengths": np.arange(1, count + 1),
            "terminated": np.arange(count) == 0,
            **options,
        }
    )


def test_mean_and_spread_are_taken_over_episodes_and_over_seeds():
    summary = summarize_returns(
        [rollouts(1.0, 3.0), rollouts(4.0, 6.0), rollouts(7.0, 9.0)], references=(-5.0, 15.0)
    )
    assert (summary.seeds, summary.episodes) == (3, 6)
    assert summary.mean == pytest.approx(5)
    assert summary.episode_std == pytest.approx(np.std([1, 3, 4, 6, 7, 9]))
    assert summary.seed_std == pytest.approx(3)  # of 2, 5 and 8, n - 1
    assert summary.score == pytest.approx(50)
    assert summary.score_std == pytest.approx(15)
    assert (summary.length, summary.terminated) == (1.5, 0.5)
    assert (summary.target_return, summary.form, summary.context) == (100.0, "streaming", None)


def test_one_seed_has_no_spread_and_no_references_no_score():
    summary = summarize_returns([rollouts(1.0, 3.0)])
    assert summary.seed_std is None
    assert summary.score is None
    assert summary.score_std is None
    scored = summarize_returns([rollouts(1.0, 3.0)], references=(0.0, 4.0))
    assert (scored.score, scored.score_std) == (50.0, None)


@pytest.mark.parametrize(
    "other",
    [
        {"target_return": 50.0},
        {"form": "windowed", "context": 20},
        {"returns": np.zeros(3), "lengths": np.ones(3, int), "terminated": np.ones(3, bool)},
    ],
    ids=["target", "form", "episodes"],
)
def test_what_was_measured_otherwise_is_not_averaged(other):
    with pytest.raises(ValueError, match="expected rollouts of one target, form, context"):
        summarize_returns([rollouts(1.0, 2.0), rollouts(1.0, 2.0, **other)])


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match=r"got \[\]"):
        summarize_returns([])


def test_scores_are_those_of_d4rl():
    """Hopper: a random policy's return is 0, an expert's 100 (Fu et al. 2020)."""
    hopper = (-20.272305, 3234.3)
    assert normalized_score(-20.272305, hopper) == 0
    assert normalized_score(3234.3, hopper) == 100
    assert normalized_score(1607.013848, hopper) == pytest.approx(50, abs=1e-6)
    with pytest.raises(ValueError, match="below an expert's"):
        normalized_score(1.0, (3.0, 3.0))


@pytest.mark.parametrize(
    ("target", "returns", "warned"),
    [
        (10.0, (10.0, 20.0), False),
        (30.0, (10.0, 20.0), False),
        (30.1, (10.0, 20.0), True),
        (9.9, (10.0, 20.0), True),
        (-50.0, (-900.0, -100.0), False),
        (-49.0, (-900.0, -100.0), True),
        (-901.0, (-900.0, -100.0), True),
    ],
    ids=str,
)
def test_a_target_far_outside_the_data_is_warned_of(target, returns, warned):
    data = np.array(returns)
    if warned:
        with pytest.warns(UserWarning, match="far outside the data, whose episodes return"):
            check_target(target, data)
    else:
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            check_target(target, data)
        assert given == []


def test_every_target_meets_the_same_episodes_with_every_seed():
    model, said = build(), []
    played = evaluate_returns(
        model,
        Walk,
        targets=[5.0, -5.0],
        seeds=[3, 4],
        episodes=3,
        settings=settings(),
        on_rollouts=said.append,
    )
    assert [(each.target_return, each.seed) for each in played] == [
        (5.0, 3),
        (5.0, 4),
        (-5.0, 3),
        (-5.0, 4),
    ]
    assert said == list(played)
    alone = rollout(model, Walk, target_return=-5.0, episodes=3, seed=4, settings=settings())
    assert played[3].returns.tolist() == alone.returns.tolist()
    assert played[0].lengths.tolist() == played[2].lengths.tolist()
    assert not np.allclose(played[0].returns, played[2].returns)  # the target matters


@pytest.mark.parametrize("name", ["targets", "seeds"])
@pytest.mark.parametrize("given", [[], [1, 1]], ids=["none", "twice"])
def test_targets_and_seeds_are_some_and_differ(name, given):
    options: dict[str, Any] = {"targets": [1.0], "seeds": [0]}
    options[name] = [type(options[name][0])(each) for each in given]
    with pytest.raises(ValueError, match=f"at least one of {name}, none of them twice"):
        evaluate_returns(build(), Walk, episodes=1, settings=settings(), **options)
