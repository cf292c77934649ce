"""What every backend does to its inputs and options alike."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

FeatureMap = Literal["sigmoid", "relu"]
Competition = Literal["sources", "heads"]


class FlowOptions(NamedTuple):
    """The options of Flow-Attention, as a backend receives them (defaults stand in flow.py)."""

    feature_map: FeatureMap
    clamp: float | None
    eps: float
    competition: Competition | None
    allocation: bool


def check_options(options: FlowOptions) -> None:
    """Refuse what no backend can do.

    Raises:
        ValueError: an option is none of its choices or out of its range.
    """
    if options.feature_map not in ("sigmoid", "relu"):
        raise ValueError(f"feature_map must be 'sigmoid' or 'relu', got {options.feature_map!r}")
    if options.competition not in ("sources", "heads", None):
        raise ValueError(
            f"competition must be 'sources', 'heads' or None, got {options.competition!r}"
        )
    if not isinstance(options.allocation, bool):
        raise ValueError(f"allocation must be True or False, got {options.allocation!r}")
    # The types too: a mixer's options may come from a command line, as JSON.
    if options.clamp is not None and not _is_positive(options.clamp):
        raise ValueError(f"clamp must be positive or None, got {options.clamp!r}")
    if not _is_positive(options.eps):
        raise ValueError(f"eps must be positive, got {options.eps!r}")


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 for float64, float32 for all narrower ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def masked(
    x: Float[Tensor, "b t h d"], mask: Bool[Tensor, "b t"] | None, fill: float = 0.0
) -> Float[Tensor, "b t h d"]:
    """Fill the padded tokens. A selection, not a product: padding may hold NaN."""
    return x if mask is None else torch.where(mask[:, :, None, None], x, fill)


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
