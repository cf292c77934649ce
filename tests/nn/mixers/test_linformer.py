"""Linformer against the linformer package, with the same weights."""

import pytest
import torch
from linformer import LinformerSelfAttention

from flowformer.nn import ProjectedMixer, build_mixer
from flowformer.nn.mixers.linformer import linformer_attention
from flowformer.nn.mixers.softmax import softmax_attention


def same_weights(theirs: LinformerSelfAttention, *, num_kv_heads: int) -> ProjectedMixer:
    """Their keys and values have no bias, and theirs of one head serve all."""
    ours = build_mixer(
        "linformer", 24, 3, max_length=theirs.seq_len, rank=theirs.k, num_kv_heads=num_kv_heads
    )
    layers = {"query": theirs.to_q, "key": theirs.to_k, "value": theirs.to_v}
    state = {f"{name}_projection.weight": layer.weight for name, layer in layers.items()}
    state |= {f"{name}_projection.bias": torch.zeros(len(x.weight)) for name, x in layers.items()}
    state |= {
        "out_projection.weight": theirs.to_out.weight,
        "out_projection.bias": theirs.to_out.bias,
        "attention.key_mixing": theirs.proj_k,
        "attention.value_mixing": theirs.proj_v,
    }
    ours.load_state_dict(state)
    return ours


@pytest.mark.parametrize("num_kv_heads", [3, 1], ids="{}-key-heads".format)
@pytest.mark.parametrize("length", [1, 33, 50])
def test_the_package_gives_the_same_output(length: int, num_kv_heads: int) -> None:
    theirs = LinformerSelfAttention(24, 50, k=8, heads=3, one_kv_head=num_kv_heads == 1)
    ours = same_weights(theirs, num_kv_heads=num_kv_heads)
    x, context = torch.randn(2, length, 24), torch.randn(2, 41, 24)
    torch.testing.assert_close(ours(x)[0], theirs(x))
    torch.testing.assert_close(ours(x, context)[0], theirs(x, context=context))


def test_a_rank_of_the_length_with_nothing_mixed_is_softmax_attention() -> None:
    q, k, v = torch.randn(3, 2, 17, 4, 8, dtype=torch.float64)
    identity = torch.eye(17, dtype=torch.float64)
    out = linformer_attention(q, k, v, key_mixing=identity, value_mixing=identity)
    torch.testing.assert_close(out, softmax_attention(q, k, v))


@pytest.mark.parametrize("side", ["left", "right"])
def test_nan_in_the_padding_changes_nothing(side: str) -> None:
    torch.manual_seed(1)
    mixer = build_mixer("linformer", 8, 2, max_length=20, rank=4).double()
    alone = torch.randn(1, 11, 8, dtype=torch.float64)
    wild = torch.full((1, 6, 8), torch.nan, dtype=torch.float64)
    x = torch.cat([wild, alone] if side == "left" else [alone, wild], 1).requires_grad_()
    mask = ~x[..., 0].isnan()
    y, _ = mixer(x, mask=mask)
    torch.testing.assert_close(y[mask][None], mixer(alone)[0])
    y.square().sum().backward()
    assert x.grad is not None
    assert not x.grad[~mask].any()
