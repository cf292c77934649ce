"""One side of a call, queries or keys or both, as every launch of a kernel takes it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from flowformer.ops.backends.arguments import Numbers
from flowformer.ops.backends.triton.chunks import Layout, dense_layout, packed_layout
from flowformer.ops.backends.triton.tuning import INTERPRETED, Settings, padded
from flowformer.ops.packing import check_packed, sequence_lengths

Scalars = Float[Tensor, "_b _h _t"]  # one number a token, float32


@dataclass(frozen=True, kw_only=True)
class Side:
    """The tokens of queries, of keys, or of both: what every kernel over them is told.

    Attributes:
        layout: where their chunks are.
        mask: which are real.
        shape: batch, length, heads.
        device: that they are on.
        features: number of the feature map.
        eps: ε.
        settings: how the kernels are cut.
        dtype: of the inputs.
        log_decay: of each token and head, where linear attention forgets.
        reverse: whether tokens ``[b, t, h, d]`` are read and written from the last to the first;
            all else stands in that order.
    """

    layout: Layout
    mask: Tensor | None
    shape: tuple[int, int, int]
    device: torch.device
    features: int
    eps: float
    settings: Settings
    dtype: torch.dtype
    log_decay: Scalars | None = None
    reverse: bool = False

    def view(self, x: Tensor) -> tuple[Any, ...]:
        """Return a tensor ``[b, t, h, d]`` and its strides in the order of reading."""
        batch, token, head, _ = x.stride()
        return (x[:, -1:], batch, -token, head) if self.reverse else (x, batch, token, head)

    @property
    def half(self) -> bool:
        """Whether operands of products are bfloat16; float16, of a small range, is widened."""
        return self.dtype == torch.bfloat16

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of the sums before each chunk: that of the operands which they become."""
        return torch.bfloat16 if self.half else torch.float32

    @property
    def dots(self) -> dict[str, Any]:
        """The way in which matrices are multiplied."""
        precision = "tf32x3" if self.dtype == torch.float32 else "tf32"
        if self.half or torch.version.hip or INTERPRETED:  # the interpreter has no other
            precision = "ieee"
        dot = tl.bfloat16 if self.half else tl.float32
        return {"DOT": dot, "PRECISION": precision, "EMULATE": self.half and INTERPRETED}

    @property
    def compiled(self) -> dict[str, Any]:
        """Options of the compiler."""
        return self._options(self.settings.warps)

    @property
    def compiled_wide(self) -> dict[str, Any]:
        """Options of the compiler for the kernels that need the most registers."""
        return self._options(self.settings.most_warps)

    def _options(self, warps: int) -> dict[str, Any]:
        options = {"num_warps": warps, "num_stages": self.settings.stages}
        if not (self.half or torch.version.hip):
            # Unasked, ptxas spills a few in order to fit once more onto a multiprocessor.
            options["maxnreg"] = 255
        return options

    def scalars(self) -> Scalars:
        """Return room for one number a token."""
        batch, length, heads = self.shape
        return torch.empty(batch, heads, length, dtype=torch.float32, device=self.device)

    def room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return room for a tensor a chunk; of a packed batch's empty chunks nothing is made."""
        make = torch.empty if self.layout.ends is None else torch.zeros
        return make(shape, dtype=dtype, device=self.device)

    def vectors(self, width: int) -> Tensor:
        """Return room for a vector a chunk and head."""
        shape = len(self.layout.chunks), self.shape[2], width
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def widths(self, x: Tensor, *, narrow: bool = False) -> dict[str, int]:
        """Return the width of queries and keys, and its blocks."""
        block = self.settings.narrow_block if narrow else self.settings.block
        block = min(block, padded(x.shape[-1]))
        return {"WIDTH": x.shape[-1], "BLOCK": block, "SIZE": self.settings.size}

    def value_widths(self, y: Tensor) -> dict[str, int]:
        """Return the width of values, and its blocks."""
        block = min(self.settings.y_block, padded(y.shape[-1]))
        return {"Y_WIDTH": y.shape[-1], "Y_BLOCK": block}

    @property
    def map(self) -> dict[str, Any]:
        """The feature map, and whether there is a mask."""
        return {"FEATURES": self.features, "HAS_MASK": self.mask is not None}

    @property
    def grid(self) -> tuple[int, int]:
        """A program a chunk and head."""
        return len(self.layout.chunks), self.shape[2]


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext()


def together(tensor: Tensor) -> Tensor:
    """Return the tensor with its features side by side."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def side_of(
    x: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    options: Numbers,
    settings: Settings,
    name: str = "cu_seqlens",
) -> Side:
    """Return the side of some tokens.

    Raises:
        ValueError: packed offsets that do not fit, or a batch beside them.
    """
    batch, length, heads = x.shape[:3]
    sequences_ = batch if cu_seqlens is None else len(cu_seqlens) - 1
    chunks = -(-length // settings.size) * (batch if cu_seqlens is None else 1)
    # Long sequences with few heads are split, so that there are programs enough.
    tiles = -(-x.shape[3] // settings.block)
    splits = max(1, settings.programs // max(1, sequences_ * heads * tiles))
    split = max(8, -(-chunks // (splits * max(1, sequences_))))
    if cu_seqlens is None:
        layout = dense_layout(batch, length, settings.size, split, x.device)
    else:
        check_packed(x)
        lengths = sequence_lengths(cu_seqlens, length, name)
        layout = packed_layout(lengths, cu_seqlens, settings.size, split, x.device)
    return Side(
        layout=layout,
        mask=None if mask is None else mask.contiguous(),
        shape=(batch, length, heads),
        device=x.device,
        features=options.feature_map,
        eps=options.eps,
        settings=settings,
        dtype=x.dtype,
    )
