"""Offline reinforcement learning from a configuration to a run folder."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowformer.compare.methods import TRAIN
from flowformer.compare.plan import make_plan
from flowformer.data.trajectories.records import EnvironmentOptions, WrapperOptions
from flowformer.models.trajectories.config import DecisionModelConfig
from flowformer.train.folder import RunFolder
from flowformer.train.run import evaluate, load_run, train
from flowformer.train.trajectories import study
from flowformer.train.trajectories.config import (
    DecisionDataConfig,
    TrajectoriesEvaluationConfig,
    TrajectoriesRecord,
    TrajectoriesResult,
)
from flowformer.train.trajectories.data import decision_record, load_trajectories
from flowformer.train.trajectories.task import action_loss
from tests.train.small_trajectories import random_trajectories, tiny_decisions

TARGETS = (-20.0, -60.0)
CLIP_REWARD = "gymnasium.wrappers.transform_reward:ClipReward"


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pendulum"
    random_trajectories().save(folder)
    return folder


def test_a_run_leaves_its_figures_at_every_target(pendulum, tmp_path):
    config = tiny_decisions(pendulum, evaluation={"targets": TARGETS})
    result = train(config, tmp_path / "run")
    assert [each.target for each in result.outcomes] == list(TARGETS)
    first = result.outcomes[0]
    assert result.score == first.score == pytest.approx(first.mean + 100)  # -100 is 0, 0 is 100
    with (tmp_path / "run" / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    mean = np.mean([float(row["return"]) for row in rows[:3]])
    assert mean == pytest.approx(first.mean)
    assert "not D4RL's v2" not in result.protocol_note  # which has no pendulum
    assert TrajectoriesResult.read(RunFolder(tmp_path / "run")) == result


def test_the_last_step_is_kept_whatever_it_scored(pendulum, tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(tiny_decisions(pendulum, evaluation={"targets": TARGETS}), folder.root)
    checkpoint = torch.load(folder.best, weights_only=True)
    assert checkpoint["global_step"] == 4


@pytest.mark.parametrize("encoder", ["transformer", "behaviour-cloning"])
@pytest.mark.parametrize("form", ["streaming", "windowed"])
def test_discrete_actions_are_learned_too(tmp_path, form, encoder):
    random_trajectories("CartPole-v1", steps=30).save(tmp_path / "data")
    config = tiny_decisions(
        tmp_path / "data",
        evaluation={"targets": (20.0,), "form": form},
        max_timestep=30,
        encoder=encoder,
    )
    result = train(config, tmp_path / "run")
    assert result.outcomes[0].length >= 1
    run = load_run(tmp_path / "run")
    assert run.preprocessing.action_space.n == 2


def test_a_model_learns_the_actions_of_the_data(tmp_path):
    """The action is a function of the observation: the loss falls far below its variance."""
    data = random_trajectories(episodes=20, steps=30)
    actions = (2 * data.observations[:, :1]).clip(-2, 2)
    replace(data, actions=actions).save(tmp_path / "data")
    config = tiny_decisions(tmp_path / "data", max_timestep=30, evaluation={"targets": (-150.0,)})
    config = replace(
        config,
        model=replace(config.model, dim=32, dropout=0.0),
        optimizer=replace(config.optimizer, learning_rate=3e-3),
        training=replace(config.training, steps=300, evaluate_every=300),
    )
    result = train(config, tmp_path / "run")
    assert result.validation_loss < 0.05 * (actions / 2).var()


def test_both_forms_act_alike_while_the_window_holds_the_whole_episode(pendulum, tmp_path):
    means = []
    for form in ("streaming", "windowed"):
        config = tiny_decisions(
            pendulum, evaluation={"targets": TARGETS, "form": form}, context=12, dropout=0.0
        )
        result = train(config, tmp_path / form)
        means.append([each.mean for each in result.outcomes])
    assert means[0] == pytest.approx(means[1], rel=1e-4)


def test_a_finished_run_acts_again_as_before(pendulum, tmp_path):
    train(tiny_decisions(pendulum, evaluation={"targets": TARGETS}), tmp_path / "run")
    evaluation = evaluate(tmp_path / "run")
    assert not evaluation.differs
    assert "the same" in evaluation.describe()
    with pytest.raises(ValueError, match="tested in its environment"):
        evaluate(tmp_path / "run", tmp_path / "x.hdf5")


def test_targets_and_references_are_those_of_the_data_unless_given(pendulum, tmp_path):
    data = load_trajectories(DecisionDataConfig(path=pendulum))
    config = tiny_decisions(pendulum, evaluation={"references": (-300.0, -10.0)})
    train(config, tmp_path / "run")
    record = TrajectoriesRecord.read(RunFolder(tmp_path / "run"))
    assert record.targets == (data.returns.max(), (data.returns.max() + data.returns.mean()) / 2)
    assert record.references == (-300.0, -10.0)
    assert record.data_mean == pytest.approx(data.returns.mean())


@pytest.mark.parametrize("shift", [-1000.0, 0.0, 1000.0], ids=["negative", "best-0", "positive"])
def test_targets_lie_between_the_mean_and_the_best_of_the_data(shift):
    drawn = random_trajectories()
    rewards = np.zeros_like(drawn.rewards)
    rewards[drawn.starts] = np.array([-30, -20, -10, 0], np.float32) + shift
    data = replace(drawn, rewards=rewards)
    config = tiny_decisions(Path("set"))
    assert decision_record(config, data).targets == (shift, shift - 7.5)
    alike = np.zeros_like(rewards)
    alike[drawn.starts] = shift
    assert decision_record(config, replace(data, rewards=alike)).targets == (shift,)


def test_references_that_differ_by_less_than_scores_vary_are_told():
    data = random_trajectories()
    references = (data.returns.mean(), data.returns.mean() + 0.1 * data.returns.std())
    config = tiny_decisions(Path("set"), evaluation={"references": references})
    with pytest.warns(UserWarning, match="scores say nothing"):
        decision_record(config, data)


def test_a_model_acts_in_the_environment_that_the_data_were_collected_in(tmp_path, monkeypatch):
    options = EnvironmentOptions(
        kwargs={"g": 0.5},
        max_episode_steps=7,
        wrappers=(WrapperOptions(entry_point=CLIP_REWARD, kwargs={"max_reward": -1.0}),),
    )
    replace(random_trajectories(), env_options=options).save(tmp_path / "data")
    result = train(
        tiny_decisions(tmp_path / "data", evaluation={"targets": (-60.0,)}), tmp_path / "run"
    )
    (outcome,) = result.outcomes
    assert outcome.length == 7
    assert outcome.mean <= -7
    assert result.env == "Pendulum-v1 (g=0.5, 7 steps, in ClipReward)"
    made = []
    monkeypatch.setattr(study, "evaluate_returns", lambda _, make, **__: made.append(make()) or ())
    evaluate(tmp_path / "run")
    assert made[0].unwrapped.g == 0.5
    assert made[0].spec.max_episode_steps == 7


def test_another_environment_than_that_of_the_data_is_told():
    data = replace(random_trajectories(), env_options=EnvironmentOptions(kwargs={"g": 0.5}))
    config = tiny_decisions(Path("set"), evaluation={"env": "Pendulum-v1"})
    with pytest.warns(UserWarning, match=r"acts in Pendulum-v1, .* of Pendulum-v1 \(g=0.5\)"):
        record = decision_record(config, data)
    assert record.env_options == {}
    # Where the data name none, it is the chosen one with what they say of it.
    unnamed = replace(data, env=None)
    assert decision_record(config, unnamed).env_options == {"kwargs": {"g": 0.5}}


def test_a_run_of_old_whose_record_has_no_options_is_read(pendulum, tmp_path):
    run = RunFolder(tmp_path / "run")
    train(tiny_decisions(pendulum, evaluation={"targets": TARGETS}), run.root)
    record = json.loads(run.config.read_text())
    del record["env_options"]
    for name in ("time_limit", "num_actions", "action_bounds"):
        del record["config"]["data"][name]
    run.config.write_text(json.dumps(record))
    assert not evaluate(run.root).differs


def test_episodes_of_two_sets_join(pendulum, tmp_path):
    random_trajectories(episodes=2, name="more-v0").save(tmp_path / "more")
    config = DecisionDataConfig(path=pendulum, mixed_with=str(tmp_path / "more"))
    assert len(load_trajectories(config)) == 6


def test_what_does_not_fit_is_refused_before_anything_is_written(pendulum, tmp_path):
    run = tmp_path / "run"
    config = tiny_decisions(pendulum, evaluation={"targets": TARGETS})
    with pytest.raises(ValueError, match=r"give data\.dataset .* or data\.path"):
        train(replace(config, data=DecisionDataConfig()), run)
    with pytest.raises(ValueError, match="max_timestep must be at least 12"):
        train(replace(config, model=replace(config.model, max_timestep=5)), run)
    streaming = {"targets": TARGETS, "form": "streaming"}
    with pytest.raises(NotImplementedError, match=r"give evaluation\.form windowed"):
        train(tiny_decisions(pendulum, evaluation=streaming, mixer="synthesizer"), run)
    for field, text in (("env", "names no environment"), ("references", "no reference returns")):
        replace(random_trajectories(), **{field: None}).save(tmp_path / field)
        with pytest.raises(ValueError, match=text):
            train(tiny_decisions(tmp_path / field), run)
    assert not run.exists()


def test_a_run_goes_on_with_the_numbers_that_it_began_with(pendulum, tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = tiny_decisions(pendulum)
    train(config, folder.root)
    # As an older version has both.
    kept = json.loads(folder.preprocessing.read_text())
    kept["state_std"][0] = 1e-6
    folder.preprocessing.write_text(json.dumps(kept))
    record = json.loads(folder.config.read_text())
    folder.config.write_text(json.dumps(record | {"targets": TARGETS}))
    folder.result.unlink()
    result = train(config, folder.root, resume=True)
    assert load_run(folder.root).preprocessing.state_std[0] == 1e-6
    assert [each.target for each in result.outcomes] == list(TARGETS)


def test_an_environment_of_other_spaces_is_refused_before_the_training(pendulum, tmp_path):
    config = tiny_decisions(pendulum, evaluation={"targets": TARGETS, "env": "CartPole-v1"})
    with (
        pytest.warns(UserWarning, match="acts in CartPole-v1"),
        pytest.raises(ValueError, match="expected observations of 3 numbers"),
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("env", "name", "noted"),
    [
        ("Hopper-v5", "mine", True),
        (None, "mujoco/walker2d/medium-v0", True),
        (None, "halfcheetah_medium-v2", True),
        ("CartPole-v1", "mine", False),
        (None, "pendulum", False),
    ],
)
def test_that_v5_is_not_d4rls_is_noted_where_d4rl_has_the_environment(env, name, noted):
    config = tiny_decisions(Path(name), evaluation={"env": env})
    config = replace(config, data=DecisionDataConfig(dataset=name))
    assert ("not D4RL's v2" in config.protocol_note) is noted
    record = decision_record(config, replace(random_trajectories(), env=env or "CartPole-v1"))
    assert ("not D4RL's v2" in record.protocol_note) is noted


def test_padding_is_no_action():
    predicted, actions = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [5.0]]])
    mask = torch.tensor([[True, False]])
    assert action_loss(predicted, actions, mask) == 1
    logits = torch.tensor([[[100.0, 0.0], [0.0, 100.0]]])
    assert action_loss(logits, torch.tensor([[0, 0]]), mask) == 0


def test_behaviour_cloning_is_a_method_of_comparisons(pendulum, tmp_path):
    config = tiny_decisions(pendulum, evaluation={"targets": TARGETS})
    plan = make_plan(
        [config], {"flow": {}, "behaviour-cloning": {}}, seeds=1, root=tmp_path / "comparison"
    )
    flow, cloning = (run.request for run in plan.runs)
    assert flow.function == cloning.function == TRAIN
    models = [each.config.model for each in (flow, cloning)]
    assert isinstance(models[0], DecisionModelConfig)
    assert isinstance(models[1], DecisionModelConfig)
    assert (models[0].mixer, models[1].encoder) == ("flow", "behaviour-cloning")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": (1.0, 1.0)}, "must be finite and differ"),
        ({"targets": (float("nan"),)}, "must be finite and differ"),
        ({"references": (2.0, 1.0)}, "an expert's above it"),
        ({"episodes": 0}, "episodes must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrajectoriesEvaluationConfig(**settings)
