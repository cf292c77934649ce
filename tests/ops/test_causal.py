"""The causal form: no future, and a state that makes any split equal to one call."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from flowformer import FlowState, flow_attention, flow_attention_step, linear_attention
from tests.ops.cases import BACKENDS, CAUSAL, gradients, qkv

causal_forms = pytest.mark.parametrize("options", CAUSAL.values(), ids=CAUSAL)
backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
@causal_forms
@given(cut=st.integers(0, 131))
def test_no_token_sees_a_later_one(options, backend, cut):
    torch.manual_seed(0)
    inputs = qkv(1, 132)
    out = flow_attention(*inputs, backend=backend, **options)
    changed = [tensor.clone() for tensor in inputs]
    for tensor in changed:
        tensor[:, cut + 1 :] = 50 * torch.randn_like(tensor[:, cut + 1 :])
    again = flow_attention(*changed, backend=backend, **options)
    assert_close(again[:, : cut + 1], out[:, : cut + 1], rtol=1e-12, atol=1e-14)


@backends
@causal_forms
def test_no_gradient_flows_from_an_output_to_a_later_input(options, backend):
    inputs = [tensor.requires_grad_() for tensor in qkv(2, 130)]
    out = flow_attention(*inputs, backend=backend, **options)
    for grad in torch.autograd.grad(out[:, 70].sum(), inputs):
        assert (grad[:, 71:] == 0).all()
        assert (grad[:, 70] != 0).any()


@st.composite
def splits(draw):
    length = draw(st.sampled_from([1, 2, 63, 64, 65, 150]))
    cuts = draw(st.lists(st.integers(0, length), max_size=4))
    bounds = [0, *sorted(set(cuts) - {0, length}), length]
    return [slice(start, end) for start, end in pairwise(bounds)], length


@backends
@causal_forms
@given(split=splits(), padded=st.booleans())
def test_any_split_equals_one_call(options, backend, split, padded):
    torch.manual_seed(0)
    parts, length = split
    inputs = tuple(tensor.requires_grad_() for tensor in qkv(2, length))
    mask = torch.rand(2, length) < 0.6 if padded else None
    options = {"backend": backend, **options}
    out, state = flow_attention(*inputs, mask=mask, return_state=True, **options)
    pieces, carried = [], None
    for part in parts:
        piece, carried = flow_attention(
            *(tensor[:, part] for tensor in inputs),
            mask=None if mask is None else mask[:, part],
            initial_state=carried,
            return_state=True,
            **options,
        )
        pieces.append(piece)
    pieces = torch.cat(pieces, 1)
    assert carried is not None
    assert_close(pieces, out, rtol=1e-9, atol=1e-12)
    for name, carried_field, field in zip(state._fields, carried, state, strict=True):
        assert_close(carried_field, field, rtol=1e-9, atol=1e-12, msg=name)
    for grad, expected in zip(gradients(pieces, inputs), gradients(out, inputs), strict=True):
        assert_close(grad, expected, rtol=1e-8, atol=1e-11)


@causal_forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_token_by_token_equals_one_call(options, dtype):
    inputs = qkv(2, 100, dtype=dtype)
    out, state = flow_attention(*inputs, return_state=True, **options)
    options = {name: value for name, value in options.items() if name != "causal"}
    carried, tokens = None, []
    for t in range(100):
        q, k, v = (tensor[:, t : t + 1] for tensor in inputs)
        token, carried = flow_attention_step(q, k, v, carried, **options)
        tokens.append(token)
    assert carried is not None
    # As for the golden values: relative to the largest value of the tensor.
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    for ours, expected in [(torch.cat(tokens, 1), out), *zip(carried, state, strict=True)]:
        assert_close(ours, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_a_prefill_may_be_continued_by_steps_and_by_the_other_backend():
    inputs = qkv(2, 90)
    out = flow_attention(*inputs, causal=True)
    start = [tensor[:, :70] for tensor in inputs]
    _, state = flow_attention(*start, causal=True, return_state=True)
    q, k, v = (tensor[:, 70:71] for tensor in inputs)
    step, state = flow_attention_step(q, k, v, state)
    rest, _ = flow_attention(
        *(tensor[:, 71:] for tensor in inputs),
        causal=True,
        initial_state=state,
        return_state=True,
        backend="reference",
    )
    assert_close(torch.cat([step, rest], 1), out[:, 70:], rtol=1e-9, atol=1e-12)


def test_packed_sequences_carry_one_state_each():
    lengths = [4, 0, 70, 9]
    inputs = qkv(1, sum(lengths))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    options: dict[str, Any] = {"causal": True, "cu_seqlens": cu_seqlens}
    _, state = flow_attention(*inputs, return_state=True, **options)
    assert state.tokens.tolist() == lengths
    again = qkv(1, sum(lengths))
    out = flow_attention(*again, initial_state=state, **options)
    for row, (start, end) in enumerate([(0, 4), (4, 4), (4, 74), (74, 83)]):
        if start == end:
            continue
        both = [
            torch.cat([a[:, start:end], b[:, start:end]], 1)
            for a, b in zip(inputs, again, strict=True)
        ]
        expected = flow_attention(*both, causal=True)[:, end - start :]
        assert_close(out[:, start:end], expected, rtol=1e-9, atol=1e-12, msg=f"row {row}")


def test_a_state_is_saved_reordered_moved_and_detached(tmp_path):
    inputs = qkv(3, 20)
    _, state = flow_attention(*inputs, causal=True, return_state=True)
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert isinstance(loaded, FlowState)
    beams = torch.tensor([2, 0, 0, 1])
    token = qkv(4, 1)
    out, _ = flow_attention_step(*token, loaded.reorder(beams).to("cpu").detach())
    for row, beam in enumerate(beams):
        sequence = [
            torch.cat([x[beam : beam + 1], y[row : row + 1]], 1)
            for x, y in zip(inputs, token, strict=True)
        ]
        assert_close(out[row, 0], flow_attention(*sequence, causal=True)[0, -1])


def test_each_field_of_the_first_state_is_a_buffer_of_its_own():
    state = FlowState.initial(1, 2, 3, 4, torch.device("cpu"))
    state.key_sum.add_(1)
    assert not state.query_sum.any()
    assert len({field.data_ptr() for field in state}) == len(state)


def test_a_state_moved_to_a_device_without_float64_is_carried_in_float32(monkeypatch):
    _, state = flow_attention(*qkv(1, 5), causal=True, return_state=True)
    monkeypatch.setattr("flowformer.ops.state.carry_dtype", lambda _: torch.float32)
    moved = state.to("cpu")
    assert moved.tokens.dtype == torch.int64
    assert {field.dtype for field in moved[1:]} == {torch.float32}


@pytest.mark.parametrize("causal", [False, True])
def test_shapes_can_be_inferred_without_data(causal):
    out = flow_attention(*(tensor.to("meta") for tensor in qkv(2, 70)), causal=causal)
    assert (out.shape, out.device.type) == ((2, 70, 2, 6), "meta")


def test_a_detached_state_cuts_the_gradient():
    inputs = tuple(tensor.requires_grad_() for tensor in qkv(1, 5))
    _, state = flow_attention(*inputs, causal=True, return_state=True)
    assert state.key_value.requires_grad
    assert not any(field.requires_grad for field in state.detach())


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that an operator returned."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("attend", [flow_attention, linear_attention], ids=["flow", "linear"])
def test_short_rows_form_no_sums_that_nobody_asks_for(attend):
    tensors = [torch.rand(3, 3, 2, 32) for _ in range(3)]
    with Largest() as largest:
        out = attend(*tensors, causal=True, backend="chunked")
    assert largest.numbers < 3 * 2 * 32 * 32
    whole, _ = attend(*tensors, causal=True, backend="chunked", return_state=True)
    assert_close(out, whole, rtol=0, atol=0)


def test_state_size_does_not_depend_on_the_length():
    d, m, h = 8, 6, 2
    for length in (1, 500):
        _, state = flow_attention(*qkv(1, length), causal=True, return_state=True)
        assert sum(field.numel() for field in state) == h * (d * m + 4 * d + 1) + 1


@backends
@given(split=splits())
def test_linear_attention_splits_too(backend, split):
    torch.manual_seed(0)
    parts, length = split
    q, k, v = qkv(2, length)
    scale = torch.rand(2, length, 2, dtype=torch.float64)
    options: dict[str, Any] = {"causal": True, "backend": backend}
    out, state = linear_attention(q, k, v, row_scale=scale, return_state=True, **options)
    expected = torch.einsum("blhd,bshd,bshm->blshm", q, k, v) * scale[:, :, None, :, None]
    visible = torch.ones(length, length, dtype=torch.bool).tril()[None, :, :, None, None]
    assert_close(out, torch.where(visible, expected, 0).sum(2), rtol=1e-9, atol=1e-10)
    carried, pieces = None, []
    for part in parts:
        piece, carried = linear_attention(
            q[:, part],
            k[:, part],
            v[:, part],
            row_scale=scale[:, part],
            initial_state=carried,
            return_state=True,
            **options,
        )
        pieces.append(piece)
    assert_close(torch.cat(pieces, 1), out, rtol=1e-9, atol=1e-10)
    assert carried is not None
    assert_close(carried.key_value, state.key_value, rtol=1e-9, atol=1e-10)


def attend_linear(q, k, v, **options):
    scale = q.sigmoid().sum(-1)  # finite, but for NaN
    return linear_attention(q, k, v, row_scale=scale, causal=True, **options)


def attend_flow(q, k, v, **options):
    return flow_attention(q, k, v, causal=True, **options)


def attend_relu(q, k, v, **options):
    return flow_attention(q, k, v, causal=True, feature_map="relu", clamp=None, **options)


not_finite = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
spoilt = pytest.mark.parametrize("where", [0, 1, 2], ids=["query", "key", "value"])
operators = pytest.mark.parametrize("attend", [attend_flow, attend_relu, attend_linear])


@backends
@operators
@spoilt
@not_finite
def test_what_is_not_finite_reaches_no_earlier_output_nor_its_gradient(
    attend, where, value, backend
):
    inputs = qkv(2, 70)
    wild = [x.clone() for x in inputs]
    wild[where][1, 66, 0, 3] = value  # in the second chunk, of which one token is earlier
    runs = []
    for tensors in (inputs, wild):
        leaves = [x.requires_grad_() for x in tensors]
        out = attend(*leaves, backend=backend)
        grads = torch.autograd.grad(out[1, :66].square().sum(), leaves, create_graph=True)
        slopes = torch.stack([x[1, :66].square().sum() for x in grads])
        second = torch.autograd.grad(slopes.sum(), leaves)
        runs.append((out, *grads, *second))
    for clean, found in zip(*runs, strict=True):
        assert_close(found[1, :66], clean[1, :66])
        assert_close(found[0], clean[0])
        assert_close(found[1, :, 1], clean[1, :, 1])  # the other head
    with torch.no_grad():
        alone = attend(*wild, backend=backend)
    assert_close(alone[1, :66], runs[0][0][1, :66].detach())
    assert torch.equal(alone.isfinite(), runs[1][0].isfinite())
    is_harmless = attend is attend_flow and where < 2 and value is not torch.nan
    is_harmless |= attend is attend_relu and where < 2 and value == -torch.inf
    assert alone[1, 66, 0].isfinite().all() == is_harmless


@backends
@operators
@spoilt
def test_nan_stays_in_its_packed_sequence_and_in_the_state(attend, where, backend):
    inputs = [x.requires_grad_() for x in qkv(1, 30)]
    offsets = torch.tensor([0, 5, 5, 20, 30])
    out, state = attend(*inputs, backend=backend, cu_seqlens=offsets, return_state=True)
    wild = [x.detach().clone() for x in inputs]
    wild[where][0, 9, 1] = torch.nan
    wild = [x.requires_grad_() for x in wild]
    found, after = attend(*wild, backend=backend, cu_seqlens=offsets, return_state=True)
    earlier = [*range(9), *range(20, 30)]
    assert_close(found[:, earlier], out[:, earlier])
    assert found[0, 9, 1].isnan().all()
    spoilt_state = where > 0 or attend is not attend_linear  # a query passes by there
    assert found[0, 19, 1].isnan().all() == spoilt_state
    assert after.key_value[2, 1].isnan().all() == spoilt_state
    for row in (0, 1, 3):
        assert_close(after.key_value[row], state.key_value[row])
    for x, y in zip(
        torch.autograd.grad(found[:, earlier].sum(), wild),
        torch.autograd.grad(out[:, earlier].sum(), inputs),
        strict=True,
    ):
        assert_close(x[:, earlier], y[:, earlier])
