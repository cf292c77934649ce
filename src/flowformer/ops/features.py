"""The feature map, ε, masks and the dtype of the arithmetic: what every backend does to inputs."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FeatureMap = Literal["sigmoid", "relu"]

# An ε below is zero in float32, or flushed to it; the square of one above is infinite there.
SMALLEST_EPS, LARGEST_EPS = 1.2e-38, 1e18


def check_eps(eps: float, *, zero: bool = False) -> None:
    """Refuse an ε that is none in float32, the arithmetic of all that is not float64.

    Args:
        eps: the ε.
        zero: whether it may be zero.

    Raises:
        ValueError: it is no number, not positive, or too small or too large for float32.
    """
    if not is_number(eps) or eps < 0 or not (eps > 0 or zero):
        raise ValueError(f"eps must {'not be negative' if zero else 'be positive'}, got {eps!r}")
    if eps and not SMALLEST_EPS <= eps <= LARGEST_EPS:
        raise ValueError(
            f"eps must be between {SMALLEST_EPS:g} and {LARGEST_EPS:g}, got {eps!r}: in float32 "
            "it would be zero, or its square infinite"
        )


def is_number(value: object) -> bool:
    """Return whether a value is a number: an option may come from a command line, as JSON."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 for float64, float32 for all narrower ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def masked(
    x: Float[Tensor, "b t h d"], mask: Bool[Tensor, "b t"] | None, fill: float = 0.0
) -> Float[Tensor, "b t h d"]:
    """Fill the padded tokens. A selection, not a product: padding may hold NaN."""
    return x if mask is None else torch.where(mask[:, :, None, None], x, fill)


def front_order(mask: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Return the places of each row's real tokens in their order, then those of its padding."""
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)


def apply_feature_map(x: Tensor, feature_map: FeatureMap) -> Tensor:
    """Return φ(x) ≥ 0: the sigmoid, or relu(x) + 1e-6 as published for the long-range arena."""
    return torch.sigmoid(x) if feature_map == "sigmoid" else torch.relu(x) + 1e-6


def features(
    x: Float[Tensor, "b t h d"], mask: Bool[Tensor, "b t"] | None, feature_map: FeatureMap
) -> Float[Tensor, "b t h d"]:
    """Return φ(x) in the dtype of the arithmetic, zero at padded tokens.

    Masked before the map, so that NaN in the padding reaches neither values nor gradients:
    sigmoid(-∞) and its derivative are 0, while relu(x) + 1e-6 is to be zeroed after the map too.
    """
    x = masked(x, mask, -torch.inf).to(compute_dtype(x.dtype))
    x = apply_feature_map(x, feature_map)
    return x if feature_map == "sigmoid" else masked(x, mask)
