"""Exchanging the attention of other libraries' models.

The strongest test is softmax for softmax: the outputs must not change, padding and masks included.
"""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.layers.attention import Attention
from torch import Tensor, nn

from flowformer.nn.replace import replace_attention
from flowformer.ops import flow_attention

PADDING = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 8 + [0]])
TOKENS = torch.arange(27).view(3, 9) * 7 % 31
SMALL: dict[str, Any] = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 32}


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=16, num_heads=2, depth=2
    )


def bert() -> nn.Module:
    config = transformers.BertConfig(num_hidden_layers=2, num_attention_heads=2, **SMALL)
    return transformers.BertModel(config)


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(num_hidden_layers=2, num_attention_heads=2, **SMALL)
    return transformers.RobertaModel(config)


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(vocab_size=31, dim=16, n_heads=2, n_layers=2)
    return transformers.DistilBertModel(config)


def hf_vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config.image_size = 32
    return transformers.ViTModel(config)


def gpt2(**changes: Any) -> Any:
    config = transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, **changes)
    config.eos_token_id = config.bos_token_id = config.pad_token_id = 0
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **SMALL
    )
    return transformers.LlamaModel(config)


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def of_tokens(model: Any) -> Tensor:
    out = model(TOKENS, attention_mask=PADDING)
    return (out.logits if "logits" in out else out.last_hidden_state)[PADDING.bool()]


def of_images(model: Any) -> Tensor:
    out = model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32))
    return out if isinstance(out, Tensor) else out.last_hidden_state


def of_vectors(model: Any) -> Tensor:
    x = torch.linspace(-5, 5, 3 * 9 * 16).sin().view(3, 9, 16)
    return model(x, src_key_padding_mask=~PADDING.bool())[PADDING.bool()]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]] = {
    "torch": (torch_encoder, of_vectors),
    "timm-vit": (vit, of_images),
    "bert": (bert, of_tokens),
    "roberta": (roberta, of_tokens),
    "distilbert": (distilbert, of_tokens),
    "vit": (hf_vit, of_images),
    "gpt2": (gpt2, of_tokens),
    "llama": (llama, of_tokens),
}
CAUSAL = {"gpt2", "llama"}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Callable[[Any], Tensor]]:
    make, run = MODELS[request.param]
    torch.manual_seed(1)
    return request.param, make().eval(), run


def test_softmax_for_softmax_changes_nothing(case: tuple) -> None:
    _, model, run = case
    expected = run(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert len(replace_attention(model, "softmax")) == 2
    torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-5)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("mixer", ["flow", "linear", "linformer"])
def test_other_mixers_run_train_and_differ(case: tuple, mixer: str) -> None:
    name, model, run = case
    expected = run(model)
    options = {"max_length": 20, "rank": 4} if mixer == "linformer" else {}
    if mixer == "linformer" and name in CAUSAL:
        with pytest.raises(ValueError, match="is causal and 'linformer' has no causal form"):
            replace_attention(model, mixer, options=options)
        torch.testing.assert_close(run(model), expected)  # nothing was changed
        return
    replace_attention(model, mixer, options=options)
    out = run(model)
    assert not out.allclose(expected, atol=1e-5)
    out.square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    projections = [
        parameter
        for parameter_name, parameter in model.named_parameters()
        if parameter_name.endswith(
            (
                "query_projection.weight",
                "query.weight",
                "q_lin.weight",
                "q_proj.weight",
                "in_proj_weight",
                "c_attn.weight",
            )
        )
    ]
    assert len(projections) == 2
    assert all(each.grad is not None and each.grad.any() for each in projections)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_flow_ignores_what_stands_in_the_padding(name: str) -> None:
    make, run = MODELS[name]
    model = make().eval()
    replace_attention(model)
    alone = model(TOKENS[1:2, :5])
    together = run(model)[9:14]
    expected = alone.logits if name == "gpt2" else alone.last_hidden_state
    torch.testing.assert_close(together, expected[0], rtol=1e-4, atol=1e-5)


