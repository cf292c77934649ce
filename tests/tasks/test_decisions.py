"""Offline reinforcement learning from a configuration to a run folder."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from flowformer.models.decision_config import DecisionModelConfig
from flowformer.tasks.comparison import make_plan
from flowformer.tasks.decision import action_loss
from flowformer.tasks.decision_config import DecisionDataConfig, DecisionEvaluationConfig
from flowformer.tasks.decision_data import environment_maker, load_trajectories
from flowformer.tasks.decision_folder import DecisionRecord, DecisionResult
from flowformer.tasks.decision_run import evaluate_decision_run, load_decision_run
from flowformer.tasks.decision_training import train
from flowformer.tasks.folder import RunFolder
from flowformer.tasks.kinds import TRAJECTORIES
from tests.tasks.small_decisions import random_trajectories, tiny_decisions

TARGETS = (-20.0, -60.0)


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
    assert "not D4RL's v2" in result.protocol_note
    assert DecisionResult.read(RunFolder(tmp_path / "run")) == result


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
    run = load_decision_run(tmp_path / "run")
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
    evaluation = evaluate_decision_run(tmp_path / "run")
    assert not evaluation.differs
    assert "the same" in evaluation.describe()
    with pytest.raises(ValueError, match="tested in its environment"):
        evaluate_decision_run(tmp_path / "run", tmp_path / "x.hdf5")


def test_targets_and_references_are_those_of_the_data_unless_given(pendulum, tmp_path):
    data = load_trajectories(DecisionDataConfig(path=pendulum))
    config = tiny_decisions(pendulum, evaluation={"references": (-300.0, -10.0)})
    with pytest.warns(UserWarning, match="far outside the data"):  # half of a negative best
        train(config, tmp_path / "run")
    record = DecisionRecord.read(RunFolder(tmp_path / "run"))
    best = data.returns.max()
    assert record.targets == (round(best, 1), round(best / 2, 1))
    assert record.references == (-300.0, -10.0)
    assert record.data_mean == pytest.approx(data.returns.mean())


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


def test_an_environment_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="gymnasium has no environment 'Nowhere-v0'"):
        environment_maker("Nowhere-v0")


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
    assert flow.function == cloning.function == TRAJECTORIES.train
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
        DecisionEvaluationConfig(**settings)
