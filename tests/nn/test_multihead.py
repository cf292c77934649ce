"""The stand-in for nn.MultiheadAttention; torch's own module is the oracle."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowformer.nn.mixers.building import MixerRecord
from flowformer.nn.multihead import ROLES, MultiheadAttention
from flowformer.nn.replace import replace_attention
from flowformer.ops import flow_attention

DIM, HEADS = 16, 4


def pair(**options: Any) -> tuple[nn.MultiheadAttention, MultiheadAttention]:
    """torch's module and ours with softmax, with the same parameters."""
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(DIM, HEADS, dtype=torch.float64, **options)
    ours = MultiheadAttention(DIM, HEADS, dtype=torch.float64, mixer="softmax", **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def same(ours: tuple[Tensor, Tensor | None], theirs: tuple[Tensor, Tensor | None]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@pytest.mark.parametrize("average", [False, True], ids=["each-head", "mean-head"])
class TestSoftmaxEqualsTorch:
    def test_self_attention(self, batch_first: bool, average: bool) -> None:
        theirs, ours = pair(batch_first=batch_first)
        x = draw(3, 5, DIM)
        same(
            ours(x, x, x, average_attn_weights=average),
            theirs(x, x, x, average_attn_weights=average),
        )

    def test_cross_attention_with_padded_keys(self, batch_first: bool, average: bool) -> None:
        theirs, ours = pair(batch_first=batch_first, kdim=6, vdim=7)
        query = draw(3, 5, DIM)
        key, value = (draw(*((3, 8) if batch_first else (8, 5)), width) for width in (6, 7))
        if not batch_first:
            query = draw(3, 5, DIM)
        padding = torch.zeros(3 if batch_first else 5, 8, dtype=torch.bool)
        padding[0, 3:], padding[1, :2] = True, True
        call = {"key_padding_mask": padding, "average_attn_weights": average}
        same(ours(query, key, value, **call), theirs(query, key, value, **call))

    def test_one_sequence_without_a_batch(self, batch_first: bool, average: bool) -> None:
        theirs, ours = pair(batch_first=batch_first)
        query, key = draw(3, DIM), draw(8, DIM)
        padding = torch.arange(8) > 4
        call = {"key_padding_mask": padding, "average_attn_weights": average}
        same(ours(query, key, key, **call), theirs(query, key, key, **call))

    def test_causal_mask_of_either_kind(self, batch_first: bool, average: bool) -> None:
        theirs, ours = pair(batch_first=batch_first)
        x = draw(6, 6, DIM)
        as_float = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
        for mask in (as_float, as_float.isneginf(), as_float.expand(6 * HEADS, 6, 6)):
            call = {"attn_mask": mask, "average_attn_weights": average}
            expected = theirs(x, x, x, **call)
            same(ours(x, x, x, **call), expected)
            same(ours(x, x, x, is_causal=True, average_attn_weights=average), expected)


def test_without_bias_and_without_weights() -> None:
    theirs, ours = pair(bias=False, batch_first=True)
    x = draw(3, 5, DIM)
    same(ours(x, x, x, need_weights=False), theirs(x, x, x, need_weights=False))


def test_a_mask_that_hides_nothing_is_no_mask() -> None:
    _, ours = pair(batch_first=True)
    x = draw(3, 5, DIM)
    same(ours(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.bool)), ours(x, x, x))
    linformer = MultiheadAttention(DIM, HEADS, mixer="linformer", max_length=1)  # not causal
    token = torch.randn(1, 3, DIM)
    same(
        linformer(token, token, token, attn_mask=torch.zeros(1, 1)), linformer(token, token, token)
    )


def test_float_padding_equals_boolean_padding() -> None:
    ours = MultiheadAttention(DIM, HEADS, batch_first=True).double()
    x, padding = draw(3, 5, DIM), torch.arange(5).expand(3, 5) > 2
    as_float = torch.zeros(3, 5).masked_fill(padding, -torch.inf)
    same(ours(x, x, x, key_padding_mask=as_float), ours(x, x, x, key_padding_mask=padding))


def test_initial_parameters_are_torchs() -> None:
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(DIM, HEADS)
    torch.manual_seed(3)
    ours = MultiheadAttention(DIM, HEADS)
    for name, value in theirs.state_dict().items():
        assert ours.state_dict()[name].equal(value), name
    ours.load_state_dict(theirs.state_dict())
    softmax = MultiheadAttention(DIM, HEADS, mixer="softmax")
    theirs.load_state_dict(softmax.state_dict())


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_flow_weights_times_values_are_the_output(causal: bool, padded: bool) -> None:
    ours = MultiheadAttention(DIM, HEADS, batch_first=True).double()
    x = draw(3, 9, DIM)
    padding = torch.arange(9).expand(3, 9) > torch.tensor([[8], [4], [-1]]) if padded else None
    out, weights = ours(
        x, x, x, key_padding_mask=padding, is_causal=causal, average_attn_weights=False
    )
    assert weights is not None
    projected = nn.functional.linear(x, ours.in_proj_weight, ours.in_proj_bias)
    v = projected[..., 2 * DIM :]
    mixed = torch.einsum("bhls,bshm->blhm", weights, v.view(3, 9, HEADS, -1)).flatten(2)
    expected = ours.out_proj(mixed)
    if padding is not None:
        expected = expected.masked_fill(padding[..., None], 0)
        assert not weights.masked_select(padding[:, None, None, :]).any()
    torch.testing.assert_close(out, expected)
    if causal:
        assert not weights.triu(1).any()


def test_the_role_decides_what_the_mask_means_and_no_identity_of_tensors() -> None:
    query, value, padding = draw(1, 9, DIM), draw(1, 9, DIM), torch.arange(9)[None] > 5
    ours = MultiheadAttention(DIM, HEADS, batch_first=True).double()
    cross = MultiheadAttention(DIM, HEADS, batch_first=True, role="cross").double()
    cross.load_state_dict(ours.state_dict())
    alone, _ = ours(query[:, :6], query[:, :6], value[:, :6], need_weights=False)
    context, _ = cross(query, query[:, :6], value[:, :6], need_weights=False)
    for key in (query, query.clone()):
        out, _ = ours(query, key, value, padding, need_weights=False)
        torch.testing.assert_close(out[:, :6], alone)
        assert not out[:, 6:].any()
        out, _ = cross(query, key, value, padding, need_weights=False)
        torch.testing.assert_close(out, context)


@pytest.mark.parametrize("mixer", ["softmax", "linear"])
def test_where_outputs_depend_on_no_other_query_padded_queries_are_as_in_torch(mixer: str) -> None:
    x, memory, padding = draw(2, 5, DIM), draw(2, 5, DIM), torch.arange(5).expand(2, 5) > 2
    outs = [
        MultiheadAttention(DIM, HEADS, batch_first=True, mixer=mixer, role=role).double()
        for role in ROLES
    ]
    for each in outs[1:]:
        each.load_state_dict(outs[0].state_dict())
    for each in outs[1:]:
        same(each(x, memory, memory, padding), outs[0](x, memory, memory, padding))


def through_checkpoint(layer: nn.Module, x: Tensor, padding: Tensor) -> Tensor:
    def run(x: Tensor) -> Tensor:
        return layer(x, src_key_padding_mask=padding)

    return checkpoint(run, x.requires_grad_(), use_reentrant=True)


def through_trace(layer: nn.Module, x: Tensor, padding: Tensor) -> Tensor:
    call = {"src": x.detach(), "src_key_padding_mask": padding}
    traced: Any = torch.jit.trace(layer, example_kwarg_inputs=call, check_trace=False)
    return traced(**call)


def through_vmap(layer: nn.Module, x: Tensor, padding: Tensor) -> Tensor:
    def run(x: Tensor, padding: Tensor) -> Tensor:
        return layer(x[None], src_key_padding_mask=padding[None])[0]

    return torch.vmap(run)(x, padding)


def through_separate_tensors(layer: Any, x: Tensor, padding: Tensor) -> Tensor:
    """As mixed precision of FSDP2 does, which casts each argument of a module."""

    def separate(_module: nn.Module, inputs: tuple[Tensor, ...], call: dict) -> tuple[Any, dict]:
        return tuple(each.clone() for each in inputs), call

    handle = layer.self_attn.register_forward_pre_hook(separate, with_kwargs=True)
    out = layer(x, src_key_padding_mask=padding)
    handle.remove()
    return out


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
@pytest.mark.parametrize(
    "through",
    [through_checkpoint, through_trace, through_vmap, through_separate_tensors],
    ids=["checkpoint", "trace", "vmap", "separate"],
)
@pytest.mark.parametrize("mixer", ["flow", "mobile"])
def test_what_hands_on_other_tensors_changes_no_number_of_a_padded_batch(
    through: Callable[[nn.Module, Tensor, Tensor], Tensor], mixer: str
) -> None:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.0, batch_first=True).double()
    replace_attention(layer, mixer)
    x, real = draw(3, 7, DIM), ~PADDING
    gradients = []
    for run in (lambda *each: layer(each[1], src_key_padding_mask=each[2]), through):
        layer.zero_grad()
        out = run(layer, x, PADDING)[real]
        out.square().sum().backward()
        gradients.append((out, [each.grad for each in layer.parameters()]))
    torch.testing.assert_close(*gradients)


