"""Exchanging the attention of other libraries' models.

The strongest test is softmax for softmax: the outputs must not change, padding and masks included.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from flowformer.nn.multihead import MultiheadAttention
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


@pytest.mark.parametrize("mixer", ["flow", "linear", "gated", "linformer"])
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
                "qkv.weight",
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


def test_softmax_generates_with_keys_and_values_and_flow_with_its_state() -> None:
    torch.manual_seed(1)
    model = gpt2().eval()
    prompt = torch.tensor([[3, 1, 4, 1, 5], [0, 0, 2, 7, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    call = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, **call)
    replace_attention(model, "softmax")
    assert model.generate(prompt, **call).equal(expected)
    replace_attention(model, "flow")
    expected = model.generate(prompt, use_cache=False, **call)
    assert model.generate(prompt, **call).equal(expected)


def test_packed_sequences_in_transformers_are_computed_apart() -> None:
    torch.manual_seed(1)
    model: Any = llama().eval()
    replace_attention(model)
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(3, 9)
    packed = model(TOKENS, position_ids=places, use_cache=False).last_hidden_state
    apart = [model(each, use_cache=False).last_hidden_state for each in TOKENS.split((4, 5), 1)]
    torch.testing.assert_close(packed, torch.cat(apart, 1), rtol=1e-4, atol=1e-5)


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
    assert model.get_submodule("timm.attention").weight_dropout == 0.25
    assert model.get_submodule("timm.proj_drop").p == 0.5
    assert model.get_submodule("torch.attention").weight_dropout == 0.125
    hf = bert()
    replace_attention(hf, "softmax")
    child = hf.get_submodule("encoder.layer.0.attention.self.mixer_attention")
    assert child.weight_dropout == 0.1
    part = bert()
    replace_attention(part, predicate=lambda name, _: "layer.1." in name)
    left = part.get_submodule("encoder.layer.0.attention.self.mixer_attention")
    assert left.weight_dropout == 0.1


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


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MultiheadAttention(16, 2),
        lambda: nn.MultiheadAttention(16, 2, kdim=6, bias=False),
        lambda: Attention(16, num_heads=2),
    ],
    ids=["packed", "separate", "timm"],
)
@pytest.mark.filterwarnings("ignore:taken to be cross-attention")
def test_an_optimizer_made_before_still_holds_the_parameters(make: Callable) -> None:
    model = nn.ModuleDict({"attention": make()})
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


class Layer(nn.Module):
    """One attention of each kind whose projections are modules or parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.torch = nn.MultiheadAttention(16, 2, batch_first=True)
        self.timm = Attention(16, num_heads=2, qkv_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.timm(x)
        return self.torch(x, x, x, need_weights=False)[0]


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class LowRank(nn.Module):
    """As adapters do it: `weight` is that of the layer inside, the call is another."""

    def __init__(self, inside: Any) -> None:
        super().__init__()
        self.inside = inside
        self.more = nn.Linear(inside.in_features, inside.out_features)

    @property
    def weight(self) -> Tensor:
        return self.inside.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) + self.more(x)


def adapt(layer: Layer) -> None:
    for part in ("qkv", "proj"):
        layer.timm.register_module(part, LowRank(layer.timm.get_submodule(part)))


def parametrize_all(layer: Layer) -> None:
    for module in (layer.torch, layer.torch.out_proj, layer.timm.qkv, layer.timm.proj):
        for name, _ in list(module.named_parameters(recurse=False)):
            register_parametrization(module, name, Double())


def quantize(layer: Layer) -> None:
    for part in ("qkv", "proj"):
        given = nn.Sequential(layer.timm.get_submodule(part))
        layer.timm.register_module(part, quantize_dynamic(given, {nn.Linear})[0])


