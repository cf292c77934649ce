"""The classifiers of series by the name of their encoder, all with the same call."""

from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.convolutional import DilatedConvClassifier
from flowformer.models.series.recurrent import LSTMClassifier
from flowformer.models.series.transformer import TimeSeriesClassifier

SeriesClassifier = TimeSeriesClassifier | LSTMClassifier | DilatedConvClassifier

ENCODERS: dict[str, type[SeriesClassifier]] = {
    "transformer": TimeSeriesClassifier,
    "lstm": LSTMClassifier,
    "dilated-conv": DilatedConvClassifier,
}


def build_classifier(
    config: TimeSeriesModelConfig, *, channels: int, num_classes: int, max_length: int
) -> SeriesClassifier:
    """The classifier with the encoder that the configuration names.

    Args:
        config: the architecture.
        channels: features of a time step.
        num_classes: number of logits.
        max_length: longest series.

    Raises:
        ValueError: there is no such encoder, or a setting means nothing to it.
    """
    if config.encoder not in ENCODERS:
        raise ValueError(
            f"unknown encoder {config.encoder!r}: expected one of {', '.join(ENCODERS)}"
        )
    return ENCODERS[config.encoder](
        config, channels=channels, num_classes=num_classes, max_length=max_length
    )
