"""`generate`, pipelines and the Trainer, on the recurrent state."""

import copy
import inspect
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from flowformer.integrations.transformers import (
    FlowformerCache,
    FlowformerForCausalLM,
    FlowformerForSequenceClassification,
)
from flowformer.integrations.transformers.cache import cache_keyword, given_cache
from flowformer.nn.replace.transformers_owner import CACHE_NAMES
from tests.integrations.transformers.small import (
    LEFT,
    PAD,
    TOKENS,
    cache_of,
    cache_of_sixty_steps,
    generate,
    small,
)

STYLES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 1.5},
    "repetition": {"do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "beams": {"num_beams": 3, "length_penalty": 0.5},
    "beams-sampled": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
    "several": {"do_sample": True, "num_return_sequences": 3},
}
styles = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)


def causal(**changes: Any) -> Any:
    """A model whose next token is no foregone conclusion."""
    torch.manual_seed(3)
    settings = {"tie_word_embeddings": False, **changes}
    model: Any = FlowformerForCausalLM(small(pad_token_id=PAD, **settings)).double().eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(50)
        for name, parameter in model.model.backbone.blocks.named_parameters():
            if name.endswith("weight") and "norm" not in name:
                parameter.mul_(5)
    return model


@styles
@pytest.mark.parametrize("mixer", ["flow", "softmax"])
def test_a_cache_changes_nothing(style: dict[str, Any], mixer: str) -> None:
    model = causal(mixer=mixer)
    prompt = TOKENS.masked_fill(~LEFT.bool(), PAD)
    calls = [
        generate(model, prompt, attention_mask=LEFT, use_cache=use_cache, **style)
        for use_cache in (True, False)
    ]
    assert calls[0].equal(calls[1])
    assert len(calls[0][:, 7:].unique()) > 3


def test_greedy_tokens_are_those_of_the_whole_prefix() -> None:
    model = causal()
    expected = TOKENS
    for _ in range(9):
        best = model(expected).logits[:, -1].argmax(-1)
        expected = torch.cat((expected, best[:, None]), 1)
    assert generate(model, do_sample=False).equal(expected)


@pytest.mark.parametrize("style", ["greedy", "beams"])
def test_a_padded_row_continues_as_it_does_alone(style: str) -> None:
    model = causal()
    prompt = TOKENS.masked_fill(~LEFT.bool(), PAD)
    together = generate(model, prompt, attention_mask=LEFT, **STYLES[style])
    for row in range(2):
        alone = generate(model, TOKENS[row : row + 1, LEFT[row].bool()], **STYLES[style])
        assert together[row, 7:].equal(alone[0, -9:])


def test_scores_with_a_cache_are_those_of_the_forward_pass() -> None:
    cache = cache_of_sixty_steps(causal(positions="none"))  # past max_position_embeddings: 40
    assert isinstance(cache, FlowformerCache)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "learned"])
def test_conversation_goes_on_from_a_returned_cache(positions: str) -> None:
    model = causal(positions=positions)
    first = model.generate(
        TOKENS,
        attention_mask=LEFT,
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=PAD,
        return_dict_in_generate=True,
    )
    longer = torch.cat((first.sequences, torch.tensor([[2, 8], [4, 4]])), 1)
    mask = torch.cat((LEFT, LEFT.new_ones(2, 6)), 1)
    kept = copy.deepcopy(cache_of(first))
    expected = generate(model, longer, attention_mask=mask, do_sample=False)
    for cache in (cache_of(first), kept):
        out = generate(model, longer, attention_mask=mask, do_sample=False, **cache_keyword(cache))
        assert out.equal(expected)


# Of generate itself: transformers takes the other name too, and may warn of it.
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_generate_takes_a_cache_by_either_name(name: str) -> None:
    model = causal()
    expected = generate(model, do_sample=False)
    cache = cache_of(model(TOKENS[:, :4]))
    out = generate(model, do_sample=False, **{name: cache})
    assert out.equal(expected)
    assert cache.get_seq_length() == 15  # all but the last: the state went on, in this very cache


def test_long_prompts_in_chunks() -> None:
    model = causal()
    call: dict[str, Any] = {"do_sample": False, "attention_mask": LEFT}
    expected = generate(model, **call)
    for cache in (None, FlowformerCache()):
        out = generate(model, prefill_chunk_size=3, **cache_keyword(cache), **call)
        assert out.equal(expected)


def test_prompts_as_embeddings() -> None:
    model = causal()
    embedded = model.get_input_embeddings()(TOKENS)
    out = model.generate(
        inputs_embeds=embedded, max_new_tokens=9, do_sample=False, pad_token_id=PAD
    )
    assert out.equal(generate(model, do_sample=False)[:, 7:])


def test_a_mixer_without_a_state_generates_by_recomputing() -> None:
    model = causal(mixer="synthesizer")
    expected = TOKENS
    for _ in range(3):
        best = model(expected).logits[:, -1].argmax(-1)
        expected = torch.cat((expected, best[:, None]), 1)
    assert generate(model, do_sample=False, max_new_tokens=3).equal(expected)


def test_generation_stops_at_the_end_of_text() -> None:
    model = causal()
    whole = generate(model, TOKENS[:1], do_sample=False)
    stop = int(whole[0, 9])
    out = generate(model, TOKENS[:1], do_sample=False, eos_token_id=stop)
    assert out[0, -1] == stop
    assert out.equal(whole[:, : out.shape[1]])
    assert out.shape[1] <= 10


