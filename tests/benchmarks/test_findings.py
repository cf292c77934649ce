"""What was found: every verdict in words, each from results that were made up."""

from dataclasses import replace

import pytest

from benchmarks.__main__ import main
from benchmarks.findings import (
    QUESTIONS,
    Evidence,
    Question,
    Results,
    Source,
    answer,
    findings,
    in_language,
    in_recall,
    on_task,
    oriented,
    over_sets,
)
from benchmarks.mixers import series_sets
from flowformer.compare.significance import PairedTest, against

BY_TEXT = {question.text: question for question in QUESTIONS}
# Of three seeds, beside those of flow: far higher, higher before a correction, alike, far lower.
FLOW = [0.500, 0.510, 0.520]
HIGHER, RATHER, ALIKE, LOWER = (
    *([0.600, 0.611, 0.621], [0.530, 0.560, 0.545]),
    *([0.500, 0.520, 0.510], [0.400, 0.409, 0.419]),
)


def gating(**tasks: dict[str, list[float]]) -> dict:
    return {"tasks": {task: {"scores": scores} for task, scores in tasks.items()}}


def seeds(scores: dict[str, list[float]]) -> dict:
    return {
        f"seed {seed}": {
            "runs": [
                {"method": mixer, "seed": seed, "score": own[seed], "tokens_per_second": 100.0}
                for mixer, own in scores.items()
            ]
        }
        for seed in range(3)
    }


def sets(scores: dict[str, list[float]]) -> dict:
    """Return results of as many sets as there are scores of each method."""
    return {
        "sets": {
            name: {
                "seeds": {
                    "runs": [
                        {"method": method, "seed": 0, "score": own[at]}
                        for method, own in scores.items()
                    ]
                }
            }
            for at, name in enumerate(list(series_sets.SETS)[: len(scores["flow"])])
        }
    }


def one(source: Source, method: str = "softmax", other: str = "flow") -> Question:
    sources = [(method, other, source)]
    return Question(text="?", better="It is better", worse="It is worse", sources=sources)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        pytest.param(
            HIGHER,
            "It is better on Text (+10.07 points, p = 1.1e-05, corrected 3.3e-05, 3 seeds).",
            id="better",
        ),
        pytest.param(
            LOWER,
            "It is worse on Text (−10.07 points, p = 1.1e-05, corrected 3.3e-05, 3 seeds).",
            id="worse",
        ),
        pytest.param(
            RATHER,
            "It is better, but only before the correction, on Text "
            "(+3.50 points, p = 0.044, corrected 0.089, 3 seeds).",
            id="before",
        ),
        pytest.param(
            ALIKE,
            "No difference that these runs can tell on Text (+0.00 points, p = 1, 3 seeds).",
            id="none",
        ),
    ],
)
def test_a_difference_is_said_with_its_figure_and_its_test(scores: list[float], said: str) -> None:
    cell = {"flow": FLOW, "softmax": scores, "linear": ALIKE}
    results = Results(gating=gating(text=cell))
    question = one(lambda r, a, b: on_task(r, a, b, task="text"))
    assert answer(question, results) == [said]


def test_what_has_not_been_run_says_by_what_command_it_is() -> None:
    question = BY_TEXT["Does competition help?"]
    assert answer(question, Results()) == [
        "Not run yet on sets of time series (`python -m benchmarks series_sets`); characters and "
        "characters in `flow-gated` (`python -m benchmarks gating flow-ablation ablation`)."
    ]


def test_a_comparison_of_two_seeds_has_its_means_and_no_test() -> None:
    rows = [
        {"method": "flow", "mean": "0.589", "finished": "2"},
        {"method": "softmax", "mean": "0.6", "finished": "2"},
        {"method": "linear", "mean": "", "finished": "0"},
    ]
    results = Results(compared={"text": rows, "wiki": rows})
    few = on_task(results, "flow", "softmax", task="text")
    assert (few.verdict, str(few)) == ("few", "Text (58.9 against 60.0 %, 2 seeds)")
    assert on_task(results, "flow", "linear", task="text").verdict == "missing"
    words = in_language(results, "flow", "softmax", part="wiki")
    assert str(words) == "words of Wikipedia (0.59 against 0.60 perplexity, 2 seeds)"


def test_less_is_better_of_bits_and_a_sentence_has_every_verdict_once() -> None:
    tasks = {"text": ALIKE, "image": HIGHER, "characters": LOWER}
    results = Results(
        gating=gating(**{t: {"flow": FLOW, "flow-gated": s} for t, s in tasks.items()})
    )
    said = answer(
        BY_TEXT["Does gating help Flow-Attention (`flow-gated` against `flow`)?"], results
    )
    better, alike, missing = said
    assert better.startswith("It helps on characters (−0.101 bits per character, p = 1.1e-05")
    assert " and Image (+10.07 points" in better
    assert alike.startswith("No difference that these runs can tell on Text (+0.00 points, p = 1,")
    assert missing.startswith("Not run yet on sets of time series (`python -m benchmarks series_s")
    assert "; 4,500 steps of characters and 2,250 steps of words of Wikipedia (" in missing


def test_sets_are_tested_over_the_sets_in_the_family_of_the_table() -> None:
    flow = [0.5 + at / 100 for at in range(12)]
    without = [each - 0.01 - at / 1000 for at, each in enumerate(flow)]
    mixed = [each + (0.01 if at % 2 else -0.01) for at, each in enumerate(flow)]
    results = Results(
        series_sets=sets({"flow": flow, "flow-no-competition": without, "softmax": mixed})
    )
    found = over_sets(results, "flow", "flow-no-competition")
    assert found.test is not None
    assert (found.verdict, found.pairs) == ("better", 12)
    assert (
        str(found) == "sets of time series (+1.55 points, p = 0.00049, corrected 0.00098, 12 sets)"
    )
    assert over_sets(results, "flow", "softmax").verdict == "none"
    assert over_sets(results, "flow", "linear").verdict == "missing"