CHANGED: dict[str, Callable[[Layer], Any]] = {
    "pruned": lambda layer: [
        prune.random_unstructured(module, name, 0.5)
        for module, name in (
            (layer.torch, "in_proj_weight"),
            (layer.torch.out_proj, "weight"),
            (layer.timm.qkv, "weight"),
            (layer.timm.proj, "bias"),
        )
    ],
    "hooked-norm": lambda layer: [
        torch.nn.utils.spectral_norm(layer.torch, "in_proj_weight"),
        torch.nn.utils.weight_norm(layer.torch.out_proj),
        torch.nn.utils.weight_norm(layer.timm.qkv),
    ],
    "norm": lambda layer: [
        weight_norm(layer.torch, "in_proj_weight"),
        spectral_norm(layer.torch.out_proj),
        weight_norm(layer.timm.qkv),
    ],
    "parametrized": parametrize_all,
    "adapted": adapt,
    "quantized": quantize,
}


@pytest.mark.filterwarnings(
    "ignore:.*is deprecated:FutureWarning",
    "ignore::DeprecationWarning",
    "ignore:torch.quantize_per_tensor",
)
@pytest.mark.parametrize("change", CHANGED)
def test_the_weights_that_count_are_those_that_are_used(change: str) -> None:
    torch.manual_seed(1)
    layer, x = Layer().eval(), torch.randn(2, 9, 16)
    CHANGED[change](layer)
    layer(x)
    expected, parameters = layer(x), list(layer.parameters())
    assert replace_attention(layer, "softmax") == ["torch", "timm"]
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert replace_attention(layer, "flow") == ["torch", "timm"]
    assert not layer(x).allclose(expected, atol=1e-5)
    layer(x).square().sum().backward()
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    # A bias of keys has no gradient under softmax alone.
    assert all(each.grad is not None and each.grad.any() for each in parameters)


def test_parametrizations_can_be_removed_afterwards() -> None:
    layer, x = Layer().eval(), torch.randn(2, 9, 16)
    weight_norm(layer.torch, "in_proj_weight")
    prune.l1_unstructured(layer.torch.out_proj, "weight", 0.5)
    replace_attention(layer)
    expected = layer(x)
    remove_parametrizations(layer.torch, "in_proj_weight")
    prune.remove(layer.torch.out_proj, "weight")
    assert type(layer.torch) is MultiheadAttention
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(copy.deepcopy(layer)(x), expected)


def test_hooks_of_every_kind_stay() -> None:
    layer, calls = Layer(), []

    def note(what: str) -> Callable[..., None]:
        return lambda *_: calls.append(what)

    for module in (layer.torch, layer.timm):
        module.register_forward_pre_hook(note("before"))
        module.register_forward_hook(note("after"))
        module.register_full_backward_hook(note("gradient"))
        module.register_state_dict_post_hook(note("saved"))
        module.register_load_state_dict_post_hook(note("loaded"))
    replace_attention(layer)
    layer(torch.randn(2, 9, 16, requires_grad=True)).sum().backward()
    layer.load_state_dict(layer.state_dict())
    assert sorted(calls) == sorted(["before", "after", "gradient", "saved", "loaded"] * 2)


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize("what", ["model", "part", "in-place"])
def test_what_was_compiled_before_computes_with_the_new_attention(what: str) -> None:
    torch.manual_seed(1)
    torch.compiler.reset()
    layer, plain, x = Layer().eval(), Layer().eval(), torch.randn(2, 9, 16)
    plain.load_state_dict(layer.state_dict())
    model: Any = layer
    if what == "model":
        model = torch.compile(layer, backend="eager")
    elif what == "part":
        compiled: Any = torch.compile(layer.torch, backend="eager")
        layer.register_module("torch", compiled)
    else:
        layer.torch.compile(backend="eager")
    with torch.no_grad():
        model(x)
        replace_attention(model)
        replace_attention(plain)
        torch.testing.assert_close(model(x), plain(x))


