"""Inputs that the tests of the operators share."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowformer.ops.backends import available_backends

# Without a C++ compiler the package has no library; the other backends are to pass all the same.
_no_library = available_backends()["cpu"]
needs_library = pytest.mark.skipif(_no_library is not None, reason=str(_no_library))
CPU = pytest.param("cpu", marks=needs_library)
BACKENDS = ["reference", "chunked", CPU]

FORMS: dict[str, dict[str, Any]] = {
    "bidirectional": {},
    "causal": {"causal": True},
    "unclamped": {"clamp": None},
    "causal-unclamped": {"causal": True, "clamp": None},
    "relu": {"feature_map": "relu"},
    "causal-relu": {"causal": True, "feature_map": "relu"},
    "heads": {"competition": "heads"},
    "no-competition": {"competition": None},
    "causal-no-competition": {"causal": True, "competition": None},
    "no-allocation": {"allocation": False},
    "causal-no-allocation": {"causal": True, "allocation": False},
}
CAUSAL = {name: options for name, options in FORMS.items() if "causal" in name}


def qkv(
    batch: int,
    length: int,
    *,
    sources: int | None = None,
    heads: int = 2,
    width: int = 8,
    value_width: int = 6,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    sources = length if sources is None else sources
    return (
        torch.randn(batch, length, heads, width, dtype=dtype),
        torch.randn(batch, sources, heads, width, dtype=dtype),
        torch.randn(batch, sources, heads, value_width, dtype=dtype),
    )


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the gradients of a sum that weighs every output differently."""
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weight).sum(), inputs)
