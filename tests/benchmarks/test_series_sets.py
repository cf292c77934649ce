"""Many sets of series: what is asked of a comparison, kept of it, ranked and shown."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.mixers import runs, series_paper, series_sets
from benchmarks.mixers.series_sets import (
    SETS,
    accuracies,
    costs,
    draw,
    epochs_of,
    mean_ranks,
    ranks,
)
from flowformer.data import load_uea

AEON = ("ItalyPowerDemand", "JapaneseVowels", "BasicMotions", "GunPoint")
AEON += ("ArrowHead", "PickupGestureWiimoteZ", "OSULeaf")


def run(method: str, seed: int, score: float) -> dict:
    cost = {"parameters": 1000, "seconds": 2.0, "peak_memory": 2**29}
    return {"method": method, "seed": seed, "score": score, **cost}


def part(*runs: dict, commit: str = "abc", load: str = "1.0") -> dict:
    machine = {"processor": "P", "vectors": "AVX2", "cores": 2, "threads": 1}
    machine |= {"load": load, "commit": commit, "torch": "2"}
    return {"machine": machine, "asked": "", "runs": list(runs)}


# flow is ahead of softmax on two sets and level on one; dtw is behind, or ahead, or level.
SCORES = {"GunPoint": (0.9, 0.8, 0.7), "ArrowHead": (0.8, 0.7, 0.9), "OSULeaf": (0.5, 0.5, 0.5)}
RESULT = {
    "machine": {"commit": "later"},
    "sets": {
        name: {
            "seeds": part(
                *(run("flow", seed, flow + 0.02 * seed - 0.01) for seed in (0, 1)),
                *(run("softmax", seed, softmax) for seed in (0, 1)),
            ),
            "once": part(run("dtw", 0, dtw), load="2.5"),
        }
        for name, (flow, softmax, dtw) in SCORES.items()
    },
}


def rows(table: str) -> dict[str, list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {own[0]: own[1:] for own in cells}


@pytest.mark.parametrize("name", AEON)
def test_the_sizes_of_a_set_are_those_of_its_files(name: str) -> None:
    data = load_uea(name)
    assert data.test is not None
    found = (len(data.train), len(data.test), data.max_length, data.train.channels)
    assert (*found, len(data.classes)) == SETS[name]


def test_every_set_has_as_many_steps_as_whole_epochs_allow() -> None:
    for name, sizes in SETS.items():
        batches = -(-round(0.8 * sizes.train) // series_sets.BATCH)
        assert 0 <= epochs_of(name) * batches - series_sets.STEPS < 2 * batches
        assert sizes.steps <= 1000


def test_ranks_count_ties_by_half() -> None:
    found = mean_ranks({"a": {"x": 0.9, "y": 0.5}, "b": {"x": 0.8, "y": 0.5}})
    assert found == {"a": 1.25, "b": 1.75}


def test_the_table_has_ranks_and_what_was_won_and_lost_against_flow() -> None:
    table = ranks(RESULT)
    found = rows(table)
    assert list(found) == ["`flow`", "`dtw`", "`softmax`"]
    assert found["`flow`"][:3] == ["1.67", "73.3", "–"]
    assert found["`softmax`"][:4] == ["2.33", "66.7", "0, 1, 2", "−6.67"]
    assert found["`dtw`"][:4] == ["2.00", "70.0", "1, 1, 1", "−3.33"]
    assert found["`dtw`"][-2:] == ["2 s", "512 MiB"]
    assert table.startswith("3 of 12 sets")
    assert table.endswith("(assets/series-sets.png)")


def test_each_set_has_its_accuracies_and_costs() -> None:
    name = "GunPoint: 50 + 150 series of 150 steps, 2 classes"
    assert rows(accuracies(RESULT))[name] == ["90.0 ± 1.4", "80.0 ± 0.0", "70.0"]
    assert rows(costs(RESULT))[name] == ["2 s, 512 MiB"] * 3


def test_a_set_that_a_method_has_not_finished_leaves_it_without_a_rank() -> None:
    half = json.loads(json.dumps(RESULT))
    del half["sets"]["OSULeaf"]["once"]
    assert list(rows(ranks(half))) == ["`flow`", "`softmax`"]
    assert "(assets/" not in ranks(half)
    assert rows(accuracies(half))["OSULeaf: 200 + 242 series of 427 steps, 6 classes"][-1] == "–"


def test_the_picture_has_every_method() -> None:
    figure = draw(RESULT)
    assert figure is not None
    said = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"flow", "softmax", "dtw"} <= said
    one = {"sets": {"GunPoint": RESULT["sets"]["GunPoint"]}}
    assert draw(one) is None


@pytest.fixture
def asked(tmp_path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, tuple[str, ...]]]:
    """What flowformer compare would have been asked for, which leaves runs.csv."""
    commands: list[tuple[Path, tuple[str, ...]]] = []

    def compare(output: Path, *arguments: str) -> list[dict[str, str]]:
        commands.append((output, arguments))
        row = {"method": "flow", "seed": "0", "score": "0.5", "parameters": "", "seconds": "1.5"}
        return [{**row, "peak_memory": "1048576", "problem": ""}]

    monkeypatch.setattr(runs, "compare", compare)
    for module, folder in ((series_sets, "eeg_folder"), (series_paper, "data_of")):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
        monkeypatch.setattr(module, folder, lambda _: ["--data.folder", "/eeg"])
    return commands


def test_a_set_is_kept_when_it_has_ended_and_not_repeated(tmp_path, asked) -> None:
    assert main(["series_sets", "GunPoint", "--seeds", "2"]) == 0
    kept = json.loads((tmp_path / "series_sets.json").read_text())["sets"]["GunPoint"]
    assert [output.name for output, _ in asked] == ["seeds", "variants", "once"] == list(kept)
    assert kept["seeds"]["runs"] == [
        {"method": "flow", "seed": 0, "score": 0.5, "seconds": 1.5, "peak_memory": 2**20}
    ]
    assert kept["seeds"]["machine"]["threads"] == 1
    assert "/eeg" not in kept["seeds"]["asked"]
    main(["series_sets", "GunPoint", "ArrowHead", "--seeds", "2"])
    assert len(asked) == 6  # of the second set alone
    main(["series_sets", "GunPoint", "--seeds", "3"])
    assert len(asked) == 8  # the mixers again, which go on in their folders
    assert [output for output, _ in asked[6:]] == [output for output, _ in asked[:2]]


def test_a_set_that_ended_without_the_variants_has_these_alone_to_do(tmp_path, asked) -> None:
    main(["series_sets", "GunPoint"])
    path = tmp_path / "series_sets.json"
    kept = json.loads(path.read_text())
    del kept["sets"]["GunPoint"]["variants"]
    path.write_text(json.dumps(kept))
    before = len(asked)
    main(["series_sets", "GunPoint"])
    assert [output.name for output, _ in asked[before:]] == ["variants"]
    words = asked[before][1]
    assert words[words.index("--mixers") + 1] == "flow-relu,flow-clamp"
    assert words[words.index("--import") + 1] == "benchmarks.mixers.ablations"


def test_the_paper_settings_take_turns_seed_by_seed(tmp_path, asked) -> None:
    assert main(["series_paper", "--seeds", "2"]) == 0
    places = [output.name for output, _ in asked]
    assert places == ["vowels-clean", "vowels-published", "scp1-clean", "scp1-published"] * 2
    seeds = [words[words.index("--training.seed") + 1] for _, words in asked]
    assert seeds == ["0"] * 4 + ["1"] * 4
    result = json.loads((tmp_path / "series_paper.json").read_text())
    assert rows(series_paper.table(result))["JapaneseVowels"] == [
        *("`flow`", "50.0 ± 0.0 (2)", "50.0 ± 0.0 (2)", "98.9", "1.5 s", "1 MiB")
    ]


@pytest.mark.parametrize(
    "command",
    [
        [*series_sets.setting_of("GunPoint"), *series_sets.LEARNERS],
        [*series_sets.setting_of("GunPoint"), *series_sets.ABLATIONS],
        [*series_sets.setting_of("GunPoint"), *series_sets.OTHERS],
        series_paper.setting_of("vowels", "published"),
    ],
)
def test_what_is_asked_of_compare_is_understood(tmp_path, monkeypatch, command) -> None:
    from flowformer.compare import execution

    plans = []
    monkeypatch.setattr(execution, "execute", lambda plan, **_: plans.append(plan))
    from flowformer.cli.main import main as flowformer

    with pytest.raises(SystemExit):  # no run has finished
        flowformer(["compare", *command, "--seeds", "1", "--output", str(tmp_path / "out")])
    assert len(plans) == 1
    configs = [run.request.config for run in plans[0].runs]
    assert {config.training.threads for config in configs} == {1}