def test_other_lengths_are_cross_attention_which_the_role_must_say_of_a_mask() -> None:
    ours = MultiheadAttention(DIM, HEADS, batch_first=True)
    query, key = torch.randn(1, 3, DIM), torch.randn(1, 5, DIM)
    with pytest.raises(ValueError, match=r"3 queries attend to 5 keys.*role='cross'"):
        ours(query, key, key, torch.zeros(1, 5, dtype=torch.bool))
    with pytest.warns(UserWarning, match=r"role='decoder-cross', for each output of FlowAttention"):
        unsaid, _ = ours(query, key, key)
    cross = MultiheadAttention(DIM, HEADS, batch_first=True, role="cross")
    cross.load_state_dict(ours.state_dict())
    torch.testing.assert_close(cross(query, key, key)[0], unsaid)


def test_the_cross_attention_of_a_decoder_takes_what_shows_it_no_other_query() -> None:
    query, key = torch.randn(1, 3, DIM), torch.randn(1, 5, DIM)
    free: dict[str, dict[str, Any]] = {"linear": {}, "flow": {"independent_sinks": True}}
    for mixer, options in free.items():
        layer = MultiheadAttention(
            DIM, HEADS, batch_first=True, mixer=mixer, role="decoder-cross", mixer_options=options
        )
        first, _ = layer(query[:, :1], key, key)
        torch.testing.assert_close(layer(query, key, key)[0][:, :1], first)
    for mixer in ("flow", "nystromformer", "mobile"):
        with pytest.raises(ValueError, match=r"independent_sinks=True, softmax, linear"):
            MultiheadAttention(DIM, HEADS, mixer=mixer, role="decoder-cross")


