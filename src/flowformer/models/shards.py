"""The exchanges among ranks of which each holds a part of every sequence."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from flowformer.models.cross_entropy import IGNORED
from flowformer.ops.parallel.collectives import gather_ranks, resolve_group, sum_ranks

_NO_TOKEN = -101  # the first label of a rank without tokens


class SequenceShards:
    """The ranks that share sequences, in the order of their parts.

    Args:
        mesh: one dimension of a mesh, or a group.
    """

    def __init__(self, mesh: DeviceMesh | ProcessGroup) -> None:
        """Hold the group; raise as `resolve_group` does."""
        self.group = resolve_group(mesh)
        self.rank = self.group.rank()

    def lengths(self, x: Tensor) -> list[int]:
        """Return the time of every rank's x, [b, t, …]."""
        return gather_ranks(torch.tensor(x.shape[1], device=x.device), self.group).tolist()

    def before(self, counts: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Return the sum of the counts of earlier ranks."""
        return gather_ranks(counts, self.group)[: self.rank].sum(0)

    def total(self, counts: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """Return the sum of the counts of all ranks."""
        return gather_ranks(counts, self.group).sum(0)

    def sum(self, x: Float[Tensor, "*sizes"]) -> Float[Tensor, "*sizes"]:
        """Return the sum over the ranks, with a gradient; see `sum_ranks`."""
        return sum_ranks(x, self.group)

    def first_of_next(self, labels: Int[Tensor, "b t"]) -> Int[Tensor, "b 1"]:
        """Return the label of the token that follows this rank's last one; -100 where none does."""
        own = labels[:, :1]
        if not labels.shape[1]:
            own = labels.new_full((len(labels), 1), _NO_TOKEN)
        following = torch.full_like(own, IGNORED)
        for first in gather_ranks(own, self.group)[self.rank + 1 :].flip(0):
            following = torch.where(first == _NO_TOKEN, following, first)
        return following

    def first(self, x: Float[Tensor, "b t dim"]) -> Float[Tensor, "b dim"]:
        """Return the first token of the sequences, on every rank."""
        lengths = self.lengths(x)
        owner = next((rank for rank, length in enumerate(lengths) if length), 0)
        own = x[:, 0] if x.shape[1] else x.sum(1)
        mine = torch.tensor(owner == self.rank, device=x.device)
        return self.sum(torch.where(mine, own, 0))  # in the graph of gradients on every rank

    def last_real(
        self, x: Float[Tensor, "b t dim"], mask: Bool[Tensor, "b t"] | None
    ) -> Float[Tensor, "b 1 dim"]:
        """Return the last real token of each row, on every rank."""
        real = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        later = gather_ranks(real.any(1), self.group)[self.rank + 1 :].any(0)
        last = (real.flip(1).cumsum(1).flip(1) == 1) & real  # no real one comes after
        chosen = last & ~later[:, None]
        return self.sum(torch.where(chosen[..., None], x, 0).sum(1, keepdim=True))
