"""How the numbers of an environment become those of a decision model, and its actions go back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from flowformer.data.files.arrays import centred_only_where_constant
from flowformer.data.trajectories.records import Space, Trajectories

_LEAST_STD = 1e-6  # added to every deviation, as published

ConstantFeatures = Literal["centred", "published"]
Actions = Float[np.ndarray, "*batch dims"] | Int64[np.ndarray, " *batch"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DecisionPreprocessing:
    """Standardised observations, scaled returns, and actions in (-1, 1) where they have bounds.

    Attributes:
        state_mean: subtracted from observations.
        state_std: that divides them then.
        return_scale: that divides returns, 1,000 in the published runs.
        action_space: of the environment.
    """

    state_mean: Float64[np.ndarray, " _features"]
    state_std: Float64[np.ndarray, " _features"]
    return_scale: float
    action_space: Space

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: mean and deviation differ in shape, or are no finite numbers; a deviation or
                the scale is not positive.
        """
        if self.state_mean.shape != self.state_std.shape:
            raise ValueError(
                "expected state_mean and state_std of the same features, got "
                f"{len(self.state_mean)} and {len(self.state_std)}"
            )
        if not (np.isfinite(self.state_mean).all() and np.isfinite(self.state_std).all()):
            raise ValueError("state_mean and state_std must be finite")
        if not (self.state_std > 0).all() or not self.return_scale > 0:
            raise ValueError(
                "state_std and return_scale must be positive, got "
                f"{self.state_std.min(initial=np.inf)} at least and {self.return_scale}"
            )

    @classmethod
    def fit(
        cls,
        trajectories: Trajectories,
        *,
        return_scale: float,
        constant_features: ConstantFeatures = "centred",
    ) -> "DecisionPreprocessing":
        """Takes mean and deviation from all steps of a data set.

        Args:
            trajectories: the data set.
            return_scale: that divides returns.
            constant_features: what divides features that do not vary: "centred" by 1, so that no
                more is taken off them than their value; "published" by 1e-6, so that 0.01 more
                than in the data is 10,000.
        """
        observations = trajectories.observations
        std = observations.std(0, dtype=np.float64) + _LEAST_STD
        if constant_features == "centred":
            std = centred_only_where_constant(std, observations.min(0), observations.max(0))
        return cls(
            state_mean=observations.mean(0, dtype=np.float64),
            state_std=std,
            return_scale=return_scale,
            action_space=trajectories.action_space,
        )

    @property
    def features(self) -> int:
        """Of an observation."""
        return len(self.state_mean)

    def states(self, observations: Float[np.ndarray, "*b f"]) -> Float32[np.ndarray, "*b f"]:
        """Observations as the model reads them: (observation - mean) / deviation."""
        return ((observations - self.state_mean) / self.state_std).astype(np.float32)

    def returns(self, returns: Float[np.ndarray, "*b"]) -> Float32[np.ndarray, "*b"]:
        """Returns as the model reads them."""
        return (returns / self.return_scale).astype(np.float32)

    def to_model(self, actions: Actions) -> Actions:
        """The environment's actions as the model has them.

            2 · (action - low) / (high - low) - 1

        where the space has both bounds; as they are otherwise.
        """
        if not self.action_space.bounded:
            return actions
        low, high = self.action_space.bounds
        return 2 * (actions - low) / (high - low) - 1

    def to_environment(self, actions: Actions) -> Actions:
        """The model's actions as the environment takes them, clipped to its bounds.

        The other way of `to_model`.
        """
        if self.action_space.n is not None:
            return actions
        low, high = self.action_space.bounds
        if self.action_space.bounded:
            actions = low + (actions + 1) / 2 * (high - low)
        return np.clip(actions, low, high)

    def record(self) -> dict[str, Any]:
        """Its values, as JSON can hold them."""
        return {
            "state_mean": self.state_mean.tolist(),
            "state_std": self.state_std.tolist(),
            "return_scale": self.return_scale,
            "action_space": self.action_space.record(),
        }

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "DecisionPreprocessing":
        """Reads what `record` gave, after a way through JSON."""
        return cls(
            state_mean=np.array(record["state_mean"], np.float64),
            state_std=np.array(record["state_std"], np.float64),
            return_scale=record["return_scale"],
            action_space=Space.of(record["action_space"]),
        )
