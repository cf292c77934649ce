"""Language models of equal size: what is asked of a comparison, kept of its runs, and shown."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import main, parser_of
from benchmarks.mixers import language
from benchmarks.mixers.language import (
    CONTEXTS,
    MIXERS,
    TOKENS,
    UNMEASURED,
    asked_of,
    at_context,
    characters,
    draw,
    draw_lengths,
    lengths,
    places,
    runs_of,
    wiki,
)

SPEED = "tokens_per_second"


def run(mixer: str, seed: int, score: float, speed: float = 1000.0) -> dict:
    cost = {"parameters": 2000, "seconds": 60.0, "peak_memory": 2**29}
    curve = {"step": [10, 20], "score": [score + 1 + seed / 10, score + seed / 10]}
    return {"method": mixer, "seed": seed, "score": score, SPEED: speed, "curve": curve, **cost}


MACHINE = {"processor": "P", "vectors": "AVX2", "cores": 2, "threads": 1, "commit": "abc"}
MACHINE |= {"load": "1.0", "torch": "2"}


def part(scores: dict[str, list[float]], *, slower: float = 1.0, seeds: int = 3) -> dict:
    speeds = {"softmax": 800.0 / slower}
    return {
        f"seed {seed}": {
            "machine": MACHINE,
            "asked": "",
            "runs": [
                run(mixer, seed, own[seed], speeds.get(mixer, 1000.0))
                for mixer, own in scores.items()
            ],
        }
        for seed in range(seeds)
    }


BITS = {"flow": [3.0, 3.01, 3.02], "softmax": [2.5, 2.511, 2.521], "mamba2": [2.9, 3.1, 2.8]}
LONGER = {mixer: BITS[mixer] for mixer in ("flow", "softmax")}
RESULT = {
    "characters": part(BITS),
    "lengths": {"1024": part(LONGER, slower=2), "4096": part(LONGER, slower=8, seeds=2)},
}


def rows(table: str) -> dict[str, list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {own[0]: own[1:] for own in cells}


def value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_a_step_has_as_many_tokens_and_a_run_as_many_steps_at_every_context() -> None:
    asked = {
        place: asked_of(place, MIXERS[place[0]]) for place in places(["characters", "lengths"])
    }
    assert len(asked) == len(CONTEXTS)  # those of the recipe's context are the characters' own
    steps = {value(each, "--training.steps") for each in asked.values()}
    assert steps == {str(language.STEPS["characters"])}
    for place, each in asked.items():
        assert value(each, "--training.threads") == "1"
        if place[1:]:
            length, samples = (value(each, f"--data.{it}") for it in ("length", "batch-size"))
            assert (length, value(each, "--model.max-length")) == (place[1], place[1])
            assert int(length) * int(samples) == TOKENS
    assert all(value(each, "--mixers").startswith("flow,") for each in asked.values())


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What flowformer compare would have been asked for, which leaves its folder."""
    commands: list[list[str]] = []

    def flowformer(*arguments: str, **_: str) -> None:
        commands.append(list(arguments))
        column = "perplexity" if "wiki-small" in arguments else "bits_per_character"
        seed = value(commands[-1], "--training.seed")
        output = Path(value(commands[-1], "--output"))
        for mixer in value(commands[-1], "--mixers").split(","):
            folder = output / "runs" / "text" / f"{mixer}-seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "result.json").write_text('{"tokens_per_second": 123.5}')
            metrics = f"step,validation_{column},train_seconds\n10,3.5,1\n20,2.5,1\n"
            (folder / "metrics.csv").write_text(metrics)
        with (output / "runs.csv").open("w", newline="") as file:
            table = csv.writer(file)
            head = ("dataset", "method", "seed", "score", "parameters", "seconds", "peak_memory")
            table.writerow(head)
            for mixer in value(commands[-1], "--mixers").split(","):
                table.writerow(("text", mixer, seed, 2.5, 1000, 60.0, ""))

    monkeypatch.setattr("benchmarks.mixers.runs.flowformer", flowformer)
    monkeypatch.setattr(language, "FOLDER", tmp_path / "comparisons")
    return commands


def test_all_mixers_have_a_seed_before_one_has_the_next_and_each_is_kept(tmp_path, asked) -> None:
    output = tmp_path / "language.json"
    words = ["language", "characters", "lengths", "--output", str(output)]
    assert main([*words, "--seeds", "2"]) == 0
    folders = [Path(value(each, "--output")).name for each in asked]
    longer = ["lengths-1024", "lengths-2048", "lengths-4096"]
    assert folders == ["characters"] * 2 + longer * 2
    assert [value(each, "--training.seed") for each in asked] == ["0", "1", *"000111"]
    assert all(value(each, "--seeds") == "1" for each in asked)
    kept = json.loads(output.read_text())
    (one, *_) = kept["lengths"]["2048"]["seed 1"]["runs"]
    assert one == {
        "method": "flow",
        "seed": 1,
        "score": 2.5,
        "parameters": 1000,
        "seconds": 60.0,
        "tokens_per_second": 123.5,
        "curve": {"step": [10, 20], "score": [3.5, 2.5]},
    }
    assert kept["characters"]["seed 0"]["machine"]["threads"] == 1
    main([*words, "--seeds", "3"])
    assert [value(each, "--training.seed") for each in asked[8:]] == ["2"] * 4  # no more than that
    main(["language", "wiki", "--seeds", "1", "--output", str(output)])
    found = runs_of(json.loads(output.read_text()), "wiki")
    assert list(found) == MIXERS["wiki"]


