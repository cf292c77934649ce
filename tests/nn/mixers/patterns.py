"""The oracle of the sparse attentions: softmax attention under a mask written out in full."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def draw(length: int, *, kv_heads: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(2, length, heads, width, dtype=torch.float64, generator=generator)
        for heads, width in ((4, 8), (kv_heads, 8), (kv_heads, 5))
    )
    return q, k, v


def dense(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention to the visible keys; zero for a query that sees none."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("blhd,bshd->bhls", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
    return torch.einsum("bhls,bshm->blhm", weights, v)


def positions(length: int) -> tuple[Tensor, Tensor]:
    """i and j, to write masks with."""
    place = torch.arange(length)
    return place[:, None], place


def scattered(x: Tensor, mask: Tensor) -> Tensor:
    """The tokens of x [b, n, ...] at the True places of the mask [b, t]; NaN elsewhere."""
    out = x.new_full((*mask.shape, *x.shape[2:]), torch.nan)
    out[mask] = x.flatten(0, 1)
    return out


# Ten real tokens of sixteen in each row, in other places.
MASK = torch.zeros(2, 16, dtype=torch.bool)
MASK[0, :10] = True
MASK[1, [1, 2, 5, 6, 7, 8, 10, 11, 12, 14]] = True


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                # An expanded tensor takes the memory of what it repeats.
                stored = each.untyped_storage().nbytes() // each.element_size()
                self.numel = max(self.numel, min(each.numel(), stored))
        return result