def test_flow_in_timm_is_flow_attention_of_the_same_projections() -> None:
    layer = Attention(16, num_heads=2, qkv_bias=True)
    holder, x = nn.ModuleDict({"attention": layer}), torch.randn(3, 9, 16)
    q, k, v = layer.qkv(x).view(3, 9, 3, 2, 8).unbind(2)
    mixed = flow_attention(q, k, v, clamp=None)
    assert isinstance(mixed, Tensor)
    expected = layer.proj(mixed.flatten(2))
    assert replace_attention(holder, options={"clamp": None}) == ["attention"]
    torch.testing.assert_close(holder["attention"](x), expected)


def test_flow_in_bert_is_flow_attention_of_the_same_projections() -> None:
    model = bert().eval()
    layer = model.get_submodule("encoder.layer.0.attention.self")
    replace_attention(model)
    x = torch.randn(3, 9, 16)
    q, k, v = (layer.get_submodule(name)(x).view(3, 9, 2, 8) for name in ("query", "key", "value"))
    expected = flow_attention(q, k, v, mask=PADDING.bool())
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(layer(x, PADDING.bool())[0], expected.flatten(2))


def test_predicate_chooses_the_layers() -> None:
    model, untouched = bert().eval(), bert().eval()
    untouched.load_state_dict(model.state_dict())
    names = replace_attention(model, "flow", predicate=lambda name, _: "layer.1." in name)
    assert names == ["encoder.layer.1.attention.self"]
    first = model(TOKENS, attention_mask=PADDING, output_hidden_states=True).hidden_states
    expected = untouched(TOKENS, attention_mask=PADDING, output_hidden_states=True).hidden_states
    real = PADDING.bool()
    torch.testing.assert_close(first[1][real], expected[1][real], rtol=1e-4, atol=1e-5)
    assert not first[2][real].allclose(expected[2][real], atol=1e-5)


