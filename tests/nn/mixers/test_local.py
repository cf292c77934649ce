"""Local attention against softmax under its mask, and against local-attention."""

from typing import Any

import pytest
import torch
from local_attention import LocalAttention
from torch import Tensor

from flowformer.nn.mixers.local import LocalState, local_attention
from flowformer.nn.mixers.softmax import softmax_attention
from tests.nn.mixers.patterns import (
    MASK,
    LargestTensor,
    dense,
    draw,
    positions,
    scattered,
)

FORMS = [(blocked, causal) for blocked in (False, True) for causal in (False, True)]
FORM_IDS = [
    f"{'blocked' if blocked else 'sliding'}-{'causal' if causal else 'both-ways'}"
    for blocked, causal in FORMS
]


def visible(length: int, window: int, *, blocked: bool, causal: bool) -> Tensor:
    i, j = positions(length)
    near = i // window == j // window if blocked else (i - j).abs() <= window
    return near & (j <= i) if causal else near


@pytest.mark.parametrize(("blocked", "causal"), FORMS, ids=FORM_IDS)
class TestEquation:
    @pytest.mark.parametrize(("window", "kv_heads"), [(1, 4), (5, 1), (16, 4), (63, 1)])
    @pytest.mark.parametrize("length", [1, 7, 63, 130], ids="t{}".format)
    def test_is_softmax_under_the_mask(
        self, length: int, window: int, kv_heads: int, blocked: bool, causal: bool
    ) -> None:
        q, k, v = draw(length, kv_heads=kv_heads)
        out = local_attention(q, k, v, window=window, blocked=blocked, causal=causal)
        expected = dense(q, k, v, visible(length, window, blocked=blocked, causal=causal))
        torch.testing.assert_close(out, expected)

    def test_a_window_of_the_length_is_exact_attention(self, blocked: bool, causal: bool) -> None:
        q, k, v = draw(40)
        out = local_attention(q, k, v, window=40, blocked=blocked, causal=causal)
        torch.testing.assert_close(out, softmax_attention(q, k, v, causal=causal))

    def test_padding_changes_nothing(self, blocked: bool, causal: bool) -> None:
        q, k, v = draw(10)
        options: dict[str, Any] = {"window": 3, "blocked": blocked, "causal": causal}
        padded = (scattered(x, MASK) for x in (q, k, v))
        out = local_attention(*padded, mask=MASK, **options)
        assert isinstance(out, Tensor)
        alone = local_attention(q, k, v, **options)
        assert isinstance(alone, Tensor)
        torch.testing.assert_close(out[MASK], alone.flatten(0, 1))
        assert not out[~MASK].any()

    def test_gradients_are_those_of_finite_differences(self, blocked: bool, causal: bool) -> None:
        q, k, v = (x[:, :, :1, :2].requires_grad_() for x in draw(6))
        mask = torch.tensor([[True, False, True, True, True, True], [False] * 6])

        def attend(*qkv: Tensor) -> Tensor:
            out = local_attention(*qkv, window=2, blocked=blocked, causal=causal, mask=mask)
            assert isinstance(out, Tensor)
            return out

        assert torch.autograd.gradcheck(attend, (q, k, v))


@pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
def test_agrees_with_the_package_local_attention(causal: bool) -> None:
    q, k, v = draw(96)
    theirs = LocalAttention(
        8, causal=causal, exact_windowsize=True, use_rotary_pos_emb=False, autopad=True
    )
    expected = theirs(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    out = local_attention(q, k, v, window=8, blocked=False, causal=causal)
    torch.testing.assert_close(out, expected)


def test_the_largest_tensor_grows_with_the_length_alone() -> None:
    sizes = []
    for length in (1000, 2000):
        q, k, v = draw(length)
        with LargestTensor() as largest:
            local_attention(q, k, v, window=16, blocked=False)
        sizes.append(largest.numel)
    assert sizes[1] / sizes[0] == pytest.approx(2, rel=0.02)
    assert sizes[0] < 1000 * 1000


@pytest.mark.parametrize("blocked", [False, True], ids=["sliding", "blocked"])
class TestState:
    @pytest.mark.parametrize("pieces", [(1,) * 16, (7, 9), (3, 0, 13)], ids=str)
    @pytest.mark.parametrize("window", [1, 3, 20], ids="w{}".format)
    def test_pieces_give_what_the_whole_gives(
        self, window: int, pieces: tuple[int, ...], blocked: bool
    ) -> None:
        pieces = tuple(piece for piece in pieces if piece)
        q, k, v = (scattered(x, MASK) for x in draw(10, kv_heads=2))
        options: dict[str, Any] = {"window": window, "blocked": blocked, "causal": True}
        whole = local_attention(q, k, v, mask=MASK, **options)
        state, outs = None, []
        for *qkv, mask in zip(*(x.split(pieces, 1) for x in (q, k, v, MASK)), strict=True):
            result = local_attention(
                *qkv, mask=mask, initial_state=state, return_state=True, **options
            )
            assert isinstance(result, tuple)
            out, state = result
            outs.append(out)
            assert state.key.shape == (2, window, 2, 8)
            assert state.key.isfinite().all()
        torch.testing.assert_close(torch.cat(outs, 1), whole)

    def test_needs_the_causal_form(self, blocked: bool) -> None:
        q, k, v = draw(3)
        with pytest.raises(ValueError, match="causal attention only, got causal=False"):
            local_attention(q, k, v, window=2, blocked=blocked, return_state=True)

    def test_of_another_window_is_refused(self, blocked: bool) -> None:
        q, k, v = draw(3)
        state = LocalState(k, v, torch.ones(2, 3, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"key of the state must be \[2, 5, 4, 8\], got"):
            local_attention(q, k, v, window=5, blocked=blocked, causal=True, initial_state=state)
