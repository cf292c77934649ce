"""Runs on the tasks of recall: what is learned, counted, kept and asked again."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowformer.data.language.recall import RecallSizes
from flowformer.data.language.recall_samples import RecallSamples
from flowformer.data.loaders import StepBatches
from flowformer.models.language.config import LanguageModelConfig
from flowformer.train.config import ScheduledOptimizerConfig
from flowformer.train.folder import RunFolder
from flowformer.train.language.config import (
    LanguageConfig,
    LanguageRecord,
    LanguageTrainingConfig,
    TextDataConfig,
)
from flowformer.train.language.data import digest_data
from flowformer.train.language.study import Language
from flowformer.train.run import load_run, predict, train, write_report


def tiny_recall(corpus: str = "recall", **training: object) -> LanguageConfig:
    """Return a run on two pairs in eight tokens: fields of LanguageTrainingConfig by keyword."""
    sizes = {"pairs": None if corpus == "induction" else 2, "vocab_size": 8, "length": 8}
    return LanguageConfig(
        name="tiny",
        data=TextDataConfig(corpus=corpus, batch_size=32, **sizes),
        model=LanguageModelConfig(
            mixer="softmax",
            dim=32,
            num_heads=2,
            num_layers=2,
            feedforward=32,
            max_length=8,
            dropout=0.0,
            positions="learned",
            scale_embeddings=False,
        ),
        optimizer=ScheduledOptimizerConfig(learning_rate=1e-2, warmup=10, weight_decay=0.0),
        training=LanguageTrainingConfig(
            **{
                "steps": 4,
                "evaluate_every": 2,
                "accelerator": "cpu",
                "threads": 1,
                "progress": "none",
                **training,
            }
        ),
    )


def sizes_of(config: LanguageConfig) -> RecallSizes:
    assert config.recall is not None
    return config.recall


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`learned("copy")`: the folder of a run that learned the task."""
    folder = tmp_path_factory.mktemp("recall")

    def run(corpus: str) -> Path:
        if not (folder / corpus).exists():
            train(tiny_recall(corpus, steps=120, evaluate_every=60), folder / corpus)
        return folder / corpus

    return run


@pytest.mark.parametrize("corpus", ["recall", "copy", "induction"])
def test_a_small_model_learns_it_and_gives_the_same_answers_again(learned, corpus):
    folder = RunFolder(learned(corpus))
    result = json.loads(folder.result.read_text())
    sizes = sizes_of(LanguageRecord.read(folder).config)
    assert result["measure"] == "accuracy"
    assert sizes.chance < 0.65
    assert result["test_score"] > 0.95
    evaluation = Language.evaluate(folder.root)
    assert not evaluation.differs
    assert evaluation.score.value == pytest.approx(result["test_score"])
    assert f"a guess is right in {100 * sizes.chance:.1f} %" in evaluation.describe()


def test_every_answer_counts_and_nothing_else(tmp_path):
    config = tiny_recall()
    train(config, tmp_path / "run")
    run, right = load_run(tmp_path / "run"), []
    samples = RecallSamples(sizes_of(config), "test", count=2000)
    for item in (samples[number] for number in range(2000)):
        with torch.no_grad():
            answers = run.model(item["input_ids"][None]).logits[0].argmax(-1)
        right += [
            int(answers[place]) == answer
            for place, answer in enumerate(item["targets"].tolist())
            if answer != -100
        ]
    result = json.loads(RunFolder(tmp_path / "run").result.read_text())
    assert len(right) == 4000
    assert result["test_score"] == sum(right) / 4000
    with RunFolder(tmp_path / "run").metrics.open() as file:
        scores = [float(row["validation_accuracy"]) for row in csv.DictReader(file)]
    assert all(1000 * score == pytest.approx(round(1000 * score)) for score in scores)


def test_no_sample_of_a_training_comes_twice():
    study = Language(tiny_recall(steps=6, evaluate_every=2, accumulate=2))
    assert study.record.sizes == {"train": 6 * 2 * 32, "validation": 500, "test": 2000}
    batches = study.loaders()[0].batch_sampler
    assert isinstance(batches, StepBatches)
    seen = []
    for measurement in range(3):
        batches.set_epoch(measurement)
        seen += [index for batch in batches for index in batch]
    assert sorted(seen) == list(range(6 * 2 * 32))