def test_too_few_sets_say_nothing_however_they_differ() -> None:
    results = Results(series_sets=sets({"flow": [0.5, 0.6, 0.7], "softmax": [0.4, 0.5, 0.5]}))
    (said,) = answer(one(over_sets), results)
    assert said.startswith(
        "Too few to say anything on sets of time series (−13.33 points, p = 0.25"
    )


def test_a_test_can_be_read_the_other_way_round() -> None:
    test = PairedTest(method="b", baseline="a", difference=0.2, pairs=3, p=0.01, effect=1.0)
    turned = oriented({("b", "a"): test}, "a", "b")
    assert turned == replace(test, method="a", baseline="b", difference=-0.2, effect=-1.0)
    assert oriented({("b", "a"): test}, "b", "a") is test
    assert oriented({}, "a", "b") is None
    assert against(["a", "b"], "a") == [("b", "a")]


def test_language_and_recall_are_tested_against_flow() -> None:
    results = Results(
        language={"characters": seeds({"flow": FLOW, "softmax": LOWER})},
        recall={
            "setting": {},
            "cells": [
                {"mixer": mixer, "pairs": 16, "width": 64, "test_score": score}
                for mixer, own in {"flow": FLOW, "softmax": HIGHER}.items()
                for score in own
            ],
        },
    )
    assert in_language(results, "flow", "softmax", part="characters").verdict == "worse"
    found = in_recall(results, "flow", "softmax")
    assert (found.verdict, found.where) == ("worse", "recall of 16 pairs")
    assert in_language(results, "flow", "linear", part="characters").verdict == "missing"


def test_recall_says_how_many_pairs_each_recalls() -> None:
    right = {("softmax", 8): 1.0, ("softmax", 16): 0.95, ("gla", 8): 0.9, ("gla", 16): 0.5}
    right |= {("flow", 8): 0.4, ("deltanet", 8): 0.99}
    cells = [
        {"mixer": mixer, "pairs": pairs, "width": 64, "test_score": score}
        for (mixer, pairs), score in right.items()
    ]
    assert (
        "- **How many pairs are recalled?** In models 64 wide, 90 % of the answers are right up to "
        "this many pairs: 16 with `softmax`; 8 with `gla` and `deltanet`; no number that was tried "
        "with `flow`.\n"
    ) in findings(Results(recall={"setting": {}, "cells": cells}))


def test_a_longer_context_says_how_many_tokens_a_second() -> None:
    step = {
        "contexts": {
            "512": {"over_softmax": {"flow": 1.152}},
            "8192": {"over_softmax": {"flow": 2}},
        }
    }
    longer = seeds({"flow": FLOW, "softmax": LOWER})
    longer["seed 0"]["runs"][0]["tokens_per_second"] = 400.0  # of three seeds: 200 on average
    said = findings(Results(language_step=step, language={"lengths": {"4096": longer}}))
    assert (
        "- **What does a longer context cost?**\n"
        "    - In the model of `wiki-small`, `flow` trains on 1.15 times as many tokens a second "
        "as `softmax` at 512 tokens and 2.00 times at 8,192.\n"
        "    - In that of the characters, `flow` trains on 2.00 times as many tokens a second as "
        "`softmax` at 4,096 tokens.\n"
    ) in said
    assert "Not run yet in that of the characters (`python -m" in findings(Results())


def test_the_arena_says_whether_any_two_differ_and_what_is_not_learned() -> None:
    rows = {"flow": 0.5, "softmax": 0.505, "bag-of-tokens": 0.6, "chance": 0.495}
    pathfinder = [
        {"method": name, "mean": str(mean), "finished": "2"} for name, mean in rows.items()
    ]
    tasks = gating(
        listops={"flow": FLOW, "softmax": ALIKE, "linear": FLOW},
        image={"flow": FLOW, "softmax": HIGHER, "linear": ALIKE},
    )
    compared = {"pathfinder": pathfinder, "image": pathfinder}
    said = findings(Results(gating=tasks, compared=compared))
    assert (
        "On ListOps no two of 3 mixers differ by more than chance, from 51.0 (`flow`) to " in said
    )
    assert (
        "On Image 2 of 3 pairs of mixers differ, from 51.0 (`flow`) to 61.1 (`softmax`) %, with a "
        "chance level of 10.0 and 60.0 without any order (`bag-of-tokens`) (smallest"
    ) in said
    assert "Not run yet: Text and Retrieval (`python -m benchmarks gating text retrieval`)." in said
    assert (
        "Pathfinder is learned by none of 2 mixers: the best, `softmax`, has 50.5 %, and the most "
        "frequent class 49.5 % (2 runs)."
    ) in said
    pathfinder[1]["mean"] = "0.9"
    learned = findings(Results(compared={"pathfinder": pathfinder}))
    assert "Pathfinder is learned: the best of 2 mixers, `softmax`, has 90.0 %" in learned


def test_without_results_every_question_is_there_and_says_that_nothing_was_run() -> None:
    lines = findings(Results()).splitlines()
    assert sum(line.startswith("- **") for line in lines) == len(QUESTIONS) + 3
    said = [line for line in lines if line.startswith("    - ") or not line.endswith("**")]
    assert all("Not run yet" in line and "python -m benchmarks " in line for line in said)
    assert Evidence(where="x", command="y").verdict == "missing"


def test_the_command_says_what_the_page_shows(capsys) -> None:
    assert main(["findings"]) == 0
    said = capsys.readouterr().out
    assert all(f"- **{question.text}**" in said for question in QUESTIONS)