def test_a_quick_run_has_every_part_and_is_kept_elsewhere(tmp_path, asked, monkeypatch) -> None:
    kept = tmp_path / "language.json"
    parser = parser_of("language", language)
    parser.set_defaults(output=kept)
    monkeypatch.setattr("benchmarks.__main__.parser_of", lambda *_: parser)
    main(["language", "--quick"])
    assert not kept.exists()
    assert list(json.loads((tmp_path / "language_quick.json").read_text())) == [
        "machine",
        *("characters", "wiki", "lengths"),
    ]
    assert {value(each, "--training.steps") for each in asked} == {"4"}


def test_a_table_has_bits_with_their_test_and_what_a_run_costs() -> None:
    table = characters(RESULT)
    assert table.startswith("3 seeds, 20 steps.")
    found = rows(table)
    assert found["`flow`"] == ["3.010 ± 0.010", "1,000", "2,000", "1 min 0 s", "512 MiB"]
    assert found["`softmax`"][:2] == ["2.511 ± 0.011 ↑", "800"]
    assert found["`mamba2`"][0] == "2.933 ± 0.153"
    assert "Made on P (AVX2), 1 of 2 cores, PyTorch 2, commit abc" in table
    assert table.endswith("(assets/language.png)")


def test_what_has_not_been_run_says_so() -> None:
    assert wiki(RESULT) == UNMEASURED["language_wiki"]
    assert characters({"wiki": part(BITS)}).startswith(UNMEASURED["language_characters"])
    assert lengths({"characters": RESULT["characters"]}) == UNMEASURED["language_lengths"]
    assert draw({"lengths": RESULT["lengths"]}) is None
    assert draw_lengths({"characters": RESULT["characters"]}) is None


def test_the_shortest_context_is_that_of_the_characters() -> None:
    assert list(at_context(RESULT, 256)) == ["flow", "softmax"]
    assert not at_context(RESULT, 2048)
    found = rows(lengths(RESULT))
    head = found["bits per character; tokens a second"]
    assert head == ["256 characters", "1,024 characters", "2,048 characters", "4,096 characters"]
    assert found["`softmax`"] == [
        *("2.511 ± 0.011 ↑; 800", "2.511 ± 0.011 ↑; 400", "–", "2.506 ± 0.008; 100")
    ]


def test_a_mixer_without_all_seeds_is_left_out() -> None:
    half = json.loads(json.dumps(RESULT))
    half["characters"]["seed 2"]["runs"].pop()
    assert list(runs_of(half, "characters")) == ["flow", "softmax"]


def test_the_curves_are_means_over_the_seeds_with_their_spread() -> None:
    figure = draw(RESULT)
    assert figure is not None
    (axes,) = figure.axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}
    assert list(lines) == list(BITS)
    assert lines["flow"] == pytest.approx(np.array([[10, 4.11], [20, 3.11]]))
    assert len(axes.collections) == len(BITS)
    low, high = axes.collections[0].get_datalim(axes.transData).intervaly
    scores = [3.0, 3.01 + 0.1, 3.02 + 0.2]
    assert low == pytest.approx(np.mean(scores) - np.std(scores, ddof=1))
    assert high == pytest.approx(1 + np.mean(scores) + np.std(scores, ddof=1))


def test_the_picture_over_the_context_has_bits_and_speed() -> None:
    figure = draw_lengths(RESULT)
    assert figure is not None
    bits, speed = figure.axes
    drawn: list[Any] = list(speed.containers)
    along = {str(each.get_label()): each.lines[0].get_xydata() for each in drawn}
    assert along["softmax"].tolist() == [[256, 800], [1024, 400], [4096, 100]]
    assert [each.get_label() for each in bits.containers] == ["flow", "softmax"]


@pytest.mark.parametrize("place", list(places(language.PARTS)), ids="-".join)
@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
def test_what_is_asked_of_compare_is_understood(tmp_path, monkeypatch, place, quick) -> None:
    from flowformer.cli.compare import main as compare
    from flowformer.compare import equal, execution

    plans = []
    monkeypatch.setattr(execution, "execute", lambda plan, **_: plans.append(plan))
    monkeypatch.setattr(equal, "equal_parameters", lambda plan: (plan, []))  # it reads the texts
    asked = asked_of(place, MIXERS[place[0]], quick=quick)
    compare([*asked, "--training.seed", "2", "--seeds", "1", "--output", str(tmp_path / "out")])
    (plan,) = plans
    assert plan.seeds == (2,)
    for each in plan.runs:
        config = each.request.config
        assert config.training.steps % config.training.evaluate_every == 0
        assert config.model.max_length >= config.data.length