def test_its_page_and_its_last_words_say_what_a_guess_reaches(learned):
    page = write_report(learned("recall")).read_text()
    assert "Test accuracy" in page
    assert "a guess is right in 50.0 %" in page
    uses = Language.uses("RUN", Language.evaluate(learned("recall")).trained)
    assert uses == "flowformer predict RUN FILE; flowformer evaluate RUN"


def test_a_sequence_of_ones_own_is_answered_at_every_token(learned, tmp_path):
    (tmp_path / "asked.txt").write_text("2 6 1 7 2\n1 4 3 5 0 3 1\n")
    rows = list(csv.DictReader(predict(learned("recall"), tmp_path / "asked.txt").splitlines()))
    assert [(row["index"], row["place"]) for row in rows[:6]] == [
        *(("0", str(place)) for place in range(5)),
        ("1", "0"),
    ]
    assert [row["token"] for row in rows] == list("26172" + "1435031")
    # 2 asks for 6; 3 for 5, and 1 for 4.
    assert [rows[place]["predicted"] for place in (4, 10, 11)] == ["6", "5", "4"]
    assert all(float(rows[place]["probability"]) > 0.5 for place in (4, 10, 11))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n1 8\n", "line 2: expected tokens from 0 to 7, got '8'"),
        ("1 x\n", "line 1: expected tokens from 0 to 7, got 'x'"),
        ("1 -2\n", "line 1: expected tokens from 0 to 7, got '-2'"),
        ("1 2 3 1 2 3 1 2 3\n", "line 1: expected 1 to 8 tokens, got 9"),
        ("1\n\n2\n", "line 2: expected 1 to 8 tokens, got 0"),
        ("", "expected at least one line, got none"),
    ],
)
def test_what_is_no_sequence_is_refused_with_its_line(learned, tmp_path, text, message):
    (tmp_path / "asked.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        predict(learned("recall"), tmp_path / "asked.txt")


@pytest.mark.parametrize("corpus", ["recall", "copy", "induction"])
def test_digests_tell_parts_and_sizes_apart(corpus):
    config = tiny_recall(corpus)
    digests = digest_data(config)
    assert list(digests) == [f"{corpus} ({part})" for part in ("train", "validation", "test")]
    assert len(set(digests.values())) == 3
    longer = replace(config, data=replace(config.data, length=9))
    assert not set(digests.values()) & set(digest_data(longer).values())
    more_steps = replace(config, training=replace(config.training, steps=8))
    assert digest_data(more_steps) == digests


def test_a_run_that_goes_on_ends_bitwise_the_same(tmp_path, monkeypatch):
    config = tiny_recall()
    train(config, tmp_path / "whole")
    draw, drawn = RecallSamples.__getitem__, []

    def stops(samples: RecallSamples, index: int) -> dict[str, torch.Tensor]:
        if len(samples) == 4 * 32:  # those that are trained on
            drawn.append(index)
        if len(drawn) > 3 * 32:  # before the second measurement
            raise KeyboardInterrupt
        return draw(samples, index)

    with monkeypatch.context() as patch:
        patch.setattr(RecallSamples, "__getitem__", stops)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped")
    assert len(RunFolder(tmp_path / "stopped").metrics.read_text().splitlines()) == 2
    train(config, tmp_path / "stopped", resume=True)
    whole, stopped = (
        (tmp_path / run / "weights.safetensors").read_bytes() for run in ("whole", "stopped")
    )
    assert whole == stopped


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"length": 5}, "recall of pairs=2 needs a length of at least 6, got 5"),
        ({"pairs": 3}, "recall of pairs=3 needs a length of at least 9, got 8"),
        ({"vocab_size": 5}, "recall of pairs=2 needs a vocab_size of at least 6, got 5"),
        ({"corpus": "addition"}, "data.pairs is of recall, copy, induction, got 2 for addition"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_read(data, message):
    config = tiny_recall()
    with pytest.raises(ValueError, match=message):
        replace(config, data=replace(config.data, **data))