def test_a_state_dict_names_its_mixer_and_loads_where_it_fits() -> None:
    ours = MultiheadAttention(DIM, HEADS)
    state = ours.state_dict()
    torchs = nn.MultiheadAttention(DIM, HEADS)
    with pytest.raises(
        RuntimeError, match=r'Unexpected key.* "attention\.mixer_flow\._extra_state"'
    ):
        torchs.load_state_dict(state)
    torchs.load_state_dict(state, strict=False)
    ours.load_state_dict(torchs.state_dict())
    MultiheadAttention(
        DIM, HEADS, mixer_options={"clamp": 1.0, "backend": "chunked"}
    ).load_state_dict(state)
    with pytest.raises(RuntimeError, match="mixer_flow"):
        MultiheadAttention(DIM, HEADS, mixer="linear").load_state_dict(state)
    other = MultiheadAttention(DIM, HEADS, mixer_options={"clamp": None})
    with pytest.raises(
        RuntimeError, match=r'expected .*"clamp": null.*, got .*"clamp": 1\.0.*take'
    ):
        other.load_state_dict(state)
    record = MixerRecord("flow", {"clamp": 1.0}, {"clamp": 1})
    record.set_extra_state(MixerRecord("flow", {"clamp": 1.0}, {}).get_extra_state())
    for changed in (
        {name: each.half() for name, each in state.items()},
        {name: (each + each + each) / 3 for name, each in state.items()},
        {name: each.to("meta") for name, each in state.items()},
    ):
        MultiheadAttention(DIM, HEADS).load_state_dict(changed, assign=True)
    with torch.device("meta"):
        assert not ours.state_dict()["attention.mixer_flow._extra_state"].is_meta
    old = {name: each for name, each in state.items() if "_extra_state" not in name}
    assert len(old) == len(state) - 1
    ours.load_state_dict(old)


