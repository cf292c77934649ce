"""`generate` at constant cost: the state of an attention is the cache of a transformers model."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

import flowformer.integrations.transformers
from flowformer.integrations.transformers.attention import ATTENTIONS, KEY, Choice
from flowformer.integrations.transformers.cache import cache_keyword
from flowformer.nn.mixers.gated import GatedAttention
from flowformer.nn.replace import replace_attention
from flowformer.nn.replace.transformers import CHILD, IMPLEMENTATION
from flowformer.nn.replace.transformers_cache import StateLayer
from tests.integrations.transformers.small import (
    BART,
    LEFT,
    PAD,
    TOKENS,
    cache_of,
    cache_of_sixty_steps,
    generate,
    undecided,
)

SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 8}
MODELS: dict[str, Callable[..., Any]] = {
    "llama": lambda **more: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**GROUPED, **more)
    ),
    "qwen2": lambda **more: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**GROUPED, **more)
    ),
    "gpt2": lambda **more: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=31,
            n_embd=16,
            n_layer=2,
            n_head=4,
            n_positions=80,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=False,
            **more,
        )
    ),
    "mistral": lambda **more: transformers.MistralForCausalLM(
        transformers.MistralConfig(**{"sliding_window": None, **WIDE, **more})
    ),
    "phi": lambda **more: transformers.PhiForCausalLM(transformers.PhiConfig(**GROUPED, **more)),
    "gemma": lambda **more: transformers.GemmaForCausalLM(transformers.GemmaConfig(**WIDE, **more)),
}
MIXERS = ("flow", "flow-gated", "linear", "gated", "performer", "local")
STYLES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "length_penalty": 0.5},
    "beams-sampled": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
    "several": {"do_sample": True, "num_return_sequences": 3},
}


def build(name: str, **more: Any) -> Any:
    """A model whose next token is no foregone conclusion."""
    torch.manual_seed(3)
    return undecided(MODELS[name](**more))


def with_mixer(name: str, mixer: str, **more: Any) -> Any:
    model = build(name, **more)
    torch.manual_seed(4)
    model.set_attn_implementation(mixer)
    return model


def layers(cache: Any) -> list[type]:
    return [type(layer) for layer in cache.layers]


def numbers(cache: Any) -> int:
    """How many numbers a cache of states holds."""
    return sum(field.numel() for layer in cache.layers for field in layer.state)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("mixer", ["flow", "flow-gated"])
@pytest.mark.parametrize("name", MODELS)
def test_a_cache_changes_nothing(name: str, mixer: str, style: dict[str, Any]) -> None:
    model = with_mixer(name, mixer)
    prompt = TOKENS.masked_fill(~LEFT.bool(), PAD)
    calls = [
        generate(model, prompt, attention_mask=LEFT, use_cache=use_cache, **style)
        for use_cache in (True, False)
    ]
    assert calls[0].equal(calls[1])
    assert len(calls[0][:, 7:].unique()) > 3


@pytest.mark.parametrize("mixer", MIXERS)
def test_steps_give_the_logits_of_the_whole_sequence_at_constant_size(mixer: str) -> None:
    model = with_mixer("llama", mixer)
    cache = cache_of_sixty_steps(model)
    assert layers(cache) == [StateLayer, StateLayer]
    if mixer != "local":  # its window fills first
        assert numbers(cache) == numbers(cache_of(model(TOKENS[:, :1])))


@pytest.mark.parametrize("style", ["greedy", "beams"])
@pytest.mark.parametrize("mixer", ["flow", "flow-gated"])
def test_a_padded_row_continues_as_it_does_alone(mixer: str, style: str) -> None:
    model = with_mixer("llama", mixer)
    prompt = TOKENS.masked_fill(~LEFT.bool(), PAD)
    together = generate(model, prompt, attention_mask=LEFT, **STYLES[style])
    for row in range(2):
        alone = generate(model, TOKENS[row : row + 1, LEFT[row].bool()], **STYLES[style])
        assert together[row, 7:].equal(alone[0, -9:])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_conversation_goes_on_from_a_returned_cache(name: str) -> None:
    model = with_mixer(name, "flow")
    call: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": PAD}
    first: Any = model.generate(TOKENS, attention_mask=LEFT, return_dict_in_generate=True, **call)
    longer = torch.cat((first.sequences, torch.tensor([[2, 8], [4, 4]])), 1)
    mask = torch.cat((LEFT, LEFT.new_ones(2, 6)), 1)
    kept = copy.deepcopy(cache_of(first))
    expected = model.generate(longer, attention_mask=mask, **call)
    for cache in (cache_of(first), kept):
        out = model.generate(longer, attention_mask=mask, **call, **cache_keyword(cache))
        assert out.equal(expected)


def test_own_loop_with_a_cache_of_ones_own() -> None:
    model = with_mixer("llama", "flow")
    expected = model(TOKENS).logits
    for cache in (DynamicCache(), DynamicCache(config=model.config), None):
        first = model(TOKENS[:, :4], use_cache=True, **cache_keyword(cache))
        later = [
            model(TOKENS[:, at : at + 1], **cache_keyword(cache_of(first))).logits
            for at in range(4, 7)
        ]
        torch.testing.assert_close(torch.cat((first.logits, *later), 1), expected)
        assert cache is None or cache is cache_of(first)


def test_an_encoder_and_a_decoder() -> None:
    config = transformers.BartConfig(
        **BART, max_position_embeddings=40, forced_eos_token_id=None, eos_token_id=None
    )
    torch.manual_seed(3)
    model = undecided(transformers.BartForConditionalGeneration(config))
    model.set_attn_implementation("flow")
    with pytest.warns(UserWarning, match="cross-attention .* stays softmax"):
        calls = [
            generate(model, attention_mask=LEFT, num_beams=3, use_cache=use_cache)
            for use_cache in (True, False)
        ]
    assert calls[0].equal(calls[1])
    out = model(TOKENS, decoder_input_ids=TOKENS[:, :3], use_cache=True)
    assert layers(cache_of(out).self_attention_cache) == [StateLayer, StateLayer]
    assert layers(cache_of(out).cross_attention_cache) == [DynamicLayer, DynamicLayer]


class TestHybrid:
    """Softmax beside a state: one cache holds both."""

    @pytest.mark.parametrize("name", MODELS)
    def test_generates(self, name: str) -> None:
        model = build(name)
        exchanged = replace_attention(model, "flow-gated", predicate=lambda at, _: ".0." in at)
        assert len(exchanged) == 1
        prompt = TOKENS.masked_fill(~LEFT.bool(), PAD)
        calls = [
            generate(model, prompt, attention_mask=LEFT, num_beams=3, use_cache=use_cache)
            for use_cache in (True, False)
        ]
        assert calls[0].equal(calls[1])
        assert layers(cache_of(model(TOKENS))) == [StateLayer, DynamicLayer]

    def test_softmax_that_stays_has_its_window(self) -> None:
        model = build("mistral", sliding_window=3)
        expected = model(TOKENS).logits
        full = build("mistral")(TOKENS).logits
        assert not full.allclose(expected)
        replace_attention(model, "softmax")
        torch.testing.assert_close(model(TOKENS).logits, expected)
        replace_attention(model, "flow", predicate=lambda at, _: ".0." in at)
        calls = [generate(model, do_sample=False, use_cache=use) for use in (True, False)]
        assert calls[0].equal(calls[1])
        kinds = layers(cache_of(model(TOKENS)))
        assert kinds == [StateLayer, DynamicSlidingWindowLayer]

    def test_comes_back(self, tmp_path: Any) -> None:
        model = build("llama")
        replace_attention(
            model, "flow-gated", options={"norm": False}, predicate=lambda at, _: ".1." in at
        )
        model.save_pretrained(tmp_path)
        auto: Any = transformers.AutoModelForCausalLM
        kinds: list[Any] = [auto, transformers.AutoModel]
        for kind in kinds:
            again, info = kind.from_pretrained(
                tmp_path, dtype=torch.float64, output_loading_info=True
            )
            assert not info["missing_keys"]
            assert again.config._attn_implementation == IMPLEMENTATION
        again = auto.from_pretrained(tmp_path, dtype=torch.float64)
        torch.testing.assert_close(
            again(TOKENS).logits, model(TOKENS).logits, rtol=1e-12, atol=1e-12
        )
        assert generate(again, num_beams=2).equal(generate(model, num_beams=2))
        again.save_pretrained(tmp_path / "again")
        third: Any = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "again", dtype=torch.float64
        )
        torch.testing.assert_close(
            third(TOKENS).logits, model(TOKENS).logits, rtol=1e-12, atol=1e-12
        )


class TestByName:
    """Mixers with parameters, as `attn_implementation`."""

    def test_what_was_saved_comes_back(self, tmp_path: Any) -> None:
        model = with_mixer("qwen2", "flow-gated")
        model.save_pretrained(tmp_path)
        auto: Any = transformers.AutoModelForCausalLM
        again, info = auto.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert again.config._attn_implementation == "flow-gated"
        torch.testing.assert_close(
            again(TOKENS).logits, model(TOKENS).logits, rtol=1e-12, atol=1e-12
        )

    @pytest.mark.parametrize("way", ["from_pretrained", "from_config"])
    def test_parameters_that_no_file_gives_are_drawn_by_their_own_rules(
        self, way: str, tmp_path: Any
    ) -> None:
        auto: Any = transformers.AutoModelForCausalLM
        softmax = build("llama")
        softmax.save_pretrained(tmp_path)
        if way == "from_pretrained":
            model = auto.from_pretrained(tmp_path, attn_implementation="flow-gated")
        else:
            model = auto.from_config(softmax.config, attn_implementation="flow-gated")
        found = [each for each in model.modules() if isinstance(each, GatedAttention)]
        assert len(found) == 2
        for attention in found:
            assert attention.decay is not None
            constants = 1 / nn.functional.softplus(attention.decay.projection.bias)
            fresh = GatedAttention(dim=8, num_heads=4, head_dim=4)
            assert fresh.decay is not None
            expected = 1 / nn.functional.softplus(fresh.decay.projection.bias)
            torch.testing.assert_close(constants.float(), expected)
            assert attention.gain is not None
            assert attention.gain.eq(2).all()
            assert attention.convolution is not None
            assert 0 < attention.convolution.abs().max() <= 0.5

    def test_another_choice_takes_the_parameters_out(self) -> None:
        model, plain = with_mixer("llama", "flow-gated"), build("llama")
        assert any(CHILD in name for name in model.state_dict())
        model.set_attn_implementation("gated")
        assert not any("flow_gated" in name for name in model.state_dict())
        model.set_attn_implementation("sdpa")
        assert model.state_dict().keys() == plain.state_dict().keys()
        torch.testing.assert_close(model(TOKENS).logits, plain(TOKENS).logits)
        assert not hasattr(model.config, KEY)

    def test_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ATTENTIONS, "mine", Choice("flow-gated", {"norm": False}))
        with pytest.raises(ValueError, match="convolution must be a whole number"):
            flowformer.integrations.transformers.register_attention(
                "wrong", "flow-gated", convolution=-1
            )
        flowformer.integrations.transformers.register_attention("mine", "flow-gated", norm=False)
        model = with_mixer("llama", "mine")
        assert {each.norm for each in model.modules() if isinstance(each, GatedAttention)} == {None}

    def test_a_model_that_it_does_not_fit_into(self) -> None:
        config = transformers.PersimmonConfig(**SIZES)
        with pytest.raises(ValueError, match=r"'flow-gated' is put into .*LlamaAttention.*'flow'"):
            transformers.AutoModelForCausalLM.from_config(config, attn_implementation="flow-gated")


class TestCache:
    """What `generate` and its users do with a cache."""

    def test_rows_are_chosen_and_repeated(self) -> None:
        model = with_mixer("llama", "flow-gated")
        cache = cache_of(model(TOKENS[:, :6]))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([2, 0, 3]))
        logits = model(TOKENS[[1, 0, 1], 6:], **cache_keyword(cache)).logits
        torch.testing.assert_close(logits[:, 0], model(TOKENS[[1, 0, 1]]).logits[:, -1])

    def test_a_cache_that_is_reset_is_empty(self) -> None:
        model = with_mixer("llama", "flow")
        cache = cache_of(model(TOKENS))
        cache.reset()
        assert cache.get_seq_length() == 0
        torch.testing.assert_close(
            model(TOKENS, **cache_keyword(cache)).logits, model(TOKENS).logits, rtol=0, atol=0
        )

    def test_tokens_cannot_be_taken_back(self) -> None:
        model = with_mixer("llama", "flow")
        cache = cache_of(model(TOKENS))
        assert not cache.is_croppable
        with pytest.raises(NotImplementedError, match="cannot take 2 tokens back"):
            cache.crop(-2)
        with pytest.raises(NotImplementedError, match="tokens back"):
            generate(model, TOKENS[:1], prompt_lookup_num_tokens=2, max_new_tokens=20)

    def test_training_makes_none_unasked(self) -> None:
        model = with_mixer("llama", "flow").train()
        assert cache_of(model(TOKENS)) is None
        assert layers(cache_of(model(TOKENS, use_cache=True))) == [StateLayer, StateLayer]

    def test_keys_and_values_of_another_attention(self) -> None:
        cache = cache_of(build("llama")(TOKENS))
        model = with_mixer("llama", "flow")
        with pytest.raises(NotImplementedError, match="use_cache=False"):
            model(TOKENS[:, :1], **cache_keyword(cache))

    def test_a_call_that_broke_off(self) -> None:
        model = with_mixer("llama", "flow")
        cache = DynamicCache()
        model(TOKENS, **cache_keyword(cache))

        def fail(*_: Any) -> None:
            raise KeyboardInterrupt

        handle = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(TOKENS[:, :1], **cache_keyword(cache))
        handle.remove()
        layer: Any = cache.layers[0]
        layer.update(torch.zeros(2, 4, 1, 4), torch.zeros(2, 4, 1, 4))
        with pytest.raises(RuntimeError, match="did not take up the state"):
            model(TOKENS[:, :1], **cache_keyword(cache))


@pytest.mark.usefixtures("shape_checks_off")
def test_compiled_steps_go_on_from_a_state() -> None:
    model = with_mixer("llama", "flow").float()
    expected = model(TOKENS).logits
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        first = compiled(TOKENS[:, :5], use_cache=True)
        assert layers(cache_of(first)) == [StateLayer, StateLayer]
        later = compiled(TOKENS[:, 5:], use_cache=True, **cache_keyword(cache_of(first)))
    torch.testing.assert_close(torch.cat((first.logits, later.logits), 1), expected)
