"""The paper's other encoders of series: the same call as the Flowformer's, and equal promises."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.model import (
    ENCODERS,
    CausalConvolution,
    DilatedConvClassifier,
    LSTMClassifier,
    SeriesClassifier,
    build_classifier,
)

OTHERS = ["lstm", "dilated-conv"]


def build(encoder: str, **settings: int | float) -> SeriesClassifier:
    config = TimeSeriesModelConfig(
        encoder=encoder,  # type: ignore[arg-type] - a parameter of the tests is any string
        **{"dim": 8, "num_heads": 2, "feedforward": 16, **settings},  # type: ignore[arg-type] - numbers for fields
    )
    return build_classifier(config, channels=3, num_classes=4, max_length=20).double().eval()


def series(*lengths: int, padding: float = torch.nan) -> tuple[Tensor, Tensor]:
    inputs = torch.full((len(lengths), 20, 3), padding, dtype=torch.float64)
    mask = torch.arange(20) < torch.tensor(lengths)[:, None]
    inputs[mask] = torch.randn(sum(lengths), 3, dtype=torch.float64)
    return inputs, mask


@pytest.mark.parametrize("encoder", ENCODERS)
class TestEveryEncoder:
    def test_a_padded_series_gives_what_it_gives_alone(self, encoder: str) -> None:
        model = build(encoder)
        inputs, mask = series(20, 13, 1)
        logits = model(inputs, mask).logits
        for row, length in enumerate((20, 13, 1)):
            alone = model(inputs[row : row + 1, :length]).logits
            torch.testing.assert_close(logits[row : row + 1], alone)

    def test_nan_in_the_padding_reaches_no_gradient(self, encoder: str) -> None:
        model = build(encoder)
        inputs, mask = series(20, 13)
        loss = model(inputs.requires_grad_(), mask, torch.tensor([1, 3])).loss
        loss.backward()
        assert inputs.grad is not None
        assert not inputs.grad[~mask].any()
        assert inputs.grad[mask].any()
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any()

    def test_the_loss_is_the_mean_cross_entropy(self, encoder: str) -> None:
        model, labels = build(encoder), torch.tensor([0, 2])
        logits, loss = model(*series(20, 9), labels)
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels))

    def test_a_whole_series_needs_no_mask(self, encoder: str) -> None:
        model = build(encoder)
        inputs, mask = series(20, 20)
        torch.testing.assert_close(model(inputs).logits, model(inputs, mask).logits)

    def test_another_series_is_refused(self, encoder: str) -> None:
        model = build(encoder)
        with pytest.raises(ValueError, match="expected 3 channels, got 2"):
            model(torch.randn(1, 5, 2, dtype=torch.float64))
        with pytest.raises(ValueError, match=r"at most 20 time steps \(max_length\), got 21"):
            model(torch.randn(1, 21, 3, dtype=torch.float64))

    def test_dropout_acts_in_training_alone(self, encoder: str) -> None:
        model = build(encoder, dropout=0.5)
        inputs, mask = series(20, 13)
        assert model(inputs, mask).logits.equal(model(inputs, mask).logits)
        model.train()
        assert not model(inputs, mask).logits.equal(model(inputs, mask).logits)


@pytest.mark.usefixtures("shape_checks_off")  # they would refuse the unknown name first
def test_an_unknown_encoder_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'gru': expected one of transformer, lstm, dilated-conv"):
        build("gru")


class TestLSTM:
    def test_is_torchs_lstm_read_at_the_last_step(self) -> None:
        model = build("lstm", num_layers=2)
        assert isinstance(model, LSTMClassifier)
        inputs, mask = series(13, 20, 4)
        packed = nn.utils.rnn.pack_padded_sequence(
            inputs, mask.sum(1), batch_first=True, enforce_sorted=False
        )
        _, (hidden, _) = model.lstm(packed)
        torch.testing.assert_close(model(inputs, mask).logits, model.head(hidden[-1]))

    def test_one_layer_has_no_dropout_between_layers(self) -> None:
        model = build("lstm", num_layers=1, dropout=0.3)  # torch would warn, an error here
        assert isinstance(model, LSTMClassifier)
        assert model.lstm.dropout == 0


class TestDilatedConv:
    def test_has_the_published_sizes(self) -> None:
        model = build("dilated-conv", dim=40, num_layers=10)
        assert isinstance(model, DilatedConvClassifier)
        convolutions = [each for each in model.modules() if isinstance(each, CausalConvolution)]
        assert [each.filters.dilation[0] for each in convolutions[::2]] == [2**i for i in range(11)]
        assert {each.filters.out_channels for each in convolutions[:-2]} == {40}
        assert model.head.in_features == 160

    def test_a_convolution_reads_the_present_and_the_past(self) -> None:
        convolution = CausalConvolution(1, 1, dilation=3).double()
        x = torch.randn(1, 1, 12, dtype=torch.float64)
        weight, bias = convolution.filters.weight[0, 0], convolution.filters.bias
        assert bias is not None
        padded = F.pad(x, (6, 0))[0, 0]
        expected = sum(weight[tap] * padded[3 * tap : 3 * tap + 12] for tap in range(3)) + bias
        torch.testing.assert_close(convolution(x)[0, 0], expected)

    def test_no_block_reads_the_future(self) -> None:
        model = build("dilated-conv", num_layers=3)
        assert isinstance(model, DilatedConvClassifier)
        x = torch.randn(1, 3, 20, dtype=torch.float64)
        changed = x.clone()
        changed[..., 11:] = 7
        before, after = model.blocks(x), model.blocks(changed)
        assert before[..., :11].equal(after[..., :11])
        assert not before[..., 11].allclose(after[..., 11])
