"""The regressor of time series: an encoder of the classifiers, with a head that gives a number."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.model import SeriesClassifier, build_classifier


class RegressorOutput(NamedTuple):
    """The predictions of a regressor, and the mean squared error if labels were given."""

    predictions: Float[Tensor, " b"]
    loss: Float[Tensor, ""] | None


class TimeSeriesRegressor(nn.Module):
    """A number for each series, by any encoder that classifies series.

    The published `FlowformerClassiregressor` too is one encoder with either head.

    Args:
        config: the architecture.
        channels: features of a time step.
        max_length: longest series.

    Attributes:
        encoder: the classifier of the configuration with one logit, which is the prediction.

    Examples:
        >>> import torch
        >>> from flowformer.models import TimeSeriesModelConfig, TimeSeriesRegressor
        >>> config = TimeSeriesModelConfig(dim=16, num_heads=2, feedforward=32)
        >>> model = TimeSeriesRegressor(config, channels=3, max_length=50)
        >>> predictions, loss = model(torch.randn(4, 50, 3), labels=torch.randn(4))
        >>> predictions.shape
        torch.Size([4])
    """

    def __init__(self, config: TimeSeriesModelConfig, *, channels: int, max_length: int) -> None:
        """Create the encoder.

        Raises:
            ValueError: what the encoder raises.
        """
        super().__init__()
        self.encoder: SeriesClassifier = build_classifier(
            config, channels=channels, num_classes=1, max_length=max_length
        )

    @property
    def length_limit(self) -> int | None:
        """The longest series that it takes; None for any length."""
        return self.encoder.length_limit

    def forward(
        self,
        inputs: Float[Tensor, "b t c"],
        attention_mask: Bool[Tensor, "b t"] | None = None,
        labels: Float[Tensor, " b"] | None = None,
    ) -> RegressorOutput:
        """Predict the numbers of the series.

        Args:
            inputs: the series, each from place 0 on.
            attention_mask: real time steps (True); None when all are.
            labels: the numbers, for the loss.

        Raises:
            ValueError: other channels than at construction, a series longer than length_limit, or
                labels of another shape.
        """
        predictions = self.encoder(inputs, attention_mask).logits[:, 0]
        if labels is None:
            return RegressorOutput(predictions, None)
        if labels.shape != predictions.shape or not labels.is_floating_point():
            raise ValueError(
                f"expected labels of floating point [{len(predictions)}], one a series, got "
                f"{labels.dtype} {list(labels.shape)}"
            )
        wide = torch.promote_types(predictions.dtype, torch.float32)
        return RegressorOutput(predictions, F.mse_loss(predictions.to(wide), labels.to(wide)))
