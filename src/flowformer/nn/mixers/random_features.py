"""Random directions for the features of Performer and of random-feature attention."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def orthogonal_directions(num_features: int, width: int) -> Float[Tensor, "f d"]:
    """Rows from N(0, I) each, orthogonal to the others of its block of `width` rows.

    A block is the orthogonal factor of a Gaussian matrix; the lengths are drawn apart, so that each
    row by itself is Gaussian, and every estimate unbiased (Choromanski et al. 2021, section 2.4).
    Drawn in float64 from torch's generator for the CPU.
    """
    blocks = [_rotation(width)[: num_features - start] for start in range(0, num_features, width)]
    lengths = torch.randn(num_features, width, dtype=torch.float64).norm(dim=1, keepdim=True)
    return torch.cat(blocks) * lengths


def _rotation(width: int) -> Float[Tensor, "d d"]:
    orthogonal, upper = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))
    return orthogonal * upper.diagonal().sign()  # without the signs it is not uniform


class RandomDirections(nn.Module):
    """Orthogonal Gaussian directions ω, saved and loaded with the parameters.

    Called by a layer in training, it counts the calls and draws anew after every `redraw_every`, as
    the Performer's authors do, so that a model does not adapt to one draw. Count and directions
    are buffers: a run that is resumed goes on where it was, and replicas receive those of rank 0.
    The count is read on the host: one small transfer a call on a GPU, none with None.

    Args:
        shape: [..., features, width]; each matrix is drawn by itself.
        redraw_every: training calls between draws; None never redraws.
    """

    directions: Tensor
    calls: Tensor

    def __init__(self, *shape: int, redraw_every: int | None) -> None:
        super().__init__()
        if min(shape) < 1:
            raise ValueError(
                f"the number of features and their width must be positive, got {shape}"
            )
        if redraw_every is not None and redraw_every < 1:
            raise ValueError(f"redraw_every must be positive or None, got {redraw_every}")
        self.redraw_every = redraw_every
        self.register_buffer("directions", torch.empty(shape))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.redraw()

    def redraw(self) -> None:
        """Draw other directions, in place."""
        _draw(self.directions)

    def forward(self) -> Float[Tensor, "... f d"]:
        """Return the directions; in training, count the call and redraw when it is time."""
        if self.training and self.redraw_every is not None:
            _count_call(self.directions, self.calls, self.redraw_every)
            return self.directions.clone()  # the backward pass needs those of this call
        return self.directions

    def extra_repr(self) -> str:
        """Return the sizes, for print(model)."""
        return f"{tuple(self.directions.shape)}, redraw_every={self.redraw_every}"


def _draw(directions: Tensor) -> None:
    with torch.no_grad():
        for matrix in directions.flatten(0, -3) if directions.ndim > 2 else [directions]:
            matrix.copy_(orthogonal_directions(*matrix.shape))


# An operator of its own, because whether it draws depends on a tensor: torch.compile takes it as it
# is, where a Python branch would end the graph.
@torch.library.custom_op("flowformer::count_call", mutates_args=("directions", "calls"))
def _count_call(directions: Tensor, calls: Tensor, redraw_every: int) -> None:
    calls.add_(1)
    if int(calls) % redraw_every == 0:
        _draw(directions)
