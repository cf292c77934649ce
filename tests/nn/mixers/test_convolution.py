"""Short convolutions of heads that read in directions."""

import pytest
import torch

from flowformer.nn.mixers.convolution import Directions, directed_convolution


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_heads_see_nothing_against_their_direction(number: float) -> None:
    """Not even zero times what is not finite."""
    directions: Directions = {"both": 1, "forwards": 1, "backwards": 1}
    x, weight = torch.randn(1, 20, 3, 5), torch.randn(3, 5, 4, requires_grad=True)
    clean = directed_convolution(x, weight, None, directions)
    x[0, 9] = number
    y = directed_convolution(x, weight, None, directions)
    sees = {"both": range(8, 12), "forwards": range(9, 13), "backwards": range(6, 10)}
    for head, direction in enumerate(directions):
        seen = [t in sees[direction] for t in range(20)]
        assert y[0, :, head].isfinite().all(1).tolist() == [not each for each in seen]
        others = ~torch.tensor(seen)
        torch.testing.assert_close(y[0, others, head], clean[0, others, head])
    (grad,) = torch.autograd.grad(y[y.isfinite()].sum(), weight)
    assert grad.isfinite().all()
