"""Padding, packing and grouping change nothing: each sequence gets what it would get alone."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flowformer import flow_attention, linear_attention, mobile_attention
from tests.ops.cases import BACKENDS, FORMS, qkv


def run(name, query, key, value, **options):
    """Call an attention by name: a form of flow_attention, or one of its relatives."""
    if name == "mobile":
        return mobile_attention(query, key, value, **options)
    if name.startswith("linear"):
        return linear_attention(query, key, value, causal=name == "linear-causal", **options)
    return flow_attention(query, key, value, **FORMS[name], **options)


NAMES = [*FORMS, "mobile", "linear", "linear-causal"]
few = settings(max_examples=5)  # of each of many forms and backends


@st.composite
def masks(draw):
    """Return [rows, time] with real tokens anywhere, rows without any included."""
    rows, length = draw(st.integers(1, 3)), draw(st.sampled_from([1, 5, 63, 64, 65, 130]))
    kinds = [draw(st.sampled_from(["right", "left", "anywhere", "empty"])) for _ in range(rows)]
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for row, kind in enumerate(kinds):
        real = draw(st.integers(1, length))
        if kind == "right":
            mask[row, :real] = True
        elif kind == "left":
            mask[row, length - real :] = True
        elif kind == "anywhere":
            generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
            mask[row] = torch.rand(length, generator=generator) < 0.5
    return mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
@few
@example(torch.arange(66).expand(3, 66) >= torch.tensor([[2], [66], [0]]))
@given(mask=masks())
def test_a_padded_sequence_gets_what_it_gets_alone(name, backend, mask):
    torch.manual_seed(0)
    inputs = qkv(*mask.shape)
    garbage = [tensor.masked_fill(~mask[..., None, None], float("nan")) for tensor in inputs]
    garbage = [tensor.requires_grad_() for tensor in garbage]
    out = run(name, *garbage, mask=mask, backend=backend)
    weight = torch.randn(out.shape, dtype=out.dtype)
    grads = torch.autograd.grad((out * weight).sum(), garbage)
    assert (out[~mask] == 0).all()
    for grad in grads:
        assert (grad[~mask] == 0).all()
    for row, real in enumerate(mask):
        if not real.any():
            continue
        alone = [tensor[row, real][None].requires_grad_() for tensor in inputs]
        expected = run(name, *alone, backend=backend)
        assert_close(out[row, real], expected[0], rtol=1e-9, atol=1e-12)
        loss = (expected[0] * weight[row, real]).sum()
        for grad, expected_grad in zip(grads, torch.autograd.grad(loss, alone), strict=True):
            assert_close(grad[row, real], expected_grad[0], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@given(query_mask=masks(), sources=st.sampled_from([1, 7, 64, 100]))
def test_either_side_of_a_cross_attention_may_be_padded(backend, query_mask, sources):
    torch.manual_seed(0)
    batch, length = query_mask.shape
    q, k, v = qkv(batch, length, sources=sources)
    key_mask = torch.rand(batch, sources) < 0.7
    options = {"clamp": None, "backend": backend}
    out = flow_attention(q, k, v, query_mask=query_mask, key_mask=key_mask, **options)
    assert out.isfinite().all()
    for row in range(batch):
        queries, keys = query_mask[row], key_mask[row]
        if not keys.any():
            assert (out[row] == 0).all()
        elif queries.any():
            expected = flow_attention(
                q[row, queries][None], k[row, keys][None], v[row, keys][None], **options
            )
            assert_close(out[row, queries], expected[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
@few
@example([0, 9, 70, 0, 1])
@given(lengths=st.lists(st.sampled_from([0, 1, 2, 9, 64, 70]), min_size=1, max_size=6))
def test_a_packed_sequence_gets_what_it_gets_alone(name, backend, lengths):
    if sum(lengths) == 0:
        lengths = [*lengths, 3]
    torch.manual_seed(0)
    inputs = [tensor.requires_grad_() for tensor in qkv(1, sum(lengths))]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    out = run(name, *inputs, cu_seqlens=cu_seqlens, backend=backend)
    parts = [
        run(name, *(tensor[:, start:end] for tensor in inputs), backend=backend)
        for start, end in torch.stack([cu_seqlens[:-1], cu_seqlens[1:]], 1).tolist()
        if end > start
    ]
    expected = torch.cat(parts, 1)
    assert_close(out, expected, rtol=1e-9, atol=1e-12)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), inputs)
    for grad, wanted in zip(
        grads, torch.autograd.grad((expected * weight).sum(), inputs), strict=True
    ):
        assert_close(grad, wanted, rtol=1e-8, atol=1e-11)


def test_packed_cross_attention_has_offsets_for_either_side():
    query_lengths, key_lengths = [3, 0, 70, 5], [4, 6, 1, 0]
    q, _, _ = qkv(1, sum(query_lengths))
    _, k, v = qkv(1, sum(key_lengths))
    cu_q, cu_k = (torch.tensor([0, *x]).cumsum(0) for x in (query_lengths, key_lengths))
    out = flow_attention(q, k, v, cu_seqlens=cu_q, cu_seqlens_k=cu_k)
    assert_close(out[:, :3], flow_attention(q[:, :3], k[:, :4], v[:, :4]))
    assert_close(out[:, 3:73], flow_attention(q[:, 3:73], k[:, 10:11], v[:, 10:11]))
    assert (out[:, 73:] == 0).all()  # its sequence has no source


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_grouped_heads_are_repeated_heads(name, backend):
    q, _, _ = qkv(2, 70, heads=6)
    _, k, v = qkv(2, 70, heads=2)
    out = run(name, q, k, v, backend=backend)
    repeated = [tensor.repeat_interleave(3, 2) for tensor in (k, v)]
    assert_close(out, run(name, q, *repeated, backend=backend), rtol=0, atol=0)


@given(seed=st.integers(0, 1000), length=st.sampled_from([1, 2, 17, 64, 129]))
def test_the_order_of_the_sources_does_not_matter_to_the_bidirectional_form(seed, length):
    torch.manual_seed(seed)
    q, k, v = qkv(2, 9, sources=length)
    order = torch.randperm(length)
    out = flow_attention(q, k[:, order], v[:, order])
    assert_close(out, flow_attention(q, k, v), rtol=1e-9, atol=1e-12)