class TestCache:
    def test_rows_are_repeated_selected_and_reordered(self) -> None:
        model = causal()
        cache = cache_of(model(TOKENS))
        assert (len(cache), cache.batch_size, cache.get_seq_length()) == (2, 2, 7)
        cache.batch_repeat_interleave(2)
        assert cache.batch_size == 4
        cache.batch_select_indices(torch.tensor([3, 0]))
        following = torch.tensor([[7], [1]])
        logits = model(following, cache=cache).logits
        expected = model(torch.cat((TOKENS.flip(0), following), 1)).logits[:, -1:]
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)

    def test_size_does_not_depend_on_the_number_of_tokens(self) -> None:
        model = causal(positions="none")
        sizes = [
            sum(field.numel() for layer in cache.state.layers for field in layer)
            for cache in (cache_of(model(TOKENS[:, :1].expand(2, n))) for n in (1, 50, 500))
        ]
        assert len(set(sizes)) == 1

    def test_reset_forgets(self) -> None:
        model = causal()
        cache = cache_of(model(TOKENS.flip(1)))
        cache.reset()
        assert (cache.batch_size, cache.get_seq_length(), len(cache)) == (-1, 0, 0)
        assert not cache.has_previous_state()
        out = model(TOKENS, cache=cache)
        torch.testing.assert_close(out.logits, model(TOKENS).logits, rtol=0, atol=0)

    def test_tokens_cannot_be_taken_back(self) -> None:
        cache = cache_of(causal()(TOKENS))
        assert not cache.is_croppable
        with pytest.raises(NotImplementedError, match=r"cannot take 2 tokens back.*deepcopy"):
            cache.crop(-2)

    def test_keys_and_values_have_no_place_in_it(self) -> None:
        with pytest.raises(NotImplementedError, match="not keys and values"):
            FlowformerCache().update(torch.ones(1), torch.ones(1), 0)

    # Not the whole model: the types that tests check of tensors cannot be traced.
    def test_it_is_found_in_compiled_code(self) -> None:
        def count(tokens: Tensor, given: dict[str, Any]) -> Tensor:
            cache = inspect.unwrap(given_cache)(given)
            return tokens + (1 if cache is None else 2)

        compiled = torch.compile(count, fullgraph=True, backend="eager")
        one = torch.ones(1)
        assert compiled(one, {"cache": None, "num_items_in_batch": 3}) == 2
        assert compiled(one, {"cache": None, "past_key_values": FlowformerCache()}) == 3

    def test_assisted_generation_is_refused(self) -> None:
        model = causal()
        with pytest.raises(ValueError, match="not supported with stateful models"):
            generate(model, TOKENS[:1], assistant_model=causal())

    def test_it_is_no_assistant(self) -> None:
        config = GPT2Config(vocab_size=31, n_embd=16, n_layer=1, n_head=2, eos_token_id=None)
        with pytest.raises(NotImplementedError, match="FlowformerForCausalLM cannot be the assist"):
            generate(GPT2LMHeadModel(config), TOKENS[:1], assistant_model=causal())

    @pytest.mark.parametrize("kind", ["static", "offloaded", "quantized"])
    def test_generate_refuses_another_kind_of_cache(self, kind: str) -> None:
        with pytest.raises(ValueError, match=f"'{kind}' is a cache of keys and values"):
            generate(causal(), cache_implementation=kind)

    def test_generate_refuses_keys_and_values(self) -> None:
        with pytest.raises(TypeError, match="got DynamicCache"):
            generate(causal(), **cache_keyword(DynamicCache()))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", *(chr(ord("a") + at) for at in range(26))]
    tokens = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "<eos>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def test_pipeline_of_a_saved_model(tokenizer: PreTrainedTokenizerFast, tmp_path: Any) -> None:
    ours = causal(vocab_size=len(tokenizer)).to_language_model()
    model: Any = FlowformerForCausalLM.from_language_model(ours, tokenizer)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write = pipeline("text-generation", model=str(tmp_path), device="cpu")
    prompts = ["a b c d", "e f"]
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    together = write(prompts, batch_size=2, **options)
    for prompt, written in zip(prompts, together, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        expected = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
        assert written[0]["generated_text"].split() == [
            word for word in tokenizer.convert_ids_to_tokens(expected) if word != "<eos>"
        ]


def arguments(folder: Any, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **changes,
    )


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "chunked"])
def test_the_trainer_lowers_the_loss(
    logits: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Any
) -> None:
    texts = ["a b c d e f", "b c d", "c d e f g h i", "a b c"] * 2
    rows: Any = [dict(tokenizer(text)) for text in texts]
    config = small(vocab_size=len(tokenizer), dropout=0.0, logits_in_training=logits)
    # transformers 5.23 has a new name, and warns of the old one.
    new = hasattr(TrainingArguments, "activation_checkpointing")
    checkpointing = {"activation_checkpointing" if new else "gradient_checkpointing": True}
    trainer = Trainer(
        model=FlowformerForCausalLM(config),
        args=arguments(tmp_path, max_steps=12, gradient_accumulation_steps=2, **checkpointing),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before
    trainer.save_model(str(tmp_path / "saved"))
    again = FlowformerForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.config.logits_in_training == logits


def test_the_trainer_trains_a_classifier(tokenizer: PreTrainedTokenizerFast, tmp_path: Any) -> None:
    rows: Any = [{**tokenizer("a b c a"), "label": 0}, {**tokenizer("x y"), "label": 1}] * 4
    config = small(vocab_size=len(tokenizer), dropout=0.0, num_labels=2)
    trainer = Trainer(
        model=FlowformerForSequenceClassification(config),
        args=arguments(tmp_path, max_steps=15),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    predicted: Any = trainer.predict(rows[:2]).predictions
    assert predicted.argmax(1).tolist() == [0, 1]
