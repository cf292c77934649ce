"""The optimizers that move a model's parameters, and their schedules."""

from collections.abc import Mapping
from typing import Any, cast

import torch

from flowformer.train.config import OptimizerConfig, ScheduledOptimizerConfig

OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    "radam": torch.optim.RAdam,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def build_constant(parameters: Any, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build an optimizer with one learning rate."""
    kind: Any = OPTIMIZERS[config.name]
    return kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def build_scheduled(parameters: Any, config: ScheduledOptimizerConfig, *, steps: int) -> Any:
    """Build an optimizer and its schedule by steps.

    Args:
        parameters: the parameters, or groups of them; a group keeps a weight decay of its own.
        config: how they move.
        steps: steps of the optimizer, all together.
    """
    kind: Any = OPTIMIZERS[config.name]
    optimizer = kind(
        parameters,
        lr=config.learning_rate,
        betas=cast(tuple[float, float], config.betas),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: config.rate_at(step, steps)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