def test_flow_output_is_flow_attention_of_the_projections() -> None:
    ours = MultiheadAttention(DIM, HEADS, batch_first=True, mixer_options={"clamp": None}).double()
    x, padding = draw(3, 9, DIM), torch.arange(9).expand(3, 9) > 6
    projected = nn.functional.linear(x, ours.in_proj_weight, ours.in_proj_bias)
    q, k, v = projected.view(3, 9, 3, HEADS, -1).unbind(2)
    out = flow_attention(q, k, v, clamp=None, mask=~padding)
    assert isinstance(out, Tensor)
    expected = ours.out_proj(out.flatten(2)).masked_fill(padding[..., None], 0)
    torch.testing.assert_close(ours(x, x, x, padding, need_weights=False)[0], expected)


def encoder(mixer: str, **options: Any) -> tuple[nn.TransformerEncoder, nn.TransformerEncoder]:
    """torch's encoder and the same with its attention exchanged, one name changed in each layer."""
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True, **options)
    theirs = nn.TransformerEncoder(layer, 2)
    exchanged = copy.deepcopy(layer)
    attention = MultiheadAttention(DIM, HEADS, batch_first=True, mixer=mixer)
    exchanged.register_module("self_attn", attention)
    ours = nn.TransformerEncoder(exchanged, 2)
    ours.load_state_dict(theirs.state_dict())
    return theirs.double().eval(), ours.double().eval()


@contextmanager
def fast_path_off() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


PADDING = torch.tensor([[False] * 7, [False] * 4 + [True] * 3, [False] * 6 + [True]])


# torch nests the batch itself and then warns that it does; so it does with its own attention.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("gradients", [False, True], ids=["no-grad", "grad"])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["full", "padded"])
def test_encoder_layers_run_the_attention_they_were_given(
    gradients: bool, padding: Tensor | None
) -> None:
    """In evaluation torch would bypass it, and would nest a padded batch."""
    theirs, ours = encoder("softmax")
    _, flow = encoder("flow")
    x = draw(3, 7, DIM)
    real = torch.ones(3, 7, dtype=torch.bool) if padding is None else ~padding
    with torch.set_grad_enabled(gradients), fast_path_off():
        expected = theirs(x, src_key_padding_mask=padding)[real]
        expected_flow = flow(x, src_key_padding_mask=padding)[real]
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(ours(x, src_key_padding_mask=padding)[real], expected)
        out = flow(x, src_key_padding_mask=padding)[real]
    torch.testing.assert_close(out, expected_flow)
    assert not out.allclose(expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_an_encoder_layer_takes_jagged_nested_tensors() -> None:
    _, flow = encoder("flow", dropout=0.0)
    flow.train()
    rows = [draw(4, DIM).requires_grad_(), draw(7, DIM).requires_grad_()]
    out = flow(torch.nested.as_nested_tensor(rows, layout=torch.jagged))
    assert out.layout is torch.jagged
    alone = [flow(row[None])[0] for row in rows]
    torch.testing.assert_close(list(out.unbind()), alone)
    gradients = torch.autograd.grad(out.values().sum(), rows)
    torch.testing.assert_close(gradients, torch.autograd.grad(torch.cat(alone).sum(), rows))


def test_encoder_trains_with_a_causal_mask() -> None:
    _, ours = encoder("flow", dropout=0.0)
    x = draw(3, 7, DIM)
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    ours.train()(x, mask=mask, is_causal=True).square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in ours.parameters())
    changed = torch.cat((x[:, :5], draw(3, 2, DIM)), 1)
    torch.testing.assert_close(ours(changed, mask=mask)[:, :5], ours(x, mask=mask)[:, :5])


def test_can_be_copied_and_pickled() -> None:
    ours = MultiheadAttention(DIM, HEADS, batch_first=True).double()
    x = draw(3, 5, DIM)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        same(other(x, x, x), ours(x, x, x))


def test_dropout_acts_on_the_output_of_flow_in_training() -> None:
    ours = MultiheadAttention(DIM, HEADS, dropout=0.5, batch_first=True).double()
    x = draw(3, 50, DIM)
    assert 0.4 < (ours(x, x, x)[0] == 0).double().mean() < 0.6
    assert (ours.eval()(x, x, x)[0] != 0).all()


