"""Decision models on the command line: training, acting again, a film."""

import json

import pytest

from flowformer.train.run import train
from tests.train.small_trajectories import random_trajectories, tiny_decisions


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pendulum"
    random_trajectories().save(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_decisions(data, evaluation={"targets": (-60.0,)}), folder)
    return folder


def test_a_recipe_is_trained_on_a_folder_and_says_what_it_came_to(flowformer, data, tmp_path):
    small = [
        *("--model.dim", 8, "--model.num-layers", 1, "--model.num-heads", 2),
        *("--model.max-timestep", 12, "--model.context", 4, "--training.steps", 2),
        *("--training.evaluate-every", 2, "--training.threads", 1, "--training.progress", "none"),
        *("--evaluation.episodes", 2, "--evaluation.validation-episodes", 1),
        *("--evaluation.targets", -60, "--training.accelerator", "cpu"),
    ]
    folder = tmp_path / "run"
    outcome = flowformer("train", "decision", "--data.path", data, *small, "--run-dir", folder)
    assert outcome.code == 0, outcome.err
    assert "at a target of -60.0, 12 steps" in outcome.out
    assert "D4RL" not in outcome.out
    page = (folder / "report" / "index.html").read_text()
    assert "Normalised score" in page
    again = flowformer("evaluate", folder)
    assert again.code == 0, again.err
    assert "the same" in again.out


def test_a_run_acts_at_other_targets_and_in_the_other_form(flowformer, run):
    arguments = ["rollout", run, "--targets", -50, -70, "--form", "streaming", "--episodes", 2]
    outcome = flowformer(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    assert [each["target"] for each in json.loads(outcome.out)] == [-50, -70]
    said = flowformer(*arguments)
    assert "in Pendulum-v1, streaming." in said.out
    windowed = flowformer("rollout", run, "--context", 2, "--episodes", 1)
    assert "windowed, 2 steps" in windowed.out


def test_a_run_is_no_classifier(flowformer, run):
    outcome = flowformer("predict", run, __file__)
    assert outcome.code == 2
    assert f"flowformer rollout {run} uses it" in outcome.err


@pytest.mark.filterwarnings("ignore:--env. the model acts in CartPole-v1")
def test_another_environment_must_fit(flowformer, run):
    outcome = flowformer("rollout", run, "--env", "CartPole-v1")
    assert outcome.code == 2
    assert "expected observations of 3 numbers" in outcome.err


def test_a_form_that_has_no_window_takes_no_context(flowformer, run):
    outcome = flowformer("rollout", run, "--form", "streaming", "--context", 3)
    assert outcome.code == 2
    assert "expected form 'streaming' without a context" in outcome.err


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--episodes", 0, "episodes must be at least 1, got 0"),
        ("--video", "episode.txt", "expected a file with .gif or .mp4"),
    ],
)
def test_a_wrong_value_is_an_error_and_not_the_default(flowformer, run, flag, value, message):
    outcome = flowformer("rollout", run, flag, value)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_folder_without_a_run_is_named(flowformer, tmp_path):
    outcome = flowformer("rollout", tmp_path)
    assert outcome.code == 2
    assert "holds no run" in outcome.err
