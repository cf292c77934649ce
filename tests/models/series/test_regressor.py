"""The head for regression, on every encoder."""

import pytest
import torch

from flowformer.models import TimeSeriesModelConfig, TimeSeriesRegressor
from flowformer.models.series.model import ENCODERS

SMALL = {"dim": 16, "num_heads": 2, "num_layers": 1, "feedforward": 16}


def build(**options) -> TimeSeriesRegressor:
    config = TimeSeriesModelConfig(**SMALL, **options)
    return TimeSeriesRegressor(config, channels=3, max_length=9).eval()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_loss_is_the_mean_squared_error_of_the_predictions(encoder):
    model, inputs, labels = build(encoder=encoder), torch.randn(4, 9, 3), torch.randn(4)
    predictions, loss = model(inputs, labels=labels)
    assert predictions.shape == (4,)
    assert loss is not None
    torch.testing.assert_close(loss, ((predictions - labels) ** 2).mean())
    assert model(inputs).loss is None
    assert torch.equal(predictions, model.encoder(inputs).logits[:, 0])


def test_padding_changes_nothing_and_the_limit_is_that_of_the_encoder():
    model = build(pooling="mean", positions="sinusoidal")
    assert model.length_limit is None
    assert build().length_limit == 9
    inputs = torch.randn(1, 6, 3)
    padded = torch.cat([inputs, torch.full((1, 5, 3), torch.nan)], 1)
    mask = torch.arange(11)[None] < 6
    torch.testing.assert_close(model(padded, mask).predictions, model(inputs).predictions)


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(4, dtype=torch.long)], ids=str)
def test_labels_of_another_shape_or_type_are_refused(labels):
    with pytest.raises(ValueError, match=r"expected labels of floating point \[4\], one a series"):
        build()(torch.randn(4, 9, 3), labels=labels)


def test_half_precision_has_a_float32_loss():
    model = build().to(torch.bfloat16)
    inputs, labels = torch.randn(4, 9, 3, dtype=torch.bfloat16), torch.randn(4)
    assert model(inputs, labels=labels).loss.dtype == torch.float32