def test_a_model_on_meta_stays_there_until_it_is_loaded() -> None:
    model, x = Layer().eval(), torch.randn(2, 9, 16)
    with torch.device("meta"):
        other = Layer().eval()
    replace_attention(model, "performer")
    replace_attention(other, "performer")
    assert all(each.is_meta for each in other.parameters())
    other.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert other(x).equal(model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_what_is_passed_over_is_said() -> None:
    class MyAttention(nn.MultiheadAttention):
        pass

    t5 = transformers.T5Config(vocab_size=31, d_model=16, d_ff=32, num_layers=1, num_heads=2)
    model = nn.ModuleDict(
        {
            "known": nn.MultiheadAttention(16, 2),
            "unsaid": nn.MultiheadAttention(16, 2),
            "mine": MyAttention(16, 2),
            "t5": transformers.T5EncoderModel(t5),
            "script": torch.jit.script(nn.MultiheadAttention(16, 2)),
        }
    )
    with pytest.warns(UserWarning, match="passed over") as caught:
        assert replace_attention(model, predicate=lambda name, _: name != "unsaid") == ["known"]
    (said,) = (str(each.message) for each in caught if each.category is UserWarning)
    assert "MyAttention (mine)" in said
    assert "T5Attention (t5.encoder.block.0.layer.0.SelfAttention)" in said
    assert "(script)" in said
    assert "unsaid" not in said


@pytest.mark.parametrize("mixer", ["performer", "linformer"])
def test_tensors_that_a_wrapper_would_not_know_of_are_refused(mixer: str) -> None:
    class FSDPModule(nn.Sequential):
        """As fully_shard makes them; a real one needs a group of processes."""

    options = {"max_length": 9} if mixer == "linformer" else {}
    model = FSDPModule(nn.MultiheadAttention(16, 2))
    with pytest.raises(ValueError, match=r"FSDPModule would not know of: exchange .* first"):
        replace_attention(model, mixer, options=options)
    assert replace_attention(model) == ["0"]


class TestRoles:
    """Who attends to what: the cross-attention of a decoder must show it no later query."""

    def leak(self, model: nn.Transformer) -> float:
        torch.manual_seed(2)
        source, target = torch.randn(1, 9, 16), torch.randn(1, 6, 16)
        changed = torch.cat((target[:, :5], target[:, 5:] + 10), 1)
        mask = nn.Transformer.generate_square_subsequent_mask(6)
        out, other = (model(source, each, tgt_mask=mask) for each in (target, changed))
        return float((out - other)[:, :5].detach().abs().max())

    def transformer(self) -> nn.Transformer:
        torch.manual_seed(1)
        return nn.Transformer(16, 2, 1, 1, 32, batch_first=True).eval()

    @pytest.mark.parametrize("mixer", ["flow", "nystromformer"])
    def test_a_decoders_cross_attention_that_would_leak_is_left_and_said(self, mixer: str) -> None:
        model = self.transformer()
        cross = model.get_submodule("decoder.layers.0.multihead_attn")
        causal = mixer == "flow"
        chosen = None if causal else (lambda name, _: "decoder.layers.0.self" not in name)
        with pytest.warns(
            UserWarning, match=r"left as it is: decoder\.layers\.0\.multihead_attn.*"
        ):
            names = replace_attention(model, mixer, predicate=chosen)
        assert names[0] == "encoder.layers.0.self_attn"
        assert type(cross) is nn.MultiheadAttention
        assert self.leak(model) < 1e-6
        assert replace_attention(model, "linear", predicate=lambda _, each: each is cross)
        assert self.leak(model) < 1e-6

    @pytest.mark.parametrize(
        ("mixer", "options"),
        [
            ("linear", {}),
            ("softmax", {}),
            ("flow", {"independent_sinks": True}),
            ("flow", {"competition": None, "allocation": False}),
        ],
    )
    def test_one_that_does_not_leak_is_exchanged(self, mixer: str, options: dict) -> None:
        model = self.transformer()
        names = replace_attention(model, mixer, options=options)
        assert "decoder.layers.0.multihead_attn" in names
        assert self.leak(model) < 1e-6

    def test_one_that_is_asked_for_is_refused_or_not_a_decoders(self) -> None:
        model = self.transformer()
        asked: Any = {"predicate": lambda name, _: name.endswith("multihead_attn")}
        for role in (None, lambda *_: "decoder-cross"):
            with pytest.raises(ValueError, match=r"independent_sinks=True, softmax, linear"):
                replace_attention(model, role=role, **asked)
        assert replace_attention(model, role=lambda *_: "cross", **asked)
        assert self.leak(model) > 1e-6  # for models that predict nothing from what comes before

    def test_attention_of_no_known_layer_is_self_attention_unless_it_looks_otherwise(self) -> None:
        class Block(nn.Module):
            def __init__(self, **attentions: nn.Module) -> None:
                super().__init__()
                for name, attention in attentions.items():
                    self.add_module(name, attention)

        def attention(**options: Any) -> nn.MultiheadAttention:
            return nn.MultiheadAttention(16, 2, batch_first=True, **options)

        model = nn.ModuleList(
            [
                Block(attention=attention()),
                Block(wide=attention(kdim=6), cross_attention=attention()),
                Block(self_attn=attention(), encoder_attn=attention()),
            ]
        )
        guessed = (
            r"taken to be cross-attention.*1\.wide, 1\.cross_attention\. Each output of 'flow'"
        )
        left = r"left as it is: 2\.encoder_attn, the cross-attention of an autoregressive decoder"
        with pytest.warns(UserWarning, match=guessed), pytest.warns(UserWarning, match=left):
            replace_attention(model)
        said = {name: each.role for name, each in model.named_modules() if hasattr(each, "role")}
        assert [name for name, role in said.items() if role == "self"] == [
            "0.attention",
            "2.self_attn",
        ]
        told = nn.ModuleDict({"perceiver": attention(), "other": attention()})
        replace_attention(told, role=lambda name, _: "cross" if name == "perceiver" else None)
        assert [each.role for each in told.values()] == ["cross", "self"]

    @pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
    def test_decoders_of_transformers(self, name: str) -> None:
        torch.manual_seed(1)
        options = {"num_hidden_layers": 1, "num_attention_heads": 2, **SMALL}
        options |= {"is_decoder": True, "add_cross_attention": True}
        made: dict[str, Callable[[], Any]] = {
            "bert": lambda: transformers.BertLMHeadModel(transformers.BertConfig(**options)),
            "roberta": lambda: transformers.RobertaForCausalLM(
                transformers.RobertaConfig(**options)
            ),
            "gpt2": lambda: gpt2(add_cross_attention=True),
        }
        model = made[name]().eval()
        changed = TOKENS.clone()
        changed[:, 7] = 5

        def leak() -> Tensor:
            memory = torch.linspace(-3, 3, 3 * 4 * 16).sin().view(3, 4, 16)
            call = {"encoder_hidden_states": memory, "use_cache": False}
            out, other = (model(ids, **call).logits for ids in (TOKENS, changed))
            return (out - other)[:, :7].abs().max()

        with pytest.warns(UserWarning, match=r"left as it is: .*crossattention"):
            names = replace_attention(model)
        assert names
        assert leak() < 1e-5
        assert any("crossattention" in each for each in replace_attention(model, "linear"))
        assert leak() < 1e-5


@pytest.fixture
def without_the_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers be as it is where `flowformer.integrations.transformers` is not imported."""
    kind: Any = transformers.PreTrainedModel
    for name in ("get_correct_attn_implementation", "post_init", "set_attn_implementation"):
        method = getattr(kind, name)
        monkeypatch.setattr(kind, name, getattr(method, "__wrapped__", method))


class TestSavedModels:
    @pytest.mark.parametrize("name", ["torch", "timm-vit"])
    def test_a_plain_model_does_not_take_the_state_dict_silently(self, name: str) -> None:
        make, run = MODELS[name]
        model, plain, same = (make().eval() for _ in range(3))
        before = plain.state_dict()
        replace_attention(model, "linear")
        with pytest.raises(RuntimeError, match=r"Unexpected key.*attention\.mixer_linear"):
            plain.load_state_dict(model.state_dict())
        replace_attention(same, "linear")
        same.load_state_dict(model.state_dict())
        torch.testing.assert_close(run(same), run(model))
        same.load_state_dict(before)  # what torch or timm saved is where one starts from
        flow = make().eval()
        replace_attention(flow, "flow")
        with pytest.raises(RuntimeError, match=r"Unexpected key.*attention\.mixer_linear"):
            flow.load_state_dict(model.state_dict())
        softmax = make().eval()
        replace_attention(softmax, "softmax")
        plain.load_state_dict(softmax.state_dict())  # it computes the same

    def test_state_dicts_of_the_layer_that_once_stood_in_timm_load(self) -> None:
        model = nn.Sequential(Attention(16, num_heads=2, qkv_bias=True)).eval()
        replace_attention(model, "performer")
        state = model.state_dict()
        old = {
            "0.mixer.attention." + name.removeprefix("0.attention."): each
            for name, each in state.items()
            if ".attention.features." in name
        }
        for part in ("weight", "bias"):
            for at, name in enumerate(("query", "key", "value")):
                old[f"0.mixer.{name}_projection.{part}"] = state[f"0.qkv.{part}"].chunk(3)[at]
            old[f"0.mixer.out_projection.{part}"] = state[f"0.proj.{part}"]
        other = nn.Sequential(Attention(16, num_heads=2, qkv_bias=True)).eval()
        replace_attention(other, "performer")
        other.load_state_dict(old)
        x = torch.randn(2, 9, 16)
        assert other(x).equal(model(x))

    @pytest.mark.usefixtures("without_the_integration")
    def test_transformers_refuses_it_by_name_or_becomes_it(self, tmp_path: Path) -> None:
        options = {"clamp": None}
        model: Any = bert().eval()
        replace_attention(model, options=options)
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"replace_attention\(model, 'flow', options={'clamp'"):
            transformers.AutoModel.from_pretrained(tmp_path)
        load: Any = transformers.AutoModel.from_pretrained
        told = load(tmp_path, attn_implementation="sdpa").eval()
        assert told.config.flowformer_attention == {"mixer": "flow", "options": options}
        replace_attention(told, **{**told.config.flowformer_attention})
        torch.testing.assert_close(of_tokens(told), of_tokens(model))
        told.load_state_dict(model.state_dict())
        fresh = transformers.AutoModel.from_config(model.config)
        with pytest.raises(RuntimeError, match=r"'flow'.*and this model is another one"):
            of_tokens(fresh)
        with pytest.raises(RuntimeError, match="mixer_flow"):
            bert().load_state_dict(model.state_dict())

    def test_a_configuration_tells_several_calls_apart(self) -> None:
        model: Any = bert()
        first, second = (f"encoder.layer.{at}.attention.self" for at in range(2))
        replace_attention(model, "flow", predicate=lambda name, _: name == first)
        replace_attention(model, "linear", predicate=lambda name, _: name == second)
        assert model.config.flowformer_attention == [
            {"mixer": "flow", "options": {}, "modules": [first]},
            {"mixer": "linear", "options": {}, "modules": [second]},
        ]
        expected = f"'flow', predicate=lambda name, _: name in ['{first}'])"
        assert expected in model.config.attn_implementation
        replace_attention(model, "linear")
        assert model.config.flowformer_attention == {"mixer": "linear", "options": {}}

    def test_a_model_of_softmax_is_saved_as_it_was(self, tmp_path: Path) -> None:
        model: Any = bert().eval()
        replace_attention(model)
        replace_attention(model, "softmax")
        model.save_pretrained(tmp_path)
        plain = transformers.AutoModel.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(of_tokens(plain), of_tokens(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixer", ["flow", "linear", "gated", "softmax"])
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

    def test_keys_that_are_added(self) -> None:
        for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
            with pytest.raises(ValueError, match="add_bias_kv and add_zero_attn must be False"):
                replace_attention(nn.Sequential(nn.MultiheadAttention(16, 2, **options)))

    @pytest.mark.parametrize("name", ["torch", "timm-vit", "bert"])
    @pytest.mark.parametrize("mixer", ["deltanet", "synthesizer"])
    def test_a_mixer_that_needs_more_than_heads(self, name: str, mixer: str) -> None:
        with pytest.raises(ValueError, match=rf"'{mixer}' does not fit.*Those that fit: flow,"):
            replace_attention(MODELS[name][0](), mixer)

    def test_a_role_that_there_is_not(self) -> None:
        role: Any = lambda *_: "both"  # noqa: E731
        with pytest.raises(ValueError, match=r"self, cross, decoder-cross or None, got \{'both'"):
            replace_attention(torch_encoder(), role=role)

    def test_masks_of_pairs_in_timm(self) -> None:
        model = nn.Sequential(Attention(16, num_heads=2))
        replace_attention(model)
        with pytest.raises(ValueError, match="attn_mask must be None"):
            model[0](torch.randn(1, 5, 16), attn_mask=torch.ones(5, 5, dtype=torch.bool))