@pytest.mark.usefixtures("shape_checks_off")
def test_compiles_without_a_graph_break() -> None:
    ours = MultiheadAttention(DIM, HEADS, batch_first=True)
    x = torch.randn(3, 7, DIM)
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    call = {"key_padding_mask": PADDING, "need_weights": False, "is_causal": True}
    torch.testing.assert_close(compiled(x, x, x, **call)[0], ours(x, x, x, **call)[0])


class TestRefusals:
    @pytest.mark.usefixtures("shape_checks_off")
    @pytest.mark.parametrize("sizes", [{}, {"kdim": 5}])
    def test_inputs_of_another_width_or_kind(self, sizes: dict[str, Any]) -> None:
        layer = MultiheadAttention(DIM, HEADS, batch_first=True, **sizes)
        x, narrow = torch.randn(2, 9, DIM), torch.randn(2, 9, DIM - 1)
        with pytest.raises(ValueError, match=r"^query must be \[batch, time, 16\], .*\[2, 9, 15\]"):
            layer(narrow, x, x, need_weights=False)
        width = sizes.get("kdim", DIM)
        with pytest.raises(ValueError, match=rf"^key must be \[batch, time, {width}\], .*9, 15\]"):
            layer(x, narrow, x, need_weights=False)
        with pytest.raises(TypeError, match=r"^value must be a tensor, got ndarray"):
            layer(x, torch.randn(2, 9, width), x.numpy(), need_weights=False)

    def test_heads_must_divide_the_width(self) -> None:
        with pytest.raises(ValueError, match="embed_dim=10 and num_heads=4"):
            MultiheadAttention(10, 4)

    @pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
    def test_added_keys(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be False"):
            MultiheadAttention(DIM, HEADS, **options)

    def test_unknown_mixer(self) -> None:
        with pytest.raises(ValueError, match=r"'flwo': did you mean flow\? expected one of flow"):
            MultiheadAttention(DIM, HEADS, mixer="flwo")

    @pytest.mark.usefixtures("shape_checks_off")
    def test_unknown_role(self) -> None:
        with pytest.raises(ValueError, match="'self', 'cross', 'decoder-cross', got 'both'"):
            MultiheadAttention(DIM, HEADS, role="both")  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("mixer", ["deltanet", "gla", "longformer", "soft", "synthesizer"])
    def test_a_mixer_that_needs_more_than_heads(self, mixer: str) -> None:
        with pytest.raises(ValueError, match=r"does not fit.*hidden states.*Those that fit: flow,"):
            MultiheadAttention(DIM, HEADS, mixer=mixer)

    def test_unknown_option(self) -> None:
        with pytest.raises(ValueError, match=r"'flow' has no option rank; it takes .*clamp"):
            MultiheadAttention(DIM, HEADS, mixer_options={"rank": 4})

    def test_a_fixed_length_that_is_not_given(self) -> None:
        with pytest.raises(ValueError, match=r"LinformerAttention .* give max_length"):
            MultiheadAttention(DIM, HEADS, mixer="linformer")

    @pytest.mark.parametrize(
        "mask",
        [torch.eye(5).bool(), torch.ones(5, 5), torch.full((5, 5), -torch.inf).tril(-1)],
        ids=["diagonal", "bias", "past"],
    )
    def test_attention_masks_other_than_the_causal(self, mask: Tensor) -> None:
        x = torch.randn(2, 5, DIM)
        with pytest.raises(ValueError, match="None or the causal mask"):
            MultiheadAttention(DIM, HEADS, batch_first=True)(x, x, x, attn_mask=mask)

    def test_padding_masks_that_are_weights(self) -> None:
        x = torch.randn(2, 5, DIM)
        mask = torch.linspace(-1, 0, 5).expand(2, 5)
        with pytest.raises(ValueError, match=r"0 at real tokens and -inf at padding.*\[-1, 0\]"):
            MultiheadAttention(DIM, HEADS, batch_first=True)(x, x, x, mask)

    def test_causal_linformer(self) -> None:
        x = torch.randn(2, 5, DIM)
        layer = MultiheadAttention(DIM, HEADS, batch_first=True, mixer="linformer", max_length=9)
        with pytest.raises(NotImplementedError, match="no causal form"):
            layer(x, x, x, is_causal=True)
