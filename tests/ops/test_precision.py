"""Half precision, long sequences, autocast: what is rounded, and what is not."""

import pytest
import torch

from flowformer import flow_attention
from tests.ops.cases import qkv

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
FORMS = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def rounding_error(out, exact):
    """Return the error of ``out``, in units of what rounding the exact result costs."""
    rounding = (exact.to(out.dtype).double() - exact).abs().max()
    return ((out.double() - exact).abs().max() / rounding).item()


@HALVES
@FORMS
@pytest.mark.parametrize("length", [1, 63, 500, 65_536], ids="t{}".format)
def test_half_precision_costs_at_most_twice_the_rounding_of_the_result(length, causal, dtype):
    # Values around 1, as large as they are in a network, so that the result is too: nothing may
    # overflow at 65,504, and the scaled query would be below half precision's normal range.
    inputs = [tensor.to(dtype) for tensor in qkv(1, length, heads=1, width=64, value_width=16)]
    exact = flow_attention(*(tensor.double() for tensor in inputs), causal=causal)
    out = flow_attention(*inputs, causal=causal)
    assert out.dtype == dtype
    assert out.isfinite().all()
    assert rounding_error(out, exact) <= 2


@HALVES
@FORMS
def test_half_precision_gradients_are_finite_and_close(causal, dtype):
    inputs = [tensor.to(dtype).requires_grad_() for tensor in qkv(1, 4100, width=64)]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    weight = torch.randn(1, 4100, 2, 6)
    grads = [
        torch.autograd.grad((flow_attention(*x, causal=causal) * weight.to(x[0])).sum(), x)
        for x in (inputs, wide)
    ]
    for grad, exact in zip(*grads, strict=True):
        scale = exact.abs().max()
        rounding = torch.finfo(dtype).eps
        assert ((grad.double() - exact).abs().max() / scale).item() <= 2 * rounding


@FORMS
def test_autocast_does_not_reach_the_arithmetic(causal):
    inputs = qkv(2, 200, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flow_attention(*inputs, causal=causal)
    assert torch.equal(out, flow_attention(*inputs, causal=causal))


@FORMS
def test_dtypes_may_differ_under_autocast(causal):
    q, k, v = qkv(2, 9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flow_attention(q, k.bfloat16(), v.bfloat16(), causal=causal)
    expected = flow_attention(q, k.bfloat16().float(), v.bfloat16().float(), causal=causal)
    assert torch.equal(out, expected)


def test_the_count_passes_the_integers_that_float32_holds():
    inputs = qkv(1, 1, dtype=torch.float32)
    _, state = flow_attention(*inputs, causal=True, return_state=True)
    state = state._replace(tokens=torch.tensor([2**24]))
    _, after = flow_attention(*inputs, causal=True, initial_state=state, return_state=True)
    assert after.tokens.item() == 2**24 + 1


@pytest.mark.parametrize("shape", [(2, 5, 1, 1), (1, 3, 2, 7), (0, 4, 2, 8)])
@FORMS
def test_any_head_width_and_an_empty_batch(shape, causal):
    batch, length, heads, width = shape
    out = flow_attention(
        *qkv(batch, length, heads=heads, width=width, value_width=3), causal=causal
    )
    assert out.shape == (batch, length, heads, 3)
    assert out.isfinite().all()
