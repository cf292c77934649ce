"""`attn_implementation="flow"`: the models of transformers with Flow-Attention in place of softmax.

What the attention function returns is compared with `flow_attention` on the heads that the model
itself hands over.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from transformers import DataCollatorWithFlattening, DynamicCache
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface, PreTrainedModel

import flowformer.integrations.transformers as flow_transformers
from flowformer import flow_attention
from flowformer.integrations.transformers.attention import ATTENTIONS, KEY
from flowformer.integrations.transformers.cache import CACHE
from flowformer.nn.mixers.flow import FlowAttention
from flowformer.nn.mixers.head_attention import HeadAttention
from flowformer.nn.replace import replace_attention
from flowformer.nn.replace.transformers_attention import AttentionMask
from flowformer.nn.replace.transformers_owner import document_offsets
from tests.integrations.transformers.small import BART

SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
LEFT = RIGHT.flip(1)


def bert(**changes: Any) -> Any:
    config = transformers.BertConfig(**SMALL, **changes)
    return transformers.BertModel(config, add_pooling_layer=False)


def vit() -> Any:
    return transformers.ViTModel(
        transformers.ViTConfig(image_size=8, patch_size=4, **without(SMALL, "vocab_size"))
    )


def gpt2() -> Any:
    return transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=4)
    )


def llama() -> Any:
    return transformers.LlamaModel(transformers.LlamaConfig(num_key_value_heads=2, **SMALL))


def persimmon() -> Any:
    """Its attentions are not told of the positions."""
    return transformers.PersimmonModel(transformers.PersimmonConfig(**SMALL))


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


class Recorder:
    """Registers itself as an attention that records what "flow" is given and what it returns."""

    def __init__(self, name: str = "flow") -> None:
        self.calls: list[tuple[nn.Module, tuple[Tensor, ...], Any, Tensor]] = []
        self.attend = AttentionInterface()[name]

    def __call__(self, module: nn.Module, *tensors: Any, **others: Any) -> tuple[Tensor, None]:
        out, weights = self.attend(module, *tensors, **others)
        self.calls.append((module, tensors[:3], tensors[3], out))
        return out, weights


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(AttentionInterface._global_mapping, "flow", recorder)
    return recorder


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered in a test is forgotten after it."""
    for kind in (AttentionInterface, AttentionMaskInterface):
        monkeypatch.setattr(kind, "_global_mapping", dict(kind._global_mapping))
    for name in ("flow-unclamped", "flow-independent"):
        monkeypatch.setitem(ATTENTIONS, name, None)
        monkeypatch.delitem(ATTENTIONS, name)


def with_flow(model: Any) -> Any:
    model.set_attn_implementation("flow")
    return model.eval().double()