def test_decoder_layers_keep_their_causal_and_their_cross_attention() -> None:
    torch.manual_seed(1)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 2).eval()
    x, memory = torch.randn(3, 6, 16), torch.randn(3, 9, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(6).isneginf()
    call = {"tgt_mask": mask, "memory_key_padding_mask": ~PADDING.bool()}
    expected = model(x, memory, **call)
    assert len(replace_attention(model, "softmax")) == 4
    torch.testing.assert_close(model(x, memory, **call), expected, rtol=1e-4, atol=1e-5)


def test_softmax_generates_with_a_cache_and_flow_says_that_it_cannot() -> None:
    torch.manual_seed(1)
    model = gpt2().eval()
    prompt = torch.tensor([[3, 1, 4, 1, 5], [0, 0, 2, 7, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    call = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, **call)
    replace_attention(model, "softmax")
    assert model.generate(prompt, **call).equal(expected)
    replace_attention(model, "flow")
    with pytest.raises(NotImplementedError, match="use_cache=False"):
        model.generate(prompt, **call)
    assert model.generate(prompt, use_cache=False, **call).shape == (2, 11)


def test_inverse_layer_scaling_is_kept_by_softmax() -> None:
    torch.manual_seed(1)
    model = gpt2(scale_attn_by_inverse_layer_idx=True).eval()
    expected = of_tokens(model)
    replace_attention(model, "softmax")
    torch.testing.assert_close(of_tokens(model), expected, rtol=1e-4, atol=1e-5)


def test_dropout_of_weights_stays_with_softmax() -> None:
    layer = Attention(16, num_heads=2, attn_drop=0.25, proj_drop=0.5)
    model = nn.ModuleDict({"timm": layer, "torch": nn.MultiheadAttention(16, 2, dropout=0.125)})
    replace_attention(model, "softmax")
    assert model.get_submodule("timm.mixer.attention").weight_dropout == 0.25
    assert model.get_submodule("timm.mixer.dropout").p == 0.5
    assert model.get_submodule("torch.attention").weight_dropout == 0.125
    hf = bert()
    replace_attention(hf, "softmax")
    child = hf.get_submodule("encoder.layer.0.attention.self.mixer_attention")
    assert child.weight_dropout == 0.1


def test_training_mode_frozen_weights_and_dtype_are_kept() -> None:
    model = nn.ModuleDict(
        {"timm": Attention(16, num_heads=2), "torch": nn.MultiheadAttention(16, 2)}
    ).bfloat16()
    model.eval().requires_grad_(False)
    replace_attention(model)
    for module in model.modules():
        assert not module.training
    for parameter in model.parameters():
        assert parameter.dtype == torch.bfloat16
        assert not parameter.requires_grad


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "bias": False}], ids=["packed", "separate"])
def test_an_optimizer_made_before_still_holds_torchs_parameters(options: dict[str, Any]) -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2, **options)})
    before = dict(model.named_parameters())
    replace_attention(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_a_shared_module_stays_shared() -> None:
    layer = nn.MultiheadAttention(16, 2)
    model = nn.ModuleDict({"first": layer, "second": layer})
    assert replace_attention(model) == ["first", "second"]
    assert model["first"] is model["second"]


@pytest.mark.parametrize("mixer", ["flow", "linear", "softmax"])
def test_packed_sequences_in_transformers_do_not_see_one_another(mixer: str) -> None:
    model = llama().eval().double()
    replace_attention(model, mixer)
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(3, 9)
    out = model(TOKENS, position_ids=places).last_hidden_state
    parts = [model(part).last_hidden_state for part in (TOKENS[:, :4], TOKENS[:, 4:])]
    torch.testing.assert_close(out, torch.cat(parts, 1), rtol=1e-12, atol=1e-12)


class TestRefusals:
    def test_a_model_without_known_attention_names_what_it_saw(self) -> None:
        class OddAttention(nn.Module):
            pass

        with pytest.raises(ValueError, match=r"nn\.MultiheadAttention.*: .*OddAttention"):
            replace_attention(nn.Sequential(OddAttention()))

    def test_a_predicate_that_is_never_true(self) -> None:
        with pytest.raises(ValueError, match=r"torch\.nn\..*MultiheadAttention"):
            replace_attention(torch_encoder(), predicate=lambda *_: False)

    def test_a_part_of_a_transformers_model(self) -> None:
        with pytest.raises(ValueError, match="BertEncoder is a part of a transformers model"):
            replace_attention(bert().get_submodule("encoder"))

    def test_a_subclass_that_may_compute_something_else(self) -> None:
        class MyAttention(nn.MultiheadAttention):
            pass

        with pytest.raises(ValueError, match="MyAttention"):
            replace_attention(nn.Sequential(MyAttention(16, 2)))

    def test_an_attention_on_its_own(self) -> None:
        with pytest.raises(ValueError, match="itself a MultiheadAttention"):
            replace_attention(nn.MultiheadAttention(16, 2))

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            ({"qk_norm": True, "norm_layer": nn.LayerNorm}, "q_norm"),
            ({"scale_norm": True, "norm_layer": nn.LayerNorm}, "has norm"),
            ({"gated": True}, "gate"),
            ({"dim_out": 8}, "as wide as its input"),
        ],
    )
    def test_timm_attention_with_more_parts(self, options: dict[str, Any], part: str) -> None:
        with pytest.raises(ValueError, match=part):
            replace_attention(nn.Sequential(Attention(16, num_heads=2, **options)))

    def test_masks_of_pairs_in_timm(self) -> None:
        model = nn.Sequential(Attention(16, num_heads=2))
        replace_attention(model)
        with pytest.raises(ValueError, match="attn_mask must be None"):
            model[0](torch.randn(1, 5, 16), attn_mask=torch.ones(5, 5, dtype=torch.bool))
