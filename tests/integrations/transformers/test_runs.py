"""Our tokenizers and runs as transformers has them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowformer.data.language.tokenizers import train_tokenizer
from flowformer.integrations.transformers import runs
from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from tests.integrations.transformers.small import small

TEXT = "To be, or not to be:\n that is  the question — être ou ne pas être\n"
UNSEEN = "Be that as it may,\nzebras ought to be §"
# What is spelled like a special token; the first letter stands for the byte 0 that pads.
SPELLED = "Ā<|endoftext|> is<unk> <unk> a <eos> of<eos>\n<eos>"


@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe"])
def test_tokens_of_a_text_are_the_same(kind: str, tmp_path: Path) -> None:
    ours = train_tokenizer(kind, [TEXT] * 3, vocab_size=300 if kind == "bpe" else None)
    theirs = runs.convert_tokenizer(ours)
    theirs.save_pretrained(tmp_path)
    for tokenizer in (theirs, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) == ours.vocab_size
        for text in (TEXT, UNSEEN, SPELLED):
            assert tokenizer(text).input_ids == ours.encode(text)
        if kind != "word":  # whose white space is lost
            assert tokenizer.decode(ours.encode(TEXT)) == TEXT
        padded = tokenizer(["be", "to be or"], padding=True)
        assert padded.attention_mask[0][0] == 0


@pytest.mark.parametrize(("kind", "stop"), [("word", ()), ("bpe", (0,))])
def test_a_run_is_saved_for_pipelines(
    kind: str, stop: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_tokenizer(kind, [TEXT] * 3, vocab_size=300 if kind == "bpe" else None)
    stop = stop and (tokenizer.end_id or 0,)
    ours = LanguageModel(small().language_model_config(), vocab_size=tokenizer.vocab_size).eval()
    run = SimpleNamespace(model=ours, tokenizer=tokenizer, stop_ids=stop)
    monkeypatch.setattr(runs.Language, "load", lambda _: run)
    model, fast = runs.convert_run("a run")
    assert fast is not None
    for part in (model, fast):
        part.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id
    assert loaded.config.eos_token_id == (stop[0] if stop else None)
    tokens = torch.tensor([tokenizer.encode(TEXT)])
    torch.testing.assert_close(loaded(tokens).logits, ours(tokens).logits)


@pytest.mark.parametrize("stop", [(), (3,)])
def test_a_gpt2_stops_where_the_run_does(
    stop: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_tokenizer("bpe", [TEXT] * 3, vocab_size=300)
    config = LanguageModelConfig(
        mixer="softmax",
        dim=16,
        num_heads=2,
        num_layers=1,
        feedforward=32,
        max_length=8,
        positions="learned",
    )
    model = LanguageModel(config, vocab_size=tokenizer.vocab_size)
    whole = SimpleNamespace(model=config)
    run = SimpleNamespace(model=model, tokenizer=tokenizer, stop_ids=stop, config=whole)
    monkeypatch.setattr(runs.Language, "load", lambda _: run)
    gpt2, _ = runs.convert_to_gpt2("a run")
    expected = stop[0] if stop else None
    assert gpt2.config.eos_token_id == expected
    assert gpt2.generation_config.eos_token_id == expected
