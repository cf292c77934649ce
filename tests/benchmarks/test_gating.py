"""Models of equal size: what is asked, kept and marked; the mixers that lack a part."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.mixers import comparisons, gating, gating_options, series_sets
from benchmarks.mixers.gating import ABLATION, ABLATIONS, FLOW_ABLATION, TASKS, figures, mixers_of
from flowformer.nn import build_mixer
from flowformer.nn.mixers.building import mixer_options

# Of three seeds: far better than flow, better before a correction, and alike.
SCORES = {
    "flow": [0.500, 0.510, 0.520],
    "softmax": [0.600, 0.611, 0.621],
    "linear": [0.530, 0.560, 0.545],
    "gated": [0.500, 0.520, 0.510],
    "flow-gated": [0.400, 0.409, 0.419],
}


def test_a_task_is_marked_against_flow_after_all_pairs_of_its_mixers() -> None:
    baselines = dict.fromkeys([*SCORES, "gla"], "flow")
    assert figures("text", {"scores": SCORES}, baselines) == {
        "flow": "51.0 ± 1.0",
        "softmax": "61.1 ± 1.1 ↑",
        "linear": "54.5 ± 1.5 (↑)",
        "gated": "51.0 ± 1.0",
        "flow-gated": "40.9 ± 1.0 ↓",
        "gla": "–",
    }
    bits = figures("characters", {"scores": SCORES}, baselines)
    assert (bits["softmax"], bits["flow-gated"]) == ("0.611 ± 0.011 ↓", "0.409 ± 0.010 ↑")


def test_an_ablation_is_marked_against_its_whole_alone() -> None:
    tasks = {}
    for task, families in ABLATIONS.items():
        scores = {mixer: SCORES["flow"] for family in families for mixer in family}
        tasks[task] = {"scores": scores, "parameters": dict.fromkeys(scores, 1000)}
        assert len(gating.tests(task, tasks[task])) == len(scores) - len(families)
    tasks[ABLATION]["scores"]["gated-no-decay"] = SCORES["flow-gated"]
    tasks[FLOW_ABLATION]["scores"]["flow-no-clamp"] = SCORES["softmax"]
    table = gating.ablation({"tasks": tasks})
    assert "| `gated-no-decay` | 0.409 ± 0.010 ↑ | 1,000 |" in table
    assert "| `flow-no-clamp` | 0.611 ± 0.011 ↓ | 1,000 |" in table
    assert table.count("↑") + table.count("↓") == 2
    assert "flow-relu" not in gating.ablation({"tasks": {ABLATION: tasks[ABLATION]}})
    assert gating.ablation({"tasks": {}}) == "Not run yet."


def test_retrieval_stands_beside_the_nine_tasks() -> None:
    assert "retrieval" in TASKS
    assert len(TASKS) == 10
    assert mixers_of("retrieval") == mixers_of("text") == [*SCORES]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What flowformer compare would have been asked for, which leaves runs.csv."""
    commands: list[tuple[str, ...]] = []

    def flowformer(*arguments: str, **_: str) -> None:
        commands.append(arguments)
        mixers = arguments[arguments.index("--mixers") + 1].split(",")
        output = Path(arguments[arguments.index("--output") + 1])
        output.mkdir(parents=True, exist_ok=True)
        with (output / "runs.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("method", "seed", "score", "parameters"))
            rows.writerows((mixer, seed, 0.5 + seed, 1000) for seed in (0, 1) for mixer in mixers)

    monkeypatch.setattr("benchmarks.mixers.runs.flowformer", flowformer)
    monkeypatch.setattr(gating, "FOLDER", tmp_path / "comparisons")
    monkeypatch.setattr(gating, "RESULTS", tmp_path)
    return commands


def value(arguments: Sequence[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_a_task_is_kept_beside_those_that_are_there(tmp_path: Path, asked) -> None:
    kept = {"tasks": {"vowels": {"scores": SCORES, "tests": "of an older result"}}}
    (tmp_path / "gating.json").write_text(json.dumps(kept))
    assert main(["gating", "retrieval", ABLATION, "--seeds", "2"]) == 0
    retrieval, ablation = asked
    assert retrieval[1] == "retrieval-small"
    assert "--equal-parameters" in retrieval
    assert "--import" not in retrieval
    assert value(ablation, "--import") == "benchmarks.mixers.ablations"
    tasks = json.loads((tmp_path / "gating.json").read_text())["tasks"]
    assert list(tasks) == ["vowels", "retrieval", ABLATION]
    assert tasks["retrieval"]["scores"]["gated"] == [0.5, 1.5]
    assert "Retrieval, %" in gating.gating({"tasks": tasks})


def test_what_differs_from_flow_differs_in_one_option() -> None:
    from benchmarks.mixers import ablations  # enters its mixers into the table

    given = {"vowels": {"clamp": None}, "characters": {"clamp": 1.0}}
    for name, changed in ablations.OTHERWISE.items():
        task, model = ("characters", "language") if "no" in name else ("vowels", "series")
        config = type("Config", (), {"mixer_options": None, "mixer": name, "dropout": 0.0})
        mixer = build_mixer(name, 8, 2, **mixer_options(config, model))
        plain = {"feature_map": "sigmoid", **given[task]}
        attention: Any = mixer.attention
        options = attention.options._asdict()
        assert {option: options[option] for option in plain} == plain | changed
        assert plain | changed != plain
    assert {*series_sets.VARIANTS, "flow-no-clamp"} == {*ablations.OTHERWISE}
    assert {"flow-relu", "flow-no-clamp"} <= {*mixers_of(FLOW_ABLATION)}


def test_what_is_tried_is_asked_for_with_other_seeds_and_marked_against_its_own_flow(
    tmp_path: Path, asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gating_options, "FOLDER", tmp_path / "comparisons")
    monkeypatch.setattr(gating_options, "RESULTS", tmp_path)
    assert main(["gating_options", "text"]) == 0
    options, dropout = asked
    assert value(options, "--training.seed") == value(dropout, "--training.seed") == "10"
    assert value(options, "--mixers").startswith("flow,gated,gated-no-convolution,")
    assert "--import" in options
    assert value(dropout, "--model.dropout") == "0.2"
    kept = json.loads((tmp_path / "gating_options.json").read_text())
    scores = kept["tasks"]["text"]["scores"]
    assert list(scores)[-2:] == ["flow, dropout 0.2", "gated, dropout 0.2"]
    scores |= {"flow": SCORES["flow"], "flow, dropout 0.2": SCORES["softmax"]}
    scores |= {"gated": SCORES["flow"], "gated, dropout 0.2": SCORES["flow"]}
    scores |= dict.fromkeys(set(scores) - {"flow", "gated"} - {*list(scores)[-2:]}, SCORES["flow"])
    table = gating_options.gating_options(kept)
    assert "| `gated` | 51.0 ± 1.0 |" in table
    assert "| `gated`, dropout 0.2 | 51.0 ± 1.0 ↓ |" in table
    assert table.count("↓") == 1


def test_what_is_gated_itself_on_a_task_is_not_tried_there() -> None:
    tried = {task: set(gating_options.mixers_of(task)) for task in gating_options.NO_BETTER}
    ways = {"gated-all-one-way", "gated-all-both-ways"}
    assert ways <= tried["text"]
    assert not ways & tried["hopper"]  # causal
    for task in ("vowels", "scp1"):  # two heads, of which one reads each way
        assert ways & tried[task] == {"gated-all-both-ways"}


def test_the_folder_of_the_eeg_sets_is_given_for_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "Blink" / "Blink_TRAIN.ts"
    monkeypatch.setattr("flowformer.data.standins.fetching.PackageFiles.fetch", lambda _: [file])
    assert comparisons.eeg_folder("Blink") == ["--data.folder", str(tmp_path)]
    assert comparisons.eeg_folder("GunPoint") == []
