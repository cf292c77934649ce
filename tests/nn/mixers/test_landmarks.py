"""The landmarks of a sequence: means of segments of its real tokens."""

import pytest
import torch

from flowformer.nn.mixers.nystromformer import masked_softmax, segment_means


def test_segments_of_equal_length_are_means_of_consecutive_tokens() -> None:
    tokens = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    means, used = segment_means(tokens, None, 4)
    expected = tokens.unflatten(1, (4, 3)).mean(2).transpose(1, 2)
    torch.testing.assert_close(means, expected)
    assert used.all()


@pytest.mark.parametrize("length", [5, 63, 500])
def test_segments_of_a_length_that_nothing_divides_differ_by_one_token(length: int) -> None:
    position = torch.arange(length, dtype=torch.float64)
    means, used = segment_means(position[None, :, None, None], None, 4)
    # The mean of a run of consecutive numbers lies at its middle.
    edges = torch.tensor([-(-length * i // 4) for i in range(5)], dtype=torch.float64)
    torch.testing.assert_close(means.flatten(), (edges[1:] + edges[:-1] - 1) / 2)
    assert (edges.diff().max() - edges.diff().min()) <= 1
    assert used.all()


def test_fewer_tokens_than_landmarks_are_their_own_landmarks() -> None:
    tokens = torch.randn(1, 5, 2, 3, dtype=torch.float64)
    means, used = segment_means(tokens, None, 8)
    assert used.shape == (1, 5)
    torch.testing.assert_close(means.transpose(1, 2), tokens)


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9], [0, 2, 3, 6, 8, 9]])
def test_padding_is_in_no_segment(places: list[int]) -> None:
    alone = torch.randn(1, 6, 2, 3, dtype=torch.float64)
    padded, mask = torch.zeros(1, 10, 2, 3).double(), torch.zeros(1, 10, dtype=torch.bool)
    padded[:, places], mask[:, places] = alone, True
    expected, _ = segment_means(alone, None, 4)
    means, used = segment_means(padded, mask, 4)
    torch.testing.assert_close(means, expected)
    assert used.all()


def test_segments_without_a_token_are_zero_and_not_used() -> None:
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    tokens = torch.randn(2, 4, 1, 3) * mask[:, :, None, None]
    means, used = segment_means(tokens, mask, 4)
    assert used.tolist() == [[True, False, True, False], [False] * 4]
    assert means[:, 0][used].equal(tokens[0, [0, 2], 0])
    assert not means[:, 0][~used].any()


def test_softmax_of_no_column_is_zero_without_gradient() -> None:
    scores = torch.randn(1, 1, 2, 3, requires_grad=True)
    allowed = torch.tensor([[False] * 3, [True, False, True]])[None, None]
    weights = masked_softmax(scores, allowed)
    assert weights[0, 0, 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(weights[0, 0, 1, [0, 2]], scores[0, 0, 1, [0, 2]].softmax(-1))
    weights[..., 0].sum().backward()
    assert scores.grad is not None
    assert scores.grad[0, 0, 0].tolist() == [0, 0, 0]
    assert scores.grad[0, 0, 1, 0] != 0
