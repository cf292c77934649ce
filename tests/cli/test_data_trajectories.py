"""`flowformer data collect`, and `show` of sets of trajectories."""

from pathlib import Path

import numpy as np
import pytest

from flowformer.data.trajectories.d4rl import write_d4rl
from flowformer.data.trajectories.minari import load_minari
from tests.data.trajectories.test_records import some

ENV = "tests.data.walks:Even-v0"
NAME = "tests-data-walks-even-v0-expert-v0"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache and no sets of the person who runs this."""
    monkeypatch.setenv("FLOWFORMER_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def test_a_collected_set_is_described_and_shown_by_its_name(flowformer):
    outcome = flowformer(
        *("data", "collect", ENV, "--quality", "expert", "--steps", 50, "--iterations", 2),
        *("--workers", 1),
    )
    assert outcome.code == 0, outcome.err
    assert f"Next: flowformer data show {NAME}" in outcome.out
    shown = flowformer("data", "show", NAME).out
    assert shown in outcome.out
    assert f"\n{NAME}\n" in flowformer("data", "list").out
    one = load_minari(NAME)
    assert f"steps                     {one.steps:,}\n" in shown
    assert f"{one.returns.mean():,.1f} ± {one.returns.std():,.1f}" in shown
    assert "1 between -2.0 and 2.0" in shown
    assert "D4RL" not in shown


def test_an_environment_of_d4rls_is_shown_beside_their_references(flowformer, tmp_path):
    references = (0.0, 100.0)
    rewards = np.array([1000, 0, 0, 0, 0, 0], np.float32)
    own = some(name="hopper-own-v0", env="Hopper-v5", references=references, rewards=rewards)
    own.save(tmp_path / "own")
    out = flowformer("data", "show", tmp_path / "own").out
    assert "references                random 0.0, expert 100.0\n" in out
    assert "D4RL's references         random -20.3, expert 3,234.3\n" in out
    # The mean return is 1,000 / 3.
    assert f"mean score by D4RL's      {100 * (1000 / 3 + 20.272305) / 3254.572305:.1f}\n" in out
    assert "v5 environments on today's MuJoCo are not D4RL's v2" in out


def test_a_file_of_d4rls_is_shown(flowformer, tmp_path):
    write_d4rl(some(), tmp_path / "any.hdf5")
    out = flowformer("data", "show", tmp_path / "any.hdf5").out
    assert out.startswith(f"some-medium, in {tmp_path / 'any.hdf5'}\n")
    assert "ended by the environment  66.7%" in out
    assert "3 to 56, median 4, mean 21" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["collect", "Hoper-v5"], "gymnasium has no environment 'Hoper-v5'"),
        (["collect", "tests.data.walks:Several-v0"], "actions of a Box with one axis or Discrete"),
        (["collect", ENV, "--steps", "0"], "steps must be at least 1, got 0"),
        (["show", "no-such.hdf5"], "expected a file of D4RL's, found none: no-such.hdf5"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(flowformer, arguments, message):
    outcome = flowformer("data", *arguments, *(["--workers", 1] if "collect" in arguments else []))
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_the_action_is_listed(flowformer):
    assert "collect  play episodes for offline learning" in flowformer("data").out