@pytest.mark.parametrize("mask", [None, RIGHT, LEFT], ids=["whole", "right", "left"])
@pytest.mark.parametrize(
    ("build", "causal"),
    [(bert, False), (gpt2, True), (llama, True)],
    ids=["bert", "gpt2", "llama-grouped"],
)
def test_heads_of_the_model_go_through_flow_attention(
    build: Callable[[], nn.Module], causal: bool, mask: Tensor | None, recorder: Recorder
) -> None:
    model = with_flow(build())
    extra: dict[str, Any] = {"use_cache": False} if causal else {}
    if causal and mask is not None:
        extra["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = model(input_ids=TOKENS, attention_mask=mask, **extra).last_hidden_state
    assert len(recorder.calls) == 2
    for _, heads, given, out in recorder.calls:
        expected = flow_attention(
            *(tensor.transpose(1, 2) for tensor in heads),
            causal=causal,
            mask=None if mask is None else mask.bool(),
        )
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        assert isinstance(given, AttentionMask)
        assert given.causal == causal
        assert given.padding is None or given.padding.shape == TOKENS.shape
    if mask is None:
        return
    real = mask.bool()
    other = torch.where(real, TOKENS, 30)  # what stands in the padding changes nothing
    again = model(input_ids=other, attention_mask=mask, **extra).last_hidden_state
    torch.testing.assert_close(again[real], hidden[real], rtol=0, atol=0)


def test_images(recorder: Recorder) -> None:
    model = with_flow(vit())
    model(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    for _, heads, mask, out in recorder.calls:
        assert mask == AttentionMask(causal=False)
        expected = flow_attention(*(tensor.transpose(1, 2) for tensor in heads))
        torch.testing.assert_close(out, expected, rtol=0, atol=0)


def bart() -> Any:
    return transformers.BartModel(transformers.BartConfig(**BART, pad_token_id=0))


def test_cross_attention_of_a_decoder_stays_softmax_and_says_so_once(recorder: Recorder) -> None:
    model = with_flow(bart())
    # As long as the source: the lengths do not tell self-attention from cross-attention.
    call = {"input_ids": TOKENS, "attention_mask": RIGHT, "decoder_input_ids": TOKENS}
    with pytest.warns(UserWarning, match=r"BartDecoder stays softmax.*independent_sinks"):
        model(**call, use_cache=False)
    recorder.calls.clear()
    model(**call, use_cache=False)  # here a warning would be an error
    calls = [(False, {"mask": RIGHT.bool()}), *[(True, {}), None] * 2]
    assert len(recorder.calls) == len(calls)
    for (_, heads, _, out), flow in zip(recorder.calls, calls, strict=True):
        if flow is None:
            query, key, value = heads
            mask = RIGHT.bool()[:, None, None]
            expected = F.scaled_dot_product_attention(query, key, value, mask)
        else:
            heads = [tensor.transpose(1, 2) for tensor in heads]
            expected = flow_attention(*heads, causal=flow[0], **flow[1]).transpose(1, 2)
        torch.testing.assert_close(out.transpose(1, 2), expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("variants")
def test_cross_attention_of_independent_sinks_is_taken() -> None:
    options: dict[str, Any] = {"competition": None, "allocation": False}
    flow_transformers.register_attention("flow-independent", **options)
    attention: Any = ATTENTIONS["flow-independent"]
    attention.capabilities = replace(FlowAttention.capabilities, independent_sinks=True)
    recorder = Recorder("flow-independent")
    AttentionInterface.register("flow-independent", recorder)
    model = bart().double().eval()
    model.set_attn_implementation("flow-independent")
    model(TOKENS, RIGHT, decoder_input_ids=TOKENS[:, :5], use_cache=False)
    heads = [tensor.transpose(1, 2) for tensor in recorder.calls[2][1]]
    expected = flow_attention(*heads, key_mask=RIGHT.bool(), **options)
    torch.testing.assert_close(recorder.calls[2][3], expected, rtol=0, atol=0)


def test_nothing_of_a_later_token_reaches_an_earlier_one() -> None:
    model = with_flow(gpt2())
    changed = TOKENS.clone()
    changed[:, -1] = 11
    first, second = (model(ids, use_cache=False).last_hidden_state for ids in (TOKENS, changed))
    torch.testing.assert_close(first[:, :-1], second[:, :-1], rtol=0, atol=0)
    assert not first[:, -1].equal(second[:, -1])


def test_from_pretrained_takes_it_by_name(tmp_path: Any) -> None:
    model = bert().double().eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(
        tmp_path, attn_implementation="flow", add_pooling_layer=False, dtype=torch.float64
    ).eval()
    assert loaded.config._attn_implementation == "flow"
    expected = with_flow(model)(TOKENS, attention_mask=LEFT).last_hidden_state
    torch.testing.assert_close(
        loaded(TOKENS, attention_mask=LEFT).last_hidden_state, expected, rtol=0, atol=0
    )


def test_every_parameter_that_softmax_trains_is_trained() -> None:
    model = with_flow(bert()).train()
    model(TOKENS, attention_mask=RIGHT).last_hidden_state.square().sum().backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert idle == []


@pytest.mark.usefixtures("variants")
def test_a_variant_has_its_own_name_and_options() -> None:
    flow_transformers.register_attention("flow-unclamped", clamp=None)
    recorder = Recorder("flow-unclamped")
    AttentionInterface.register("flow-unclamped", recorder)
    model = bert().double().eval()
    model.set_attn_implementation("flow-unclamped")
    model(TOKENS)
    for _, heads, _, out in recorder.calls:
        heads = [tensor.transpose(1, 2) for tensor in heads]
        torch.testing.assert_close(out, flow_attention(*heads, clamp=None), rtol=0, atol=0)
        assert not out.equal(flow_attention(*heads))


class TestSaved:
    """What was trained with ours is not loaded with another attention unsaid."""

    @pytest.fixture
    def folder(self, tmp_path: Any) -> Any:
        model = transformers.AutoModelForCausalLM.from_config(
            llama().config, attn_implementation="flow"
        )
        model.save_pretrained(tmp_path)
        return tmp_path

    def test_comes_back_as_it_was(self, folder: Any) -> None:
        kinds: list[Any] = [transformers.AutoModelForCausalLM, transformers.AutoModel]
        for kind in kinds:
            model, info = kind.from_pretrained(folder, output_loading_info=True)
            assert model.config._attn_implementation == "flow"
            assert not info["missing_keys"]
            assert [key.split(".")[-1] for key in model.state_dict() if "flow" in key] == [KEY]

    @pytest.mark.usefixtures("variants")
    def test_with_its_options_and_name(self, tmp_path: Any) -> None:
        flow_transformers.register_attention("flow-unclamped", clamp=None)
        model = gpt2()
        model.set_attn_implementation("flow-unclamped")
        model.save_pretrained(tmp_path)
        del ATTENTIONS["flow-unclamped"], AttentionInterface._global_mapping["flow-unclamped"]
        again = transformers.AutoModel.from_pretrained(tmp_path)
        assert again.config._attn_implementation == "flow-unclamped"
        options: Any = ATTENTIONS["flow-unclamped"].options
        assert options.clamp is None
        flow_transformers.register_attention("flow-unclamped", clamp=2.0)
        with pytest.raises(ValueError, match=r"'clamp': None.*registered here with.*2\.0"):
            transformers.AutoModel.from_pretrained(tmp_path)

    def test_parts_of_a_model_too(self, tmp_path: Any) -> None:
        config: Any = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.BertConfig(**SMALL), transformers.BertConfig(**SMALL)
        )
        model = transformers.EncoderDecoderModel(config=config)
        model.set_attn_implementation({"": "sdpa", "encoder": "flow", "decoder": "sdpa"})
        model.save_pretrained(tmp_path)
        again: Any = transformers.EncoderDecoderModel.from_pretrained(tmp_path)
        assert again.encoder.config._attn_implementation == "flow"
        assert again.decoder.config._attn_implementation == "sdpa"

    def test_the_choice_of_the_user_counts_and_is_said(self, folder: Any) -> None:
        with pytest.warns(UserWarning, match="saved with attn_implementation='flow'.*'sdpa'"):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="sdpa"
            )
        assert model.config._attn_implementation == "sdpa"
        assert not hasattr(model.config, KEY)

    @pytest.mark.usefixtures("variants")
    def test_is_refused_without_this_package_and_its_weights_are_told(
        self, folder: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("get_correct_attn_implementation", "post_init", "set_attn_implementation"):
            monkeypatch.setattr(PreTrainedModel, name, getattr(PreTrainedModel, name).__wrapped__)
        del AttentionInterface._global_mapping["flow"]
        auto: Any = transformers.AutoModelForCausalLM
        with pytest.raises(ValueError, match='attn_implementation="flow"` is not supported'):
            auto.from_pretrained(folder)
        model, info = auto.from_pretrained(
            folder, attn_implementation="sdpa", output_loading_info=True
        )
        assert model.config._attn_implementation == "sdpa"
        assert info["unexpected_keys"] == {f"model.{KEY}"}  # transformers warns of these

    def test_a_model_whose_attention_was_replaced_may_take_it(self) -> None:
        model = llama()
        replace_attention(model, "linear")
        model.set_attn_implementation("flow")
        assert getattr(model.config, KEY)["implementation"] == "flow"

    @pytest.mark.parametrize("loaded", [True, False])
    def test_the_way_back_from_replaced_attention_is_kept(
        self, loaded: bool, tmp_path: Any
    ) -> None:
        plain, model = llama().float(), llama().float()
        model.load_state_dict(plain.state_dict())
        replace_attention(model, "linear")
        if loaded:
            model.save_pretrained(tmp_path)
            with pytest.warns(UserWarning, match="saved after replace_attention with 'linear'"):
                model = type(model).from_pretrained(tmp_path, attn_implementation="sdpa")
        else:
            model.set_attn_implementation("sdpa")
        assert not any(isinstance(module, HeadAttention) for module in model.modules())
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert again.config._attn_implementation == "sdpa"
        assert not hasattr(again.config, KEY)
        found, expected = (each.eval()(TOKENS).last_hidden_state for each in (again, plain))
        torch.testing.assert_close(found, expected)

    def test_state_dicts(self) -> None:
        plain, flow = llama(), llama()
        flow.set_attn_implementation("flow")
        with pytest.raises(RuntimeError, match=f"Unexpected key.*{KEY}"):
            plain.load_state_dict(flow.state_dict())
        flow.load_state_dict(plain.state_dict())  # to train them for it
        flow.set_attn_implementation("sdpa")
        plain.load_state_dict(flow.state_dict())
        assert not hasattr(flow.config, KEY)


class TestPacked:
    """Documents packed into rows: each as it is alone."""

    DOCUMENTS = (TOKENS[0, :4], TOKENS[1], TOKENS[0, :2])

    @pytest.mark.parametrize("build", [gpt2, llama, persimmon])
    @pytest.mark.parametrize("offsets", [True, False], ids=["offsets", "positions"])
    @pytest.mark.parametrize("use_cache", [None, False])
    def test_batches_of_a_collator(
        self, build: Callable[[], nn.Module], offsets: bool, use_cache: bool | None
    ) -> None:
        collate = DataCollatorWithFlattening(return_flash_attn_kwargs=offsets)
        batch = collate([{"input_ids": each.tolist()} for each in self.DOCUMENTS])
        batch.pop("labels")
        model = with_flow(build())
        out = model(**batch, use_cache=use_cache).last_hidden_state
        expected = [model(each[None]).last_hidden_state for each in self.DOCUMENTS]
        torch.testing.assert_close(out, torch.cat(expected, 1), rtol=1e-12, atol=1e-12)

    def test_several_rows(self) -> None:
        model = with_flow(llama())
        places = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])
        out = model(TOKENS, position_ids=places).last_hidden_state
        parts = [model(TOKENS[:1, :3]), model(TOKENS[:1, 3:])]
        first = torch.cat([part.last_hidden_state for part in parts], 1)
        expected = torch.cat((first, model(TOKENS[1:]).last_hidden_state))
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("place", ["keyword", "position"])
    def test_an_empty_cache_stays_empty(self, place: str) -> None:
        model = with_flow(llama())
        places, cache = torch.tensor([[0, 1, 2, 0, 1, 2, 3]]), DynamicCache()
        given = (TOKENS[:1], None, places, cache) if place == "position" else (TOKENS[:1],)
        named = {} if place == "position" else {CACHE: cache, "position_ids": places}
        out = model(*given, **named).last_hidden_state
        expected = [model(TOKENS[:1, part]).last_hidden_state for part in (slice(3), slice(3, 7))]
        torch.testing.assert_close(out, torch.cat(expected, 1), rtol=1e-12, atol=1e-12)
        assert cache.get_seq_length() == 0

    def test_compiled_code_refuses_positions_that_start_anew(self) -> None:
        compiled = torch.compile(inspect.unwrap(document_offsets), backend="eager")
        assert compiled(torch.zeros_like(TOKENS)) is None
        with pytest.raises(RuntimeError, match="packed sequences in compiled code"):
            compiled(torch.arange(7).expand(2, 7) // 4)

    def test_rotary_positions_that_run_on_are_told(self) -> None:
        model, row, offsets = with_flow(llama()), TOKENS[:1], torch.tensor([0, 4, 7])
        with pytest.warns(UserWarning, match="without positions of their own"):
            model(row, cu_seq_lens_q=offsets)
        model(row, cu_seq_lens_q=torch.tensor([0, 7]))  # one document: no warning
        with_flow(gpt2())(row, cu_seq_lens_q=offsets)

    def test_offsets_beside_padding(self) -> None:
        with pytest.raises(ValueError, match=r"cu_seq_lens_q.*leave out attention_mask"):
            with_flow(llama())(TOKENS, attention_mask=RIGHT, cu_seq_lens_q=torch.tensor([0, 14]))


def test_positions_that_count_padding_on_the_left_are_told() -> None:
    model = with_flow(llama())
    with pytest.warns(UserWarning, match=r"padded on the left.*attention_mask\.cumsum"):
        model(TOKENS, attention_mask=LEFT)
    places = (LEFT.cumsum(1) - 1).clamp(min=0)
    out = model(TOKENS, attention_mask=LEFT, position_ids=places).last_hidden_state
    alone = model(TOKENS[1:, 3:]).last_hidden_state
    torch.testing.assert_close(out[1:, 3:], alone, rtol=1e-12, atol=1e-12)
    softmax = llama()
    replace_attention(softmax, "softmax")
    softmax(TOKENS, attention_mask=LEFT)  # sees distances alone: no warning


def test_gradients_of_each_sample_with_a_mask() -> None:
    model = with_flow(llama())
    parameters = dict(model.named_parameters())

    def loss(parameters, tokens, mask):
        call = {"attention_mask": mask[None], "use_cache": False}
        out = functional_call(model, parameters, (tokens[None],), call)
        return out.last_hidden_state.square().sum()

    found = vmap(grad(loss), (None, 0, 0))(parameters, TOKENS, RIGHT)
    for row in range(2):
        alone = grad(loss)(parameters, TOKENS[row], RIGHT[row])
        for name, each in alone.items():
            torch.testing.assert_close(found[name][row], each)


def test_one_configuration_for_several_attentions_is_no_warning() -> None:
    config = transformers.LlamaConfig(**SMALL)
    for name in ("flow", "sdpa", "flow"):
        model = transformers.AutoModel.from_config(config, attn_implementation=name)
        assert model.config._attn_implementation == name
    model.set_attn_implementation("sdpa")
    model.set_attn_implementation("flow")
    assert len(model._load_state_dict_post_hooks) == 1


class TestRefusals:
    def test_an_option_that_there_is_not(self) -> None:
        with pytest.raises(ValueError, match="clamp must be positive"):
            flow_transformers.register_attention("flow-wrong", clamp=-1.0)
        assert "flow-wrong" not in AttentionInterface()

    def test_a_cache_that_holds_no_state(self) -> None:
        config = transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=4)
        model = with_flow(transformers.GPT2LMHeadModel(config))
        call = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
        with pytest.raises(NotImplementedError, match="static cache"):
            model.generate(TOKENS, cache_implementation="static", **call)
        assert model.generate(TOKENS, **call).shape == (2, 10)

    def test_a_mask_of_pairs(self) -> None:
        pairs = torch.ones(2, 1, 7, 7, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"padding mask \[b, t\].*\(2, 1, 7, 7\)"):
            with_flow(bert())(TOKENS, attention_mask=pairs)

    def test_sliding_windows(self) -> None:
        config = transformers.MistralConfig(sliding_window=4, num_key_value_heads=2, **SMALL)
        with pytest.raises(NotImplementedError, match="sliding"):
            with_flow(transformers.MistralModel(config))(TOKENS, use_cache=False)

    def test_a_module_that_does_not_say_whether_it_is_causal(self) -> None:
        heads = torch.randn(1, 2, 5, 4)
        with pytest.raises(NotImplementedError, match="Linear does not say whether it is causal"):
            AttentionInterface()["flow"](nn.Linear(1, 1), heads, heads, heads, None)

    def test_a_mask_of_another_batch(self) -> None:
        with pytest.raises(ValueError, match=r"a row for each of the 2 sequences.*\(1, 7\)"):
            with_flow(bert())(TOKENS, attention_mask=LEFT[:1])

    def test_a_configuration_changed_past_the_checks(self) -> None:
        model = llama()
        model.config._attn_implementation = "flow"
        with pytest.raises(RuntimeError, match=r"LlamaAttention.*set_attn_implementation"):
            model(TOKENS)

    @pytest.mark.parametrize("way", ["from_config", "set"])
    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            (transformers.BloomConfig(**SMALL), "BloomAttention"),
            (transformers.FalconConfig(**SMALL), "attention itself"),
            (transformers.XGLMConfig(vocab_size=31, d_model=16, ffn_dim=32, num_layers=1), "XGLM"),
            (transformers.MambaConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1), "all"),
        ],
        ids=["scores", "table", "masks", "no-attention"],
    )
    def test_a_model_that_computes_its_attention_itself(
        self, config: Any, reason: str, way: str
    ) -> None:
        auto, config = transformers.AutoModelForCausalLM, copy.deepcopy(config)
        match = rf"computes .*{reason}.*attention interface"
        if way == "from_config":
            with pytest.raises(ValueError, match=match):
                auto.from_config(config, attn_implementation="flow")
            return
        model = auto.from_config(config)
        before = model.config._attn_implementation
        with pytest.raises(ValueError, match=r"computes .*attention interface"):
            model.set_attn_implementation("flow")
        assert model.config._attn_implementation == before

    def test_our_own_models(self) -> None:
        config = flow_transformers.FlowformerConfig(**SMALL)
        with pytest.raises(ValueError, match=r"FlowformerModel takes.*mixer='flow'"):
            transformers.AutoModel.from_config(config, attn_implementation="flow")
