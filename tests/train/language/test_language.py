"""Language models: from a configuration to a run folder, and what is done with it."""

import csv
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from flowformer.compare.execution import execute
from flowformer.compare.plan import make_plan, read_comparison
from flowformer.generation.text import generate_text
from flowformer.recipes.language import RECIPES
from flowformer.train.config import ScheduledOptimizerConfig
from flowformer.train.folder import RunFolder
from flowformer.train.language.config import (
    LanguageConfig,
    LanguageResult,
    LanguageTrainingConfig,
    TextDataConfig,
)
from flowformer.train.language.study import Language
from flowformer.train.loop.task import NonFiniteLossError
from flowformer.train.run import load_run, train, write_report
from tests.compare.in_process import in_this_process

__all__ = ["in_this_process"]  # a fixture


def rows(folder) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_training_learns_and_records(tmp_path, tiny_language):
    config = tiny_language(steps=120, evaluate_every=40)
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=0.03))
    result = train(config, tmp_path / "run")
    first, *_, last = rows(tmp_path / "run")
    assert float(last["validation_loss"]) < float(first["validation_loss"])
    # A uniform guess among the 19 characters of the text costs log2(19) bits each.
    assert result.test_score < 0.75 * math.log2(19)
    assert result.measure == "bits per character"
    assert result.test_bits_per_character == result.test_score
    assert result == LanguageResult.read(RunFolder(tmp_path / "run"))
    assert last["validation_bits_per_character"]
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [40, 80, 120]


def test_the_kept_parameters_are_those_of_the_best_step(tmp_path, tiny_language):
    # After the warm-up the rate is so high that the loss rises again.
    config = replace(
        tiny_language(steps=8, evaluate_every=2),
        optimizer=ScheduledOptimizerConfig(
            learning_rate=3.0, warmup=4, schedule="constant", gradient_clip=None
        ),
    )
    result = train(config, tmp_path / "run")
    losses = {int(row["step"]): float(row["validation_loss"]) for row in rows(tmp_path / "run")}
    assert result.best_step == min(losses, key=lambda step: losses[step])
    assert result.validation_loss == losses[result.best_step]


def test_word_level_perplexity_is_exp_of_the_loss_a_word(tmp_path, tiny_language):
    config = tiny_language()
    config = replace(config, data=replace(config.data, tokenizer="word", length=12))
    result = train(config, tmp_path / "run")
    assert result.measure == "perplexity"
    evaluation = Language.evaluate(tmp_path / "run")
    assert not evaluation.differs
    assert result.test_perplexity == pytest.approx(math.exp(result.test_loss), rel=1e-9)


def test_a_run_is_evaluated_again_with_the_same_score_and_streamed(tmp_path, tiny_language):
    train(tiny_language(), tmp_path / "run")
    evaluation = Language.evaluate(tmp_path / "run")
    assert not evaluation.differs
    assert evaluation.streaming is not None
    assert evaluation.streaming.bits_per_character is not None
    assert "the same" in evaluation.describe()
    json.dumps(evaluation.to_dict(), allow_nan=False)


def test_a_run_generates_text(tmp_path, tiny_language):
    train(tiny_language(), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.tokenizer is not None
    text = generate_text(run.model, run.tokenizer, "3 and ", max_new_tokens=60)  # past 24 tokens
    assert len(text) == 60


def test_a_report_shows_figures_curves_and_samples(tmp_path, tiny_language):
    train(tiny_language(), tmp_path / "run")
    page = write_report(tmp_path / "run", num_samples=2)
    text = page.read_text()
    assert page == tmp_path / "run" / "report" / "index.html"
    for words in ("Test bits per character", "Samples", "data.tokenizer", "data:image/png"):
        assert words in text


def test_documents_are_kept_apart(tmp_path, tiny_language):
    config = tiny_language()
    config = replace(config, data=replace(config.data, packing="documents"))
    assert train(config, tmp_path / "run").test_score > 0


def test_accumulated_batches_make_the_steps_of_one_larger_batch(tmp_path, tiny_language):
    whole = tiny_language()
    halves = tiny_language(accumulate=2)
    whole = replace(whole, model=replace(whole.model, dropout=0.0))
    halves = replace(
        halves, data=replace(halves.data, batch_size=2), model=replace(halves.model, dropout=0.0)
    )
    train(whole, tmp_path / "whole")
    train(halves, tmp_path / "halves")
    for name, value in load_file(tmp_path / "whole" / "weights.safetensors").items():
        other = load_file(tmp_path / "halves" / "weights.safetensors")[name]
        torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-4)


def test_sums_are_measured_by_how_many_are_exact(tmp_path, tiny_language):
    config = tiny_language()
    config = replace(config, data=TextDataConfig(corpus="addition", digits=1, length=3))
    result = train(config, tmp_path / "run")
    assert result.measure == "exact sums"
    assert 0 <= result.test_score <= 1
    assert result.test_perplexity is None
    assert rows(tmp_path / "run")[0]["validation_exact"]
    assert not Language.evaluate(tmp_path / "run").differs


def test_a_loss_that_is_none_ends_the_run_and_keeps_the_batch(tmp_path, tiny_language):
    config = replace(
        tiny_language(),
        optimizer=ScheduledOptimizerConfig(
            learning_rate=1e30, schedule="constant", gradient_clip=None
        ),
    )
    with pytest.raises(NonFiniteLossError, match="loss became"):
        train(config, tmp_path / "run")
    assert set(load_file(tmp_path / "run" / "nan_batch.safetensors")) == {"input_ids", "targets"}


