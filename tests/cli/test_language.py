"""The commands on a language model's run."""

from pathlib import Path

import pytest

from flowformer.cli import main


@pytest.fixture(scope="module")
def language_run(tmp_path_factory):
    """A small language model, trained for two steps through the command line's own functions."""
    folder = tmp_path_factory.mktemp("language")
    text = folder / "text.txt"
    text.write_text("".join(f"{n} and {n} make {2 * n}.\n" for n in range(300)))
    arguments = ["train", "char-shakespeare", "--data.corpus", "text", "--data.folder", text]
    arguments += ["--data.length", 24, "--data.cache", folder / "tokens", "--model.dim", 16]
    arguments += ["--model.num-layers", 1, "--model.num-heads", 2, "--training.steps", 2]
    arguments += ["--training.evaluate-every", 1, "--run-dir", folder / "run"]
    arguments += ["--training.progress", "none", "--training.accelerator", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    assert ended.value.code == 0
    return folder / "run"


def test_a_language_model_goes_on_with_a_text(flowformer, language_run):
    outcome = flowformer("generate", language_run, "7 and 7", "--max-new-tokens", 5)
    assert outcome.code == 0
    assert outcome.out.startswith("7 and 7")
    assert len(outcome.out) == len("7 and 7") + 5 + 1
    drawn = [
        flowformer("generate", language_run, "7", "--sample", "--seed", seed).out
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_language_model_is_evaluated_again_and_has_a_report(flowformer, language_run):
    outcome = flowformer("evaluate", language_run)
    assert outcome.code == 0
    assert "bits per character" in outcome.out
    assert "the same" in outcome.out
    page = flowformer("visualize", language_run).out.strip()
    assert Path(page).read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "RUN", ""], "the prompt must have at least one token"),
        (["generate", "RUN", "7", "--top-k", "3"], "are for draws: give --sample too"),
        (["predict", "RUN", "x.ts"], "holds a run on language, not a classifier"),
        (["evaluate", "RUN", "--file", "x.ts"], "it is tested on its own text"),
        (
            ["train", "char-shakespeare", "--data.corpus", "addition", "--model.mixer", "bigbird"],
            "has no causal form",
        ),
        (
            ["train", "recall-small", "--data.corpus", "recal"],
            "unknown corpus 'recal': did you mean recall? choose from wikitext-103",
        ),
        (
            ["train", "recall-small", "--data.length", "20"],
            "recall of pairs=8 needs a length of at least 24, got 20",
        ),
        (
            ["train", "recall-small", "--data.length", "65", "--run-dir", "longer"],
            "a sample has 65 tokens and the model reads at most 64: raise --model.max-length",
        ),
    ],
)
def test_a_wrong_request_of_a_language_model_is_one_line(
    flowformer, language_run, tmp_path, arguments, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("x.ts").touch()
    given = [language_run if each == "RUN" else each for each in arguments]
    outcome = flowformer(*given)
    assert outcome.code == 2
    assert outcome.out == ""
    assert message in outcome.err.splitlines()[-1]
