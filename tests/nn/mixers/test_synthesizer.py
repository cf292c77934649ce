"""Synthesizer: each kind of scores written out, mixtures, causal and padded sequences."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn import build_mixer
from flowformer.nn.mixers.softmax import softmax_attention
from flowformer.nn.mixers.synthesizer import (
    dense_scores,
    dot_product_scores,
    factorized_dense_scores,
    random_scores,
    synthesizer_attention,
)

PARTS = ["dense", "factorized-dense", "random", "fixed-random", "factorized-random"]


def real(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class TestAttention:
    @pytest.mark.parametrize("value_heads", [4, 2, 1], ids="{}-value-heads".format)
    @pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
    def test_is_the_softmax_of_the_scores(self, causal: bool, value_heads: int) -> None:
        scores, value = real(2, 4, 17, 17), real(2, 17, value_heads, 5)
        out = synthesizer_attention(scores, value, causal=causal)
        future = torch.ones(17, 17, dtype=torch.bool).triu(1) & causal
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        value = value.repeat_interleave(4 // value_heads, 2)
        torch.testing.assert_close(out, torch.einsum("bhls,bshm->blhm", weights, value))

    @pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
    def test_of_dot_products_is_softmax_attention(self, causal: bool) -> None:
        q, k, v = real(2, 17, 4, 8), real(2, 17, 2, 8), real(2, 17, 2, 5)
        mask = torch.rand(2, 17) > 0.3
        expected = softmax_attention(q, k, v, causal=causal, mask=mask)
        scores = dot_product_scores(q, k, mask)
        out = synthesizer_attention(scores, v, causal=causal, mask=mask)
        torch.testing.assert_close(out, expected)


class TestScores:
    """Of t = 6 tokens, with room for 10 places."""

    def test_dense_are_two_layers_of_the_token(self) -> None:
        hidden, weight, bias = real(2, 6, 3, 4), real(3, 10, 4), real(3, 10)
        scores = dense_scores(hidden, weight, bias, None)
        for head in range(3):
            expected = F.linear(hidden[:, :, head].relu(), weight[head], bias[head])
            torch.testing.assert_close(scores[:, head], expected[..., :6])

    def test_factorized_dense_are_all_products_of_two_vectors(self) -> None:
        left, right = real(2, 6, 3, 4), real(2, 6, 3, 3)
        scores = factorized_dense_scores(left, right, None)
        for place in range(6):
            expected = left[..., place % 4] * right[..., place // 4]
            torch.testing.assert_close(scores[..., place], expected.transpose(1, 2))

    def test_random_are_a_table_of_places(self) -> None:
        table = real(3, 10, 10)
        assert random_scores(table, None, 6).equal(table[None, :, :6, :6])

    def test_padded_tokens_take_the_places_of_the_real_ones(self) -> None:
        number = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 5]])
        table = real(3, 10, 10)
        scores = random_scores(table, number, 6)
        assert scores[0, :, 3, 5].equal(table[:, 1, 2])
        assert scores[1].equal(table[:, :6, :6])
        hidden, weight, bias = real(2, 6, 3, 4), real(3, 10, 4), real(3, 10)
        padded = dense_scores(hidden, weight, bias, number)
        every = dense_scores(hidden, weight, bias, None)
        assert padded[0, :, 3, 5].equal(every[0, :, 3, 2])
        assert padded[1].equal(every[1])


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["synthesizer", "synthesizer-mixture"])
@pytest.mark.parametrize("part", PARTS)
def test_padding_changes_nothing(part: str, name: str, side: str, causal: bool) -> None:
    torch.manual_seed(1)
    mixer = build_mixer(name, 8, 2, max_length=20, parts=[part]).double()
    alone, wild = real(1, 11, 8), torch.full((1, 6, 8), torch.nan, dtype=torch.float64)
    x = torch.cat([wild, alone] if side == "left" else [alone, wild], 1).requires_grad_()
    mask = ~x[..., 0].isnan()
    y, _ = mixer(x, mask=mask, causal=causal)
    torch.testing.assert_close(y[mask][None], mixer(alone, causal=causal)[0])
    y.square().sum().backward()
    assert x.grad is not None
    assert not x.grad[~mask].any()


class TestLayer:
    @pytest.mark.parametrize("part", PARTS)
    def test_gradients_reach_every_parameter_of_every_part(self, part: str) -> None:
        mixer = build_mixer("synthesizer", 8, 2, max_length=12, parts=[part]).double()
        mixer(real(2, 12, 8))[0].square().sum().backward()
        assert all(each.grad is not None and each.grad.any() for each in mixer.parameters())

    @pytest.mark.parametrize(
        ("part", "sees_tokens"),
        [
            ("dense", True),
            ("factorized-dense", True),
            ("random", False),
            ("fixed-random", False),
            ("factorized-random", False),
        ],
    )
    def test_only_dense_weights_depend_on_the_tokens(self, part: str, sees_tokens: bool) -> None:
        mixer = build_mixer("synthesizer", 8, 2, max_length=12, parts=[part]).double()
        x, y = real(2, 12, 8), real(2, 12, 8)
        synthesis = mixer.attention.get_submodule("synthesis")
        assert synthesis(x, None).allclose(synthesis(y, None)) is not sees_tokens

    def test_a_fixed_table_is_saved_and_not_trained(self) -> None:
        mixer = build_mixer("synthesizer", 8, 2, max_length=12, parts=["fixed-random"])
        name = "attention.synthesis.parts.fixed-random.table"
        assert name in mixer.state_dict()
        assert name not in dict(mixer.named_parameters())

    def test_a_mixture_weighs_its_parts_with_a_softmax(self) -> None:
        mixer = build_mixer(
            "synthesizer-mixture", 8, 2, max_length=12, parts=["random", "dense"]
        ).double()
        synthesis = mixer.attention.get_submodule("synthesis")
        mixing = synthesis.get_parameter("mixing")
        torch.nn.init.normal_(mixing)
        x, dots = real(2, 12, 8), real(2, 2, 12, 12)
        parts = [part(x, None) for part in synthesis.get_submodule("parts").children()]
        weights = mixing.softmax(0)
        expected = weights[0] * parts[0] + weights[1] * parts[1] + weights[2] * dots
        torch.testing.assert_close(synthesis(x, None, dots), expected)

    def test_a_factorized_table_has_the_rank_that_it_is_given(self) -> None:
        mixer = build_mixer(
            "synthesizer", 8, 2, max_length=12, parts=["factorized-random"], rank=3
        ).double()
        scores = mixer.attention.get_submodule("synthesis")(real(1, 12, 8), None)
        assert torch.linalg.matrix_rank(scores).tolist() == [[3, 3]]

    @pytest.mark.parametrize("length", [1, 2, 16, 17, 500])
    def test_two_factors_have_room_for_every_place(self, length: int) -> None:
        mixer = build_mixer("synthesizer", 8, 2, max_length=length, parts=["factorized-dense"])
        assert mixer(torch.randn(1, length, 8))[0].shape == (1, length, 8)

    @pytest.mark.usefixtures("shape_checks_off")  # they would refuse the unknown name first
    @pytest.mark.parametrize("parts", [[], ["sparse"], ["dense", "dense"]])
    def test_parts_are_known_and_named_once(self, parts: list[str]) -> None:
        with pytest.raises(ValueError, match="one or more of dense, factorized-dense, random"):
            build_mixer("synthesizer", 8, 2, max_length=12, parts=parts)

    def test_a_rank_is_positive(self) -> None:
        with pytest.raises(ValueError, match="rank must be positive, got 0"):
            build_mixer("synthesizer", 8, 2, max_length=12, rank=0)
