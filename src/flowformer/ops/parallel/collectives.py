"""Differentiable collectives, by which the ranks that share a sequence know of one another.

The convention is torch's: what is differentiated is the sum of the losses of all ranks. So the
gradient of a sum over ranks is the sum of the ranks' gradients, and every rank has to take part in
the backward pass, as it did in the forward pass, in the same order.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh


def resolve_group(mesh: DeviceMesh | ProcessGroup) -> ProcessGroup:
    """Return the ranks that share a sequence.

    Raises:
        ValueError: a mesh of more than one dimension.
        TypeError: neither a mesh nor a group that this process is in.
    """
    if isinstance(mesh, DeviceMesh):
        if mesh.ndim != 1:
            raise ValueError(
                f"a sequence is sharded over one dimension of a mesh, got {mesh.ndim}: pass "
                f"mesh[NAME], one of {mesh.mesh_dim_names}"
            )
        return mesh.get_group()
    if not isinstance(mesh, ProcessGroup):
        raise TypeError(
            "mesh must be a DeviceMesh or a ProcessGroup that this process is in, got "
            f"{type(mesh).__name__}"
        )
    return mesh


def place_of_rank(group: ProcessGroup, *, reverse: bool) -> int:
    """Return how many ranks of a sequence are read before this one."""
    return group.size() - 1 - group.rank() if reverse else group.rank()


def gather_ranks(x: Shaped[Tensor, "..."], group: ProcessGroup) -> Shaped[Tensor, "ranks ..."]:
    """Return the tensors of all ranks, which have one shape, without a gradient."""
    gathered = x.new_empty((group.size(), *x.shape))
    dist.all_gather(list(gathered.unbind()), x.detach().contiguous(), group=group)
    return gathered


def sum_ranks(x: Shaped[Tensor, "..."], group: ProcessGroup) -> Shaped[Tensor, "..."]:
    """Return the sum over the ranks, on each of them; its gradient is the sum of theirs."""
    return _Sum.apply(x, group)


def largest_of_ranks(x: Shaped[Tensor, "..."], group: ProcessGroup) -> Shaped[Tensor, "..."]:
    """Return the maximum over the ranks, on each of them, without a gradient."""
    largest = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return largest


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - its ctx is a keyword there
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.group), None


class _Exchange(torch.autograd.Function):
    """Row r of what comes is the row of rank r that has our number: a transposition over ranks.

    The result may be read once the work that is appended to ``works`` has been waited for.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: ProcessGroup, works: list[Any]) -> Tensor:
        ctx.group = group
        received = torch.empty_like(rows)
        works.append(dist.all_to_all_single(received, rows, group=group, async_op=True))
        return received

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - its ctx is a keyword there
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        works: list[Any] = []
        received = _Exchange.apply(grad.contiguous(), ctx.group, works)
        works.pop().wait()
        return received, None, None


class RankSums:
    """Sums over the ranks that come before, on their way while the caller computes.

    Every rank sums one share of the numbers for all: it gets that share of each rank, sums, and
    sends each rank its result. So a rank sends twice the size of its own tensors at most, however
    many ranks there are; gathering them all would take as many times that as there are ranks.

    Args:
        tensors: what this rank adds for later ones, of one dtype and the same shapes on each rank.
        before: row r says which ranks' tensors rank r is to have summed.
        group: the ranks.
        left: the logarithm of what is left at a rank (row) of what an earlier one (column) adds, of
            each row and head, ``[ranks, ranks, …]``; the tensors have the last axes in front.
        logs: whether log Σ exp is taken rather than the sum.
    """

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        before: Bool[Tensor, "ranks ranks"],
        group: ProcessGroup,
        *,
        left: Float[Tensor, "ranks ranks ..."] | None = None,
        logs: bool = False,
    ) -> None:
        self._shapes = [tensor.shape for tensor in tensors]
        self._before, self._group, self._logs = before, group, logs
        numbers = torch.cat([tensor.flatten() for tensor in tensors])
        self._count, ranks = len(numbers), group.size()
        share = -(-self._count // ranks)
        numbers = torch.nn.functional.pad(numbers, (0, ranks * share - self._count))
        self._left = None
        if left is not None:
            left = left.flatten(2)
            places = torch.arange(left.shape[2], device=numbers.device)
            each = [places.repeat_interleave(x.numel() // len(places)) for x in tensors]
            every = torch.nn.functional.pad(torch.cat(each), (0, ranks * share - self._count))
            self._left = left[:, :, every.view(ranks, share)[group.rank()]]
        self._works: list[Any] = []
        self._rows = self._exchange(numbers.view(ranks, share))

    def turn(self) -> None:
        """Wait for the shares, sum them, and start sending the sums."""
        self._works.pop().wait()
        of_each, rows = self._before[..., None], self._rows
        if self._left is not None:
            rows = rows + self._left if self._logs else rows * self._left.exp()
        # A selection, not a product: what a later rank holds, NaN too, must not be seen.
        if self._logs:
            self._rows = log_sum_exp(torch.where(of_each, rows, -torch.inf), 1)
        else:
            self._rows = torch.where(of_each, rows, 0).sum(1)
        self._rows = self._exchange(self._rows)

    def result(self) -> list[Tensor]:
        """Wait for the sums, and return them in the shapes of the tensors."""
        self._works.pop().wait()
        numbers = self._rows.flatten()[: self._count]
        parts = numbers.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _exchange(self, rows: Tensor) -> Tensor:
        return _Exchange.apply(rows.contiguous(), self._group, self._works)


def log_sum_exp(x: Tensor, dim: int) -> Tensor:
    """Return log Σ exp(x); where all are -inf, that and no gradient (torch's would be NaN)."""
    largest = x.detach().amax(dim, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0)
    total = (x - largest).exp().sum(dim)
    some = total > 0
    return torch.where(some, torch.where(some, total, 1).log() + largest.squeeze(dim), -torch.inf)
