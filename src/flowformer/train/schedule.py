"""Training by steps: the learning rate of each, and the measurements between them; no torch."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from flowformer.serialization import check_types
from flowformer.train.config import ComputeConfig, require

Schedule = Literal["constant", "cosine", "inverse-sqrt", "rsqrt"]


@dataclass(frozen=True, kw_only=True)
class ScheduledOptimizerConfig:
    """How the parameters move.

    Attributes:
        name: adam, its weight decay added to the gradient; or adamw, decoupled from it.
        learning_rate: the highest of the schedule; of rsqrt, what it is divided from.
        schedule: constant; cosine falls to `floor`; inverse-sqrt falls with the square root of the
            step. Each rises linearly over the warm-up first. rsqrt does too, and is the rate over
            the square root of the step, or of the warm-up while that lasts (Long Range Arena's).
        warmup: steps until the rate is at its highest.
        warmup_from: rate of the first step.
        floor: what cosine falls to, as a part of the highest rate.
        betas: Adam's decay rates of the two moments.
        epsilon: what Adam adds to the root of the second.
        weight_decay: of the matrices of a language or image model, whose biases, norms and
            embeddings have none; of all parameters of a classifier of sequences, as published.
        gradient_clip: largest norm of the whole gradient; None leaves it alone.
    """

    name: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 6e-4
    schedule: Schedule = "cosine"
    warmup: int = 0
    warmup_from: float = 1e-7
    floor: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self)
        require("learning_rate", self.learning_rate, "above 0", lambda v: v > 0)
        require(
            "epsilon", self.epsilon, "between 1.2e-38 and 1e+18", lambda v: 1.2e-38 <= v <= 1e18
        )
        for name in ("warmup", "warmup_from", "weight_decay"):
            require(name, getattr(self, name), "at least 0", lambda v: v >= 0)
        require("floor", self.floor, "in [0, 1]", lambda v: 0 <= v <= 1)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")
        if self.gradient_clip is not None:
            require("gradient_clip", self.gradient_clip, "above 0", lambda v: v > 0)

    def rate_at(self, step: int, steps: int) -> float:
        """Returns the learning rate of an optimizer step, as a part of `learning_rate`.

        Args:
            step: counted from 0.
            steps: of the whole training.
        """
        warmup = max(self.warmup, 1)
        if self.schedule == "rsqrt":
            return min(1.0, step / warmup) / math.sqrt(max(step, warmup))
        if step < self.warmup:
            start = self.warmup_from / self.learning_rate
            return start + (1 - start) * step / self.warmup
        if self.schedule == "inverse-sqrt":
            return math.sqrt(warmup / max(step, 1))
        if self.schedule == "cosine":
            done = (step - self.warmup) / max(1, steps - self.warmup)
            fallen = (1 - math.cos(math.pi * min(1.0, done))) / 2
            return 1 - (1 - self.floor) * fallen
        return 1.0


@dataclass(frozen=True, kw_only=True)
class StepsConfig(ComputeConfig):
    """How long a training by steps is.

    Attributes:
        steps: of the optimizer.
        evaluate_every: steps between two measurements on the validation part, each with a
            checkpoint; it divides `steps`.
    """

    round_name: ClassVar[str] = "measurement"

    steps: int = 5000
    evaluate_every: int = 250

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        super().__post_init__()
        for name in ("steps", "evaluate_every"):
            require(name, getattr(self, name), "at least 1", lambda v: v >= 1)
        if self.steps % self.evaluate_every:
            raise ValueError(
                f"evaluate_every must divide steps, got {self.evaluate_every} and {self.steps}"
            )

    @property
    def rounds(self) -> int:
        """The measurements."""
        return self.steps // self.evaluate_every
