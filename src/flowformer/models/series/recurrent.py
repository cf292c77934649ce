"""The LSTM classifier of the paper's time-series table (Hochreiter and Schmidhuber, 1997)."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flowformer.models.cross_entropy import class_cross_entropy
from flowformer.models.inputs import check_labels, last_real
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.transformer import TimeSeriesOutput, checked_series


class LSTMClassifier(nn.Module):
    """Stacked LSTM layers over the raw series; a linear layer reads the last real time step.

    Of the configuration it reads `dim` (width of the state), `num_layers` and `dropout` (between
    the layers, and before the last).

    Args:
        config: the architecture.
        channels: features of a time step.
        num_classes: number of logits.
        max_length: longest series.
    """

    def __init__(
        self, config: TimeSeriesModelConfig, *, channels: int, num_classes: int, max_length: int
    ) -> None:
        """Create the layers."""
        super().__init__()
        self.config = config
        self.channels, self.max_length = channels, max_length
        self.length_limit: int | None = max_length
        self.num_classes = num_classes
        # torch warns of dropout between layers where there is one layer.
        between = config.dropout if config.num_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            channels, config.dim, config.num_layers, batch_first=True, dropout=between
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, num_classes)

    def forward(
        self,
        inputs: Float[Tensor, "b t c"],
        attention_mask: Bool[Tensor, "b t"] | None = None,
        labels: Int[Tensor, " b"] | None = None,
    ) -> TimeSeriesOutput:
        """Classify the series.

        Args:
            inputs: the series, each from place 0 on.
            attention_mask: real time steps (True); None when all are.
            labels: the classes, for the loss.

        Raises:
            ValueError: other channels than at construction, a series longer than max_length, or
                labels that are none of the classes.
        """
        inputs = checked_series(
            inputs, attention_mask, channels=self.channels, max_length=self.length_limit
        )
        if labels is not None:
            check_labels(labels, inputs.shape[:1], self.num_classes)
        states, _ = self.lstm(inputs)
        logits = self.head(self.dropout(last_real(states, attention_mask)))
        loss = None if labels is None else class_cross_entropy(logits, labels)
        return TimeSeriesOutput(logits, loss)