@pytest.mark.usefixtures("in_this_process")
def test_mixers_are_compared_by_bits_per_character(tmp_path, tiny_language):
    plan = make_plan(
        [tiny_language()], {"flow": {}, "softmax": {}}, seeds=1, root=tmp_path / "comparison"
    )
    execute(plan)
    compared = read_comparison(plan)
    assert compared.measure.name == "bits per character"
    assert all(run.finished for run in compared.outcomes)
    assert {run.method for run in compared.outcomes} == {"flow", "softmax"}


def test_a_classical_method_is_refused_for_text(tmp_path, tiny_language):
    with pytest.raises(ValueError, match="rocket runs on series, and tiny is on language"):
        make_plan([tiny_language()], {"rocket": {}}, seeds=1, root=tmp_path)


def test_the_published_settings_of_wikitext_103():
    config = RECIPES["wikitext-103"]()
    assert config.paper_perplexity == 30.8
    tokens = config.data.length * config.data.batch_size * config.training.accumulate
    assert tokens == 2048 * 16 * 4
    changed = replace(config, data=replace(config.data, corpus="wiki-small"))
    assert changed.paper_perplexity is None
    # Beside bits per character a perplexity would be wrong.
    changed = replace(config, data=replace(config.data, tokenizer="char"))
    assert (config.paper_score, changed.paper_score) == (30.8, None)
    # fairseq's "adam" does not add the decay to the gradient.
    assert config.optimizer.name == "adamw"


def test_a_row_has_the_rate_of_its_last_step(tmp_path, tiny_language):
    config = tiny_language(steps=8, evaluate_every=4)
    config = replace(config, optimizer=replace(config.optimizer, warmup=4))
    train(config, tmp_path / "run")
    for row in rows(tmp_path / "run"):
        share = config.optimizer.rate_at(int(row["step"]) - 1, 8)
        assert float(row["learning_rate"]) == pytest.approx(3e-3 * share)


def test_schedules_rise_and_fall_as_they_say():
    def rates(**settings: object) -> list[float]:
        optimizer = replace(ScheduledOptimizerConfig(learning_rate=1.0, warmup=4), **settings)
        return [optimizer.rate_at(step, 20) for step in range(20)]

    for schedule in ("constant", "cosine", "inverse-sqrt"):
        assert rates(schedule=schedule)[:4] == pytest.approx([1e-7, 0.25, 0.5, 0.75], abs=1e-6)
        assert rates(schedule=schedule)[4] == 1.0
    assert rates(schedule="constant")[-1] == 1.0
    assert rates(schedule="inverse-sqrt")[16] == 0.5
    assert 0.1 < rates(schedule="cosine")[-1] < 0.12


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TextDataConfig(length=0), "length must be at least 1, got 0"),
        (lambda: TextDataConfig(vocab_size=1), "vocab_size must be at least 2, got 1"),
        (lambda: ScheduledOptimizerConfig(betas=(0.9,)), "betas must be two numbers"),
        (
            lambda: LanguageTrainingConfig(steps=10, evaluate_every=3),
            "evaluate_every must divide steps, got 3 and 10",
        ),
        (
            lambda: LanguageConfig(
                name="x",
                data=TextDataConfig(length=8),
                training=LanguageTrainingConfig(context_window=8),
            ),
            "context_window must be below data.length, got 8 and 8",
        ),
    ],
)
def test_a_bad_setting_says_what_was_expected(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_samples_longer_than_the_model_reads_are_refused_before_anything_is_written(
    tmp_path, tiny_language
):
    config = tiny_language()
    config = replace(config, model=replace(config.model, positions="learned", max_length=16))
    with pytest.raises(ValueError, match="24 tokens and the model reads at most 16"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_report_ends_its_samples_where_the_places_of_the_model_end(tmp_path, tiny_language):
    config = tiny_language()
    config = replace(config, model=replace(config.model, positions="learned"))
    train(config, tmp_path / "run")
    assert "Samples" in write_report(tmp_path / "run").read_text()


def test_a_run_is_not_evaluated_on_another_text(tmp_path, tiny_language):
    config = tiny_language()
    assert config.data.folder is not None
    config = replace(config, data=replace(config.data, tokenizer="byte"))
    train(config, tmp_path / "run")
    with config.data.folder.open("a") as file:
        file.write("one more line\n")
    shutil.rmtree(tmp_path / "tokens")
    with pytest.raises(ValueError, match=r"is of a text of .* tokens, which now is"):
        Language.evaluate(tmp_path / "run")


def test_an_unknown_corpus_lists_those_there_are(tmp_path, tiny_language):
    config = tiny_language()
    config = replace(config, data=TextDataConfig(corpus="wiki"))
    with pytest.raises(ValueError, match=r"unknown corpus 'wiki'.*choose from"):
        train(config, tmp_path / "run")


def test_data_given_in_python_are_for_series_alone(tmp_path, tiny_language, waves):
    with pytest.raises(TypeError, match="data"):
        train(tiny_language(), tmp_path / "run", data=waves)
    assert not (tmp_path / "run").exists()
