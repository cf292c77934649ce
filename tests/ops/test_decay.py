"""Attention that forgets: golden values, the recurrence, and that no cut changes anything."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.export import Dim
from torch.testing import assert_close

from flowformer import (
    FlowState,
    LinearState,
    flow_attention,
    flow_attention_step,
    flow_map,
    linear_attention,
)
from flowformer.ops.state import of_heads
from tests.ops.cases import BACKENDS, CAUSAL, gradients, qkv
from tests.ops.test_causal import splits
from tests.ops.test_golden import relative_error, tolerance
from tests.ops.test_masks_and_packing import few, masks

GOLDEN = Path(__file__).parents[1] / "golden" / "gated"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "masked": {},
    "steep": {},  # up to exp(-60) a token
    "none": {},
    "noclamp": {"clamp": None},
    "nocompetition": {"competition": None},
    "noallocation": {"allocation": False},
}
FORMS: dict[str, dict[str, Any]] = {
    **CAUSAL,
    "linear": {"causal": True},
    "linear-normalized": {"causal": True, "normalize": True},
}
forms = pytest.mark.parametrize("name", FORMS)
backends = pytest.mark.parametrize("backend", BACKENDS)


def attend(name: str, *tensors: Tensor | None, **options: Any) -> Any:
    """Call the form of that name with query, key, value and log_decay."""
    *inputs, log_decay = tensors
    function: Any = linear_attention if name.startswith("linear") else flow_attention
    return function(*inputs, log_decay=log_decay, **FORMS[name], **options)


def draw(batch: int, length: int, *, rate: float = 0.2, **sizes: Any) -> tuple[Tensor, ...]:
    """Return query, key, value and decays; queries and keys are positive, as features are."""
    query, key, value = qkv(batch, length, **sizes)
    log_decay = -rate * torch.rand(query.shape[:3], dtype=query.dtype) ** 2
    return query.abs() + 0.1, key.abs() + 0.1, value, log_decay


def recurrence(*tensors: Tensor, normalize: bool = False) -> tuple[Tensor, Tensor]:
    q, k, v, log_decay = tensors
    if normalize:
        v = torch.cat((v, torch.ones_like(v[..., :1])), -1)
    state, outputs = torch.zeros_like(k[:, 0, :, :, None] * v[:, 0, :, None]), []
    for t in range(q.shape[1]):
        state = state * log_decay[:, t].exp()[..., None, None]
        state = state + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(torch.einsum("bhd,bhdm->bhm", q[:, t], state))
    out = torch.stack(outputs, 1)
    return (out[..., :-1] / out[..., -1:] if normalize else out), state


@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", NAMES)
def test_golden_values(golden, name, dtype, backend):
    values = golden(f"gated/{name}")
    names = ("q", "k", "v", "log_decay")
    inputs = [values[key].to(dtype).requires_grad_() for key in names]
    out = flow_attention(
        *inputs[:3],
        causal=True,
        log_decay=inputs[3],
        mask=values.get("mask"),
        backend=backend,
        **VARIANTS[name.split("-")[0]],
    )
    (out * values["w"].to(dtype)).sum().backward()
    assert relative_error(out, values["out"]) <= tolerance("causal", dtype)
    for key, tensor in zip(names, inputs, strict=True):
        expected = values[f"d{key}"]
        if not expected.any():  # of a single token, which has nothing to forget
            assert not tensor.grad.any()
        elif "-l1-" not in name or dtype == torch.float64 or key not in "qk":
            # Those of query and key cancel to the order of eps for a single token.
            assert relative_error(tensor.grad, expected) <= tolerance("causal", dtype), key


def test_every_golden_kind_is_covered():
    assert {name.split("-")[0] for name in NAMES} == {*VARIANTS}


@pytest.mark.parametrize("name", [name for name in NAMES if "mask" not in name])
def test_steps_give_the_golden_values(golden, name):
    values = golden(f"gated/{name}")
    tokens, state = [], None
    for t in range(values["q"].shape[1]):
        q, k, v, log_decay = (values[key][:, t : t + 1] for key in ("q", "k", "v", "log_decay"))
        options = VARIANTS[name.split("-")[0]]
        token, state = flow_attention_step(q, k, v, state, log_decay=log_decay, **options)
        tokens.append(token)
    assert relative_error(torch.cat(tokens, 1), values["out"]) <= 1e-9


@backends
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.1, 300.0], ids="{:g}".format)
@pytest.mark.parametrize("length", [1, 63, 150])
def test_linear_attention_is_the_recurrence(length, rate, normalize, backend):
    inputs = tuple(x.requires_grad_() for x in draw(2, length, rate=rate))
    scale = torch.rand(2, length, 2, dtype=torch.float64)
    expected, last = recurrence(*inputs, normalize=normalize)
    out, state = attend(
        "linear",
        *inputs,
        row_scale=scale,
        normalize=normalize,
        return_state=True,
        backend=backend,
    )
    assert_close(out, expected * scale[..., None], rtol=1e-10, atol=1e-12)
    assert_close(state.key_value, last, rtol=1e-10, atol=1e-12)
    for grad, wanted in zip(
        gradients(out, inputs), gradients(expected * scale[..., None], inputs), strict=True
    ):
        assert_close(grad, wanted, rtol=1e-9, atol=1e-11)


@backends
def test_a_steep_decay_keeps_its_digits_in_float32(backend):
    """A difference of running sums up to -25,000 would leave two digits of a slow decay."""
    q, k, v, log_decay = draw(1, 130, dtype=torch.float32, rate=400.0)
    log_decay[:, 65:] = -0.01
    out = attend("linear", q, k, v, log_decay, backend=backend)
    expected, _ = recurrence(*(x.double() for x in (q, k, v, log_decay)))
    assert relative_error(out, expected) < 1e-6


@backends
@forms
def test_without_decay_it_is_what_it_was(name, backend):
    *inputs, log_decay = draw(2, 150)
    zero = torch.zeros_like(log_decay)
    out, state = attend(name, *inputs, zero, backend=backend, return_state=True)
    plain, after = attend(name, *inputs, None, backend=backend, return_state=True)
    assert_close(out, plain, rtol=1e-12, atol=1e-14)
    if isinstance(after, FlowState):
        after = of_heads(after)
    for field, expected in zip(state, after, strict=True):
        assert_close(field, expected, rtol=1e-12, atol=1e-14)


@backends
@forms
@pytest.mark.parametrize("decay", [-torch.inf, -1e30, -800.0], ids="{:g}".format)
def test_what_is_forgotten_altogether_leaves_nothing_behind(name, decay, backend):
    inputs = draw(1, 100)
    inputs[3][:, 70] = decay
    whole = tuple(x.requires_grad_() for x in inputs)
    out = attend(name, *whole, backend=backend)
    alone = attend(name, *(x[:, 70:] for x in whole), backend=backend)
    assert_close(out[:, 70:], alone, rtol=1e-10, atol=1e-12)
    for grad in gradients(out, whole):
        assert grad.isfinite().all()


@backends
@forms
def test_no_token_sees_a_later_one_nor_what_is_not_finite_there(name, backend):
    inputs = draw(1, 100)
    out = attend(name, *inputs, backend=backend)
    for place in range(4):
        wild = [x.clone() for x in inputs]
        wild[place][:, 70] = torch.nan
        wild = tuple(x.requires_grad_() for x in wild)
        found = attend(name, *wild, backend=backend)
        assert_close(found[:, :70], out[:, :70], rtol=1e-12, atol=1e-14)
        assert found[:, 70].isnan().all()
        for grad in torch.autograd.grad(found[:, :70].sum(), wild):
            assert grad[:, :70].isfinite().all()
            assert not grad[:, 70:].any()


@backends
@forms
@given(split=splits(), padded=st.booleans())
def test_any_split_equals_one_call(name, backend, split, padded):
    torch.manual_seed(0)
    parts, length = split
    inputs = tuple(x.requires_grad_() for x in draw(2, length))
    mask = torch.rand(2, length) < 0.6 if padded else None
    out, state = attend(name, *inputs, mask=mask, return_state=True, backend=backend)
    pieces: list[Tensor] = []
    carried: Any = None
    for part in parts:
        piece, carried = attend(
            name,
            *(x[:, part] for x in inputs),
            mask=None if mask is None else mask[:, part],
            initial_state=carried,
            return_state=True,
            backend=backend,
        )
        pieces.append(piece)
    assert_close(torch.cat(pieces, 1), out, rtol=1e-9, atol=1e-12)
    for carried_field, field in zip(carried, state, strict=True):
        assert_close(carried_field, field, rtol=1e-9, atol=1e-12)
    for grad, expected in zip(
        gradients(torch.cat(pieces, 1), inputs), gradients(out, inputs), strict=True
    ):
        assert_close(grad, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("options", CAUSAL.values(), ids=CAUSAL)
def test_token_by_token_equals_one_call(options):
    inputs = draw(2, 80)
    out, state = flow_attention(*inputs[:3], log_decay=inputs[3], return_state=True, **options)
    options = {name: value for name, value in options.items() if name != "causal"}
    carried, tokens = None, []
    for t in range(80):
        q, k, v, log_decay = (x[:, t : t + 1] for x in inputs)
        token, carried = flow_attention_step(q, k, v, carried, log_decay=log_decay, **options)
        tokens.append(token)
    assert carried is not None
    for ours, expected in [(torch.cat(tokens, 1), out), *zip(carried, state, strict=True)]:
        assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@backends
@forms
@few
@given(mask=masks())
def test_a_padded_token_neither_adds_nor_decays(name, backend, mask):
    torch.manual_seed(0)
    inputs = draw(*mask.shape)
    garbage = tuple(
        x.masked_fill(~mask.view(*mask.shape, *[1] * (x.ndim - 2)), torch.nan).requires_grad_()
        for x in inputs
    )
    out, state = attend(name, *garbage, mask=mask, backend=backend, return_state=True)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), garbage)
    assert not out[~mask].any()
    assert not any(grad[~mask].any() for grad in grads)
    for row, real in enumerate(mask):
        if not real.any():
            continue
        alone = tuple(x[row, real][None].requires_grad_() for x in inputs)
        expected, after = attend(name, *alone, backend=backend, return_state=True)
        assert_close(out[row, real], expected[0], rtol=1e-9, atol=1e-12)
        for field, wanted in zip(state, after, strict=True):
            assert_close(field[row], wanted[0], rtol=1e-9, atol=1e-12)
        loss = (expected[0] * weight[row, real]).sum()
        for grad, wanted in zip(grads, torch.autograd.grad(loss, alone), strict=True):
            assert_close(grad[row, real], wanted[0], rtol=1e-8, atol=1e-11)


@backends
@forms
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@few
@given(lengths=st.lists(st.sampled_from([0, 1, 9, 13, 64, 70]), min_size=1, max_size=5))
def test_a_packed_sequence_forgets_within_its_borders(name, backend, reverse, lengths):
    lengths = lengths if sum(lengths) else [3]
    torch.manual_seed(0)
    inputs = tuple(x.requires_grad_() for x in draw(1, sum(lengths)))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    options: dict[str, Any] = {"backend": backend, "return_state": True, "reverse": reverse}
    _, before = attend(name, *draw(len(lengths), 5), **options)
    out, state = attend(name, *inputs, cu_seqlens=cu_seqlens, initial_state=before, **options)
    parts = []
    for row, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        after = own = before.reorder(torch.tensor([row]))
        if start < end:
            tokens = (x[:, start:end] for x in inputs)
            part, after = attend(name, *tokens, initial_state=own, **options)
            parts.append(part)
        for field, wanted in zip(state, after, strict=True):
            assert_close(field[row], wanted[0], rtol=1e-9, atol=1e-12)
    expected = torch.cat(parts, 1)
    assert_close(out, expected, rtol=1e-9, atol=1e-12)
    for grad, wanted in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        assert_close(grad, wanted, rtol=1e-8, atol=1e-11)


@backends
@forms
def test_grouped_heads_and_heads_first(name, backend):
    q, _, _, log_decay = draw(2, 70, heads=6)
    _, k, v, _ = draw(2, 70, heads=2)
    out = attend(name, q, k, v, log_decay, backend=backend)
    repeated = (x.repeat_interleave(3, 2) for x in (k, v))
    assert_close(out, attend(name, q, *repeated, log_decay, backend=backend), rtol=0, atol=0)
    turned = (x.transpose(1, 2) for x in (q, k, v, log_decay))
    first = attend(name, *turned, backend=backend, layout="bhtd")
    assert_close(first.transpose(1, 2), out, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@forms
def test_first_and_second_derivatives(name, backend):
    sizes = {"heads": 1, "width": 3, "value_width": 2}
    inputs = tuple(x.requires_grad_() for x in draw(1, 5, rate=1.0, **sizes))
    mask = torch.tensor([[True, True, False, True, True]])

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        out, state = attend(name, *tensors, mask=mask, backend=backend, return_state=True)
        return out, *(field for field in state if field.requires_grad)

    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@pytest.mark.parametrize("mask", [[False, True, True, True], [False] * 4], ids=["left", "empty"])
@pytest.mark.parametrize("name", ["causal", "linear-normalized"])
def test_second_derivatives_with_padding_and_outputs_left_out_of_the_loss(name, mask):
    inputs = tuple(x.requires_grad_() for x in draw(1, 4, heads=1, width=2, value_width=1))
    inputs[3].data[:, 2] = -400.0
    mask = torch.tensor([mask])
    assert gradgradcheck(lambda *x: attend(name, *x, mask=mask)[:, :2], inputs)


@pytest.mark.parametrize("decays", [False, True], ids=["plain", "decays"])
def test_second_derivatives_of_packed_linear_attention_are_those_of_each_sequence(decays):
    lengths = [1, 4, 3]  # padded to the longest, in PyTorch
    ends = torch.tensor([0, *lengths]).cumsum(0)
    tokens = draw(1, sum(lengths), heads=1, width=3, value_width=2)[: 4 if decays else 3]
    past = torch.randn(len(lengths), 1, 3, 2, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (*tokens, past)]

    def call(tokens: Any, past: Tensor, **options: Any) -> Any:
        log_decay = tokens[3] if decays else None
        options |= {"initial_state": LinearState(past), "return_state": True}
        out, state = attend("linear", *tokens[:3], log_decay, **options)
        return out, state.key_value

    parts = [
        call([x[:, start:end] for x in tokens], past[[row]], backend="reference")
        for row, (start, end) in enumerate(pairwise(ends.tolist()))
    ]
    alone = [torch.cat(each, 1 - i) for i, each in enumerate(zip(*parts, strict=True))]
    found = []
    for out, state in (call(tokens, past, cu_seqlens=ends), alone):
        loss = out.square().sum() + state.square().sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        total = torch.stack([grad.square().sum() for grad in first]).sum()
        found.append((*first, *torch.autograd.grad(total, inputs)))
    for grad, expected in zip(*found, strict=True):
        assert_close(grad, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["causal", "linear-normalized"])
def test_derivatives_across_chunks_and_segments(name, monkeypatch):
    monkeypatch.setattr("flowformer.ops.backends.chunked.CHUNK", 2)
    monkeypatch.setattr("flowformer.ops.backends.chunked.SEGMENT", 5)
    inputs = tuple(x.requires_grad_() for x in draw(1, 9, heads=1, width=2, value_width=2))
    assert gradcheck(lambda *tensors: attend(name, *tensors, backend="chunked"), inputs)


@forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_computes_in_float32(name, dtype):
    *inputs, log_decay = draw(2, 150, dtype=dtype)
    log_decay = log_decay.float()  # decays may be more exact than the tensors
    out, state = attend(name, *inputs, log_decay, return_state=True)
    wide = [x.double() for x in (*inputs, log_decay)]
    exact, after = attend(name, *wide, backend="reference", return_state=True)
    assert out.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert relative_error(out, exact) < max(eps, 2e-6)
    for field, wanted in zip(state, after, strict=True):
        assert_close(field, wanted, rtol=2e-5, atol=2e-5)


def test_the_state_counts_what_is_left_of_the_tokens_in_each_head():
    *inputs, log_decay = draw(2, 5)
    _, state = attend("causal", *inputs, log_decay, return_state=True)
    left = torch.zeros(2, 2, dtype=torch.float64)
    for t in range(5):
        left = left * log_decay[:, t].exp() + 1
    assert state.tokens.dtype == torch.float64
    assert_close(state.tokens, left)


@backends
def test_a_state_of_before_and_one_that_has_forgotten_go_on_in_every_call(backend):
    *inputs, log_decay = draw(2, 90)
    options: Any = {"causal": True, "return_state": True, "backend": backend}
    attend: Any = flow_attention
    head, middle, tail = slice(0, 30), slice(30, 60), slice(60, 90)
    _, state = attend(*(x[:, head] for x in inputs), **options)
    assert state.tokens.tolist() == [30, 30]
    decayed, state = attend(
        *(x[:, middle] for x in inputs),
        log_decay=log_decay[:, middle],
        initial_state=state,
        **options,
    )
    rest, state = attend(*(x[:, tail] for x in inputs), initial_state=state, **options)
    log_decay[:, head] = log_decay[:, tail] = 0
    expected, after = attend(*inputs, log_decay=log_decay, **options)
    assert_close(torch.cat((decayed, rest), 1), expected[:, 30:], rtol=1e-10, atol=1e-12)
    for field, wanted in zip(state, after, strict=True):
        assert_close(field, wanted, rtol=1e-10, atol=1e-12)


def test_a_state_is_saved_reordered_and_moved(tmp_path):
    inputs = draw(3, 20)
    _, state = attend("causal", *inputs, return_state=True)
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    beams = torch.tensor([2, 0])
    token = draw(2, 1)
    q, k, v, log_decay = token
    state = loaded.reorder(beams).to("cpu").detach()
    out, _ = flow_attention_step(q, k, v, state, log_decay=log_decay)
    both = [torch.cat((x[beams], y), 1) for x, y in zip(inputs, token, strict=True)]
    assert_close(out, attend("causal", *both)[:, -1:])


@pytest.mark.parametrize("options", CAUSAL.values(), ids=CAUSAL)
def test_the_flow_map_is_what_the_attention_uses(options):
    q, k, v, log_decay = draw(2, 70)
    competition, allocation = flow_map(q, k, log_decay=log_decay, **options)
    unweighed = {**options, "competition": None, "allocation": False, "log_decay": log_decay}
    out = flow_attention(q, k, v * competition[..., None], **unweighed) * allocation[..., None]
    assert_close(out, flow_attention(q, k, v, log_decay=log_decay, **options))


def test_every_sink_takes_in_one_of_what_is_still_remembered():
    """The conservation of docs/attention/math.md: Σ_s D_ts q_t·k_s / I_t = 1 but for ε."""
    q, k, v, log_decay = draw(1, 70)
    ones = torch.ones_like(v)
    out = attend("causal-no-competition", q, k, ones, log_decay, allocation=False)
    assert_close(out, ones, rtol=1e-4, atol=1e-4)


q, k, v, decay = draw(2, 6)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not-causal": ({"causal": False}, ValueError, "log_decay needs causal=True"),
    "shape": ({"log_decay": decay[..., :1]}, ValueError, r"= \[2, 6, 2\] on cpu, got \[2, 6, 1\]"),
    "device": ({"log_decay": decay.to("meta")}, ValueError, "on cpu, got .* on meta"),
    "positive": ({"log_decay": decay * 0 + 0.5}, ValueError, "at most 0, got 0.5"),
    "list": ({"log_decay": decay.tolist()}, TypeError, "floating-point tensor, got list"),
    "integer": ({"log_decay": decay.long()}, TypeError, "floating-point tensor, got torch.int64"),
}


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize("function", [flow_attention, linear_attention])
@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_decays(function, options, error, message):
    with pytest.raises(error, match=message):
        function(q, k, v, **{"causal": True, "log_decay": decay, **options})


def test_a_normalized_state_is_no_other():
    _, state = linear_attention(q, k, v, causal=True, return_state=True)
    with pytest.raises(ValueError, match=r"must be \[2, 2, 8, 7\] on cpu, got \[2, 2, 8, 6\]"):
        linear_attention(q, k, v, causal=True, normalize=True, initial_state=state)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_normalized_weights_sum_to_one(causal):
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    out = linear_attention(q, k, torch.ones_like(v), mask=mask, causal=causal, normalize=True)
    assert_close(out, mask[..., None, None].expand_as(out).double())
    nothing = linear_attention(q, k * 0, v, causal=causal, normalize=True)
    assert not nothing.any()


class Attention(nn.Module):
    def __init__(self, name: str, **options: Any) -> None:
        super().__init__()
        self.name, self.options = name, options

    def forward(self, query, key, value, log_decay, mask):
        return attend(self.name, query, key, value, log_decay, mask=mask, **self.options)


@pytest.mark.usefixtures("shape_checks_off")
class TestGraphs:
    @pytest.fixture(autouse=True)
    def _fresh_compiler(self):
        torch.compiler.reset()

    @backends
    @pytest.mark.parametrize("name", ["causal", "linear-normalized"])
    def test_compiles_to_one_graph(self, name, backend):
        model = Attention(name, backend=backend)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        inputs = tuple(x.requires_grad_() for x in draw(2, 70, dtype=torch.float32))
        mask = torch.rand(2, 70) < 0.7
        out, expected = compiled(*inputs, mask), model(*inputs, mask)
        assert_close(out, expected)
        for grad, wanted in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
            assert_close(grad, wanted, rtol=1e-4, atol=1e-5)

    def test_a_state_passes_through_one_graph(self):
        def run(q, k, v, log_decay):
            out, state = attend("causal", q, k, v, log_decay, return_state=True)
            q, k, v, log_decay = (x[:, -1:] for x in (q, k, v, log_decay))
            return out, *flow_attention_step(q, k, v, state, log_decay=log_decay)

        inputs = draw(2, 70)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        for out, expected in zip(compiled(*inputs), run(*inputs), strict=True):
            assert_close(out, expected)

    @pytest.mark.parametrize("name", ["causal", "linear-normalized"])
    def test_exports_a_program_for_any_length(self, name):
        model = Attention(name)
        example = draw(2, 320, dtype=torch.float32)
        chunks = 64 * Dim("chunks", min=2, max=2_000)
        program = torch.export.export(
            model,
            (*example, torch.ones(2, 320, dtype=torch.bool)),
            dynamic_shapes=({1: chunks},) * 5,
        )
        for length in (128, 1024):
            inputs = draw(2, length, dtype=torch.float32)
            mask = torch.rand(2, length) < 0.7
            assert_close(program.module()(*inputs, mask), model(*inputs, mask))

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
    @pytest.mark.parametrize("name", ["causal", "linear"])
    def test_functional_transforms(self, name):
        inputs = draw(3, 9)

        def loss(*tensors: Tensor) -> Tensor:
            return attend(name, *(x[None] for x in tensors)).square().sum()

        grads = torch.func.vmap(torch.func.grad(loss, argnums=3))(*inputs)
        for row in range(3):
            alone = tuple(x[row].clone().requires_grad_() for x in inputs)
            (expected,) = torch.autograd.grad(loss(*alone), alone[3:])
            assert_close(grads[row], expected)
        tangents = torch.randn_like(inputs[3])
        slope = torch.func.jvp(lambda g: attend(name, *inputs[:3], g), inputs[3:], (tangents,))[1]
        step = 1e-6 * tangents
        ends = [attend(name, *inputs[:3], (inputs[3] + s).clamp(max=0)) for s in (step, -step)]
        assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-5)
