"""Collected sets: what a quality means, and that a killed collection ends the same."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowformer.data.standins.collect_episodes import Anchors, CollectionConfig, Quality, collect
from flowformer.data.standins.policy_search import SearchConfig
from flowformer.data.trajectories.minari import load_minari, local_minari
from flowformer.data.trajectories.records import Trajectories
from flowformer.progress import Work, showing
from tests.data.trajectories.test_records import require_same
from tests.data.walks import STEPS

EVEN = "tests.data.walks:Even-v0"
SEARCH = SearchConfig(
    env=EVEN, iterations=12, directions=4, top=2, step_size=0.2, noise=0.3, evaluate_every=1
)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache and no sets of the person who runs this."""
    monkeypatch.setenv("FLOWFORMER_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def collected(
    quality: Quality = "medium", *, folder: Path | None = None, workers: int = 1, **changes: Any
) -> Trajectories:
    config = CollectionConfig(search=SEARCH, quality=quality, steps=300)
    return collect(replace(config, **changes), folder=folder, workers=workers)[0]


def test_better_qualities_have_higher_returns():
    search = replace(SEARCH, evaluations=30, step_size=0.1)
    sets = [
        collected(quality, search=search, noise=0.05)
        for quality in ("random", "replay", "medium", "expert")
    ]
    means = [one.returns.mean() for one in sets]
    assert means == sorted(means)
    assert means[2] > means[0] + 1
    for one in sets:
        assert one.references == sets[0].references
        assert one.env == EVEN
        assert 300 <= one.steps < 300 + STEPS
        assert (one.terminated | (one.lengths == STEPS)).all()
    assert sets[2].mixed(sets[3]).steps == sets[2].steps + sets[3].steps
    # A score of the reference policies' own returns is about 0 and 100.
    assert abs(sets[0].normalized(means[0])) < 30
    assert sets[3].normalized(means[3]) > 60


def test_a_set_is_among_minaris_with_its_name_and_source():
    one = collected(noise=0.25)
    assert one.name == "tests-data-walks-even-v0-medium-v0"
    assert local_minari() == [one.name]
    require_same(one, load_minari(one.name))
    assert "of 12 of augmented random search (seed 0), with noise 0.25" in one.source


def test_a_set_does_not_depend_on_the_workers(tmp_path):
    require_same(collected("random"), collected("random", workers=2, folder=tmp_path / "two"))


@pytest.mark.parametrize("part", [1, 3])
def test_a_killed_collection_ends_the_same(tmp_path, monkeypatch, told, part):
    monkeypatch.setattr("flowformer.data.standins.collect_episodes._PART", 3)
    with showing(False):
        straight = collected("replay", folder=tmp_path / "straight")

    class Killed(Exception):  # noqa: N818 - no error
        pass

    episodes = count(1)

    def die(work: Work) -> nullcontext:
        def tell() -> None:
            if work.what == "playing replay episodes" and next(episodes) == 3 * part:
                raise Killed

        return nullcontext(tell)

    config = CollectionConfig(search=SEARCH, quality="replay", steps=300)
    with pytest.raises(Killed), showing(die):
        collect(config, folder=tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    again, _ = collect(config, folder=tmp_path / "killed")
    require_same(straight, again)
    assert {what for what, *_ in told} == {"playing replay episodes"}


def test_a_set_that_is_there_is_read(tmp_path, monkeypatch):
    one = collected(folder=tmp_path / "set")
    monkeypatch.delattr("flowformer.data.standins.collect_episodes._play")
    require_same(one, collected(folder=tmp_path / "set"))


@pytest.mark.parametrize(
    ("changes", "different"),
    [({"steps": 200}, "steps"), ({"search": replace(SEARCH, seed=1)}, "search")],
)
def test_another_set_is_not_taken_for_it(tmp_path, changes, different):
    collected(folder=tmp_path / "set")
    with pytest.raises(FileExistsError, match=f"holds another set: .* the same {different}"):
        collected(folder=tmp_path / "set", **changes)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(FileExistsError, match="holds another set"):
        collected(folder=tmp_path / "set")


def test_discrete_actions_are_collected_too():
    one = collected("expert", search=replace(SEARCH, env="tests.data.walks:Steps-v0"))
    assert one.action_space.n == 3
    assert one.actions.dtype == np.int64


@pytest.fixture
def no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every policy returns what random actions do, within their noise."""

    def returns(_config: CollectionConfig, policy: object, _pool: object) -> np.ndarray:
        return np.resize([-1500.0, -900.0], 50) + (0 if policy is None else 36)

    monkeypatch.setattr("flowformer.data.standins.collect_episodes._returns", returns)


@pytest.mark.usefixtures("no_better")
def test_random_actions_have_no_score_where_the_search_finds_nothing_better():
    with pytest.warns(
        UserWarning, match=r"no policy better than a random one in 12 .*--iterations"
    ):
        one = collected("random")
    assert one.references is None
    require_same(one, load_minari(one.name))


@pytest.mark.usefixtures("no_better")
@pytest.mark.parametrize("quality", ["medium", "replay", "expert"])
def test_a_better_quality_is_refused_where_the_search_finds_nothing_better(quality):
    with pytest.raises(ValueError, match=r"no policy better than a random one .*--iterations"):
        collected(quality)


@pytest.mark.parametrize(
    ("random", "expert", "apart"),
    [(-1202.5, -1165.9, False), (-1202.5, -800.0, True), (3.0, 2.0, False)],
)
def test_references_count_where_they_differ_by_more_than_their_noise(random, expert, apart):
    anchors = Anchors(best=0, random=random, expert=expert, noise=55.0)
    assert anchors.apart is apart


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"noise": -0.1}, "noise must be at least 0"),
        ({"medium": 0.0}, r"medium must be in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(CollectionConfig(search=SEARCH, quality="random"), **options)


def test_without_minari_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"minari is needed .*'flowformer\[rl\]'"):
        load_minari("any-v0")
