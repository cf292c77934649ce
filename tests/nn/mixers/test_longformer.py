"""Longformer against softmax under its mask, and against transformers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from flowformer.nn.mixers.longformer import longformer_attention
from flowformer.nn.mixers.softmax import softmax_attention
from tests.nn.mixers.patterns import (
    MASK,
    LargestTensor,
    dense,
    draw,
    positions,
    scattered,
)


def everywhere(length: int) -> dict[str, Any]:
    """The global projections' tensors."""
    q, k, v = draw(length, seed=1)
    return {"global_query": q, "global_key": k, "global_value": v}


@pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
class TestEquation:
    @pytest.mark.parametrize("global_tokens", [0, 1, 9], ids="g{}".format)
    @pytest.mark.parametrize(("window", "kv_heads"), [(1, 4), (5, 2), (63, 4)])
    @pytest.mark.parametrize("length", [1, 7, 63, 130], ids="t{}".format)
    def test_is_softmax_under_the_mask(
        self, length: int, window: int, global_tokens: int, kv_heads: int, causal: bool
    ) -> None:
        q, k, v = draw(length, kv_heads=kv_heads)
        projected = everywhere(length)
        out = longformer_attention(
            q, k, v, window=window, global_tokens=global_tokens, causal=causal, **projected
        )
        i, j = positions(length)
        past = (j <= i) if causal else torch.ones(length, length, dtype=torch.bool)
        local = dense(q, k, v, (((i - j).abs() <= window) | (j < global_tokens)) & past)
        seeing_all = dense(*draw(length, seed=1), past)
        expected = torch.where((i < global_tokens)[..., None], seeing_all, local)
        torch.testing.assert_close(out, expected)

    def test_a_window_of_the_length_is_exact_attention(self, causal: bool) -> None:
        q, k, v = draw(40)
        same: dict[str, Any] = {"global_query": q, "global_key": k, "global_value": v}
        out = longformer_attention(q, k, v, window=40, global_tokens=2, causal=causal, **same)
        torch.testing.assert_close(out, softmax_attention(q, k, v, causal=causal))

    def test_padding_changes_nothing(self, causal: bool) -> None:
        tensors = dict(zip(("query", "key", "value"), draw(10), strict=True)) | everywhere(10)
        options: dict[str, Any] = {"window": 2, "global_tokens": 2, "causal": causal}
        padded = {name: scattered(x, MASK) for name, x in tensors.items()}
        out = longformer_attention(**padded, mask=MASK, **options)
        alone = longformer_attention(**tensors, **options)
        torch.testing.assert_close(out[MASK], alone.flatten(0, 1))
        assert not out[~MASK].any()

    def test_gradients_are_those_of_finite_differences(self, causal: bool) -> None:
        tensors = (*draw(6), *everywhere(6).values())
        tensors = tuple(x[:, :, :1, :3].requires_grad_() for x in tensors)
        mask = torch.tensor([[True, False, True, True, True, True], [False] * 6])

        def attend(*six: Tensor) -> Tensor:
            return longformer_attention(
                six[0],
                six[1],
                six[2],
                global_query=six[3],
                global_key=six[4],
                global_value=six[5],
                window=1,
                global_tokens=2,
                causal=causal,
                mask=mask,
            )

        assert torch.autograd.gradcheck(attend, tensors)


@pytest.mark.parametrize("global_tokens", [0, 3], ids="g{}".format)
def test_agrees_with_transformers(global_tokens: int) -> None:
    """Theirs needs a length that is a multiple of the window; the tail of it is padding here."""
    config = LongformerConfig(
        hidden_size=32,
        num_attention_heads=4,
        attention_window=[16],
        attention_probs_dropout_prob=0.0,
    )
    theirs = LongformerSelfAttention(config, layer_id=0).double().eval()
    hidden = torch.randn(2, 64, 32, dtype=torch.float64)
    mask = torch.arange(64).expand(2, 64) < torch.tensor([[64], [50]])
    is_global = (torch.arange(64) < global_tokens).expand(2, 64)
    expected = theirs(
        hidden,
        # Theirs: 0 local, positive global, negative padding.
        attention_mask=torch.where(mask, torch.where(is_global, 1e4, 0.0), -1e4),
        is_index_masked=~mask,
        is_index_global_attn=is_global,
        is_global_attn=global_tokens > 0,
    )[0]
    names = ("query", "key", "value", "query_global", "key_global", "value_global")
    q, k, v, *rest = (
        getattr(theirs, name)(hidden).unflatten(-1, (4, 8)).detach() for name in names
    )
    out = longformer_attention(
        q,
        k,
        v,
        global_query=rest[0],
        global_key=rest[1],
        global_value=rest[2],
        window=8,
        global_tokens=global_tokens,
        mask=mask,
    )
    torch.testing.assert_close(out.flatten(2)[mask], expected[mask])


def test_the_largest_tensor_grows_with_the_length_alone() -> None:
    sizes = []
    for length in (1000, 2000):
        q, k, v = draw(length)
        with LargestTensor() as largest:
            longformer_attention(
                q, k, v, window=16, global_tokens=2, causal=False, **everywhere(length)
            )
        sizes.append(largest.numel)
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.02)
    assert sizes[0] < 1000 * 1000
