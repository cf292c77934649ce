"""Whole models of two source trees: a process answers with seconds, a table says what is slower."""

import pytest

from benchmarks.models import end_to_end
from benchmarks.models.end_to_end import CASES, Tree, table
from benchmarks.models.whole_models import named
from benchmarks.runner import ROOT, machine
from flowformer.models import LANGUAGE_PRESETS, TimeSeriesClassifier


def test_what_moves_is_found_by_its_name():
    assert named("TimeSeriesClassifier") is TimeSeriesClassifier
    assert named("LANGUAGE_PRESETS") is LANGUAGE_PRESETS
    with pytest.raises(LookupError, match="defines no Nothing"):
        named("Nothing")


def test_a_tree_times_calls_and_one_that_fails_is_an_error(monkeypatch):
    small = ("generated_token", {"preset": "gpt-nano", "vocabulary": 10})
    monkeypatch.setattr(end_to_end, "CASES", {"token": small, "bad": ("nothing", {})})
    tree = Tree(ROOT)
    assert 0 < tree.seconds("token", 1) < 60
    with pytest.raises(RuntimeError, match="bad: the process that measures it has ended"):
        tree.seconds("bad", 1)
    tree.end()


def test_a_call_that_has_become_slower_is_bold():
    taken = {case: {"before": 0.1, "now": 0.05} for case in CASES}
    taken["slow"] = {"before": 0.1, "now": 0.2}
    said = table({"machine": machine(), "before": "abc", "cases": taken})
    assert "| call | ms at abc | ms now | times as fast |" in said
    assert "| slow | 100 | 200 | **0.50** |" in said
    assert said.count("| 2.00 |") == len(CASES)
