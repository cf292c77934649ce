"""What every backend does to its inputs and options alike."""

from typing import Any, Literal, NamedTuple

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


def resolve_options(
    *, competition: Competition | None, allocation: bool, independent_sinks: bool, **rest: Any
) -> FlowOptions:
    """Return the options that a public function was given, checked, as backends receive them.

    Sinks that are independent are those of neither competition nor allocation: O and Ô are all
    that sums over sinks, and nothing else reads them.

    Raises:
        ValueError: an option is none of its choices, out of its range, or contradicts another.
    """
    if not isinstance(independent_sinks, bool):
        raise ValueError(f"independent_sinks must be True or False, got {independent_sinks!r}")
    options = FlowOptions(competition=competition, allocation=allocation, **rest)
    check_options(options)
    if not independent_sinks:
        return options
    if competition == "heads":
        raise ValueError(
            "independent_sinks=True leaves out the competition, which competition='heads' asks "
            "for: leave out one of them"
        )
    return options._replace(competition=None, allocation=False)


def sinks_are_independent(options: FlowOptions) -> bool:
    """Whether each output of cross-attention depends on its own query and the context alone."""
    return options.competition is None and not options.allocation


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
    if options.clamp is not None and not (_is_number(options.clamp) and options.clamp > 0):
        raise ValueError(f"clamp must be positive or None, got {options.clamp!r}")
    check_eps(options.eps)


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
    if not _is_number(eps) or eps < 0 or not (eps > 0 or zero):
        raise ValueError(f"eps must {'not be negative' if zero else 'be positive'}, got {eps!r}")
    if eps and not SMALLEST_EPS <= eps <= LARGEST_EPS:
        raise ValueError(
            f"eps must be between {SMALLEST_EPS:g} and {LARGEST_EPS:g}, got {eps!r}: in float32 "
            "it would be zero, or its square infinite"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
