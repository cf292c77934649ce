"""Random directions as buffers of a layer: fixed in evaluation, redrawn at times in training."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowformer.ops.baselines.random_features import orthogonal_directions


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
        """Draw them from torch's generator."""
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
        """The sizes, for print(model)."""
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
