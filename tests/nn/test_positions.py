"""Rotary positions: those of transformers, relative under a dot product, exact far out."""

import math

import pytest
import torch

from flowformer.nn import MIXERS, build_mixer, rotate, rotation
from flowformer.nn.mixers.head_attention import needs_heads_alone

PLAIN = [name for name, kind in MIXERS.items() if kind.kind.inputs == ("query", "key", "value")]
OTHERS = [name for name, mixer in MIXERS.items() if not needs_heads_alone(mixer.kind)]


def places(*values: int) -> torch.Tensor:
    return torch.tensor([values])


@pytest.mark.parametrize("head_dim", [2, 8, 64])
def test_turned_heads_are_those_of_transformers(head_dim: int) -> None:
    from transformers.models.llama import modeling_llama as llama  # slow to import

    query, key = torch.randn(2, 63, 3, head_dim), torch.randn(2, 63, 1, head_dim)
    where = torch.arange(63) + torch.tensor([[0], [500]])
    frequency = 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angle = (where[..., None] * frequency).repeat(1, 1, 2)
    expected = llama.apply_rotary_pos_emb(query, key, angle.cos(), angle.sin(), unsqueeze_dim=2)
    turn = rotation(where, head_dim, dtype=torch.float32)
    # At place 563 the angles of transformers, in float32, are off by 563 · 2^-24.
    torch.testing.assert_close(rotate(query, turn), expected[0], rtol=0, atol=3e-4)
    torch.testing.assert_close(rotate(key, turn), expected[1], rtol=0, atol=3e-4)


def test_products_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 3, 8).double()

    def turned(x: torch.Tensor, place: int) -> torch.Tensor:
        return rotate(x, rotation(places(place), 8, dtype=torch.float64))

    def product(query_place: int, key_place: int) -> torch.Tensor:
        return (turned(query, query_place) * turned(key, key_place)).sum(-1)

    torch.testing.assert_close(product(9, 4), product(1_000_009, 1_000_004))
    assert not torch.allclose(product(9, 4), product(9, 5))
    torch.testing.assert_close(product(7, 7), (query * key).sum(-1))


def test_the_angle_at_a_million_tokens_is_right_in_float32() -> None:
    turn = rotation(places(1_000_003), 8, dtype=torch.float32)
    for pair in range(4):
        angle = 1_000_003 * 10_000 ** (-pair / 4)
        assert turn.cos[0, 0, pair].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert turn.sin[0, 0, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_heads_keep_their_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(1, 3, 2, 4).to(dtype)
    assert rotate(x, rotation(places(0, 1, 2), 4, dtype=torch.float32)).dtype == dtype


def test_a_mixer_turns_query_and_key_and_not_the_value() -> None:
    mixer, x = build_mixer("softmax", 8, 2).double(), torch.randn(1, 5, 8).double()
    turn = rotation(torch.arange(5)[None], 4, dtype=torch.float64)
    query, key, value = (
        mixer.get_submodule(f"{name}_projection")(x).view(1, 5, 2, 4)
        for name in ("query", "key", "value")
    )
    mixed, _ = mixer.attention(rotate(query, turn), rotate(key, turn), value, causal=True)
    expected = mixer.out_projection(mixed.flatten(2))
    torch.testing.assert_close(mixer(x, causal=True, turn=turn)[0], expected)


@pytest.mark.parametrize("name", OTHERS)
def test_a_mixer_of_other_inputs_refuses_to_turn(name: str) -> None:
    mixer = build_mixer(name, 8, 2, max_length=16)
    with pytest.raises(ValueError, match="need an attention of query, key and value"):
        mixer.require_rotary()


def test_heads_of_odd_width_cannot_turn() -> None:
    with pytest.raises(ValueError, match="head_dim must be even, got 3"):
        rotation(places(0), 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="head_dim must be even, got 3"):
        build_mixer("flow", 6, 2).require_rotary()


def test_a_context_has_no_places() -> None:
    turn = rotation(torch.arange(5)[None], 4, dtype=torch.float32)
    x = torch.randn(1, 5, 8)
    with pytest.raises(ValueError, match="leave out context"):
        build_mixer("flow", 8, 2)(x, x, turn=turn)
