"""The time-series classifier: the published one exactly, and one that padding cannot change."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowformer.models.series.model import TimeSeriesClassifier, TimeSeriesModelConfig
from flowformer.nn import FlowMixer

SMALL = TimeSeriesModelConfig(dim=16, num_heads=4, feedforward=24)


def build(**changes: Any) -> TimeSeriesClassifier:
    torch.manual_seed(1)
    config = replace(SMALL, **changes)
    return TimeSeriesClassifier(config, channels=5, num_classes=6, max_length=21).double().eval()


def gradients(model: TimeSeriesClassifier) -> list[Tensor]:
    """Of every parameter; a missing one fails."""
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def parameters_of(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("param."): value
        for name, value in values.items()
        if name.startswith("param.")
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_published_parameters_give_the_published_logits(
    golden, dtype: torch.dtype, tolerance: float
) -> None:
    values = golden("models/timeseries")
    model = build(padding="published").to(dtype)
    model.load_published_state_dict(parameters_of(values))
    logits, _ = model(values["input"].to(dtype), values["padding_mask"])
    error = (logits.double() - values["logits"]).abs().max() / values["logits"].abs().max()
    assert error <= tolerance


def test_published_padding_has_one_amount_whatever_was_given(golden) -> None:
    values = golden("models/timeseries")
    model = build(padding="published")
    model.load_published_state_dict(parameters_of(values))
    short = int(values["padding_mask"][0].sum())
    logits, _ = model(values["input"][:1, :short])
    torch.testing.assert_close(logits, values["logits"][:1])


def test_padding_takes_part_in_published_attention_only(golden) -> None:
    values = golden("models/timeseries")
    model = build(padding="masked")
    model.load_published_state_dict(parameters_of(values))
    logits, _ = model(values["input"], values["padding_mask"])
    full = values["padding_mask"].all(1)
    torch.testing.assert_close(logits[full], values["logits"][full])
    assert not torch.isclose(logits[~full], values["logits"][~full], rtol=1e-4).any()


@pytest.mark.parametrize("mixer", ["flow", "softmax", "linear", "gated", "flow-gated", "linformer"])
@pytest.mark.parametrize(
    "changes", [{"pooling": "flatten"}, {"pooling": "mean"}, {"kernel": 5}], ids=str
)
def test_neither_content_nor_amount_of_padding_changes_the_logits(
    mixer: str, changes: dict[str, Any]
) -> None:
    model = build(mixer=mixer, mixer_options={}, **changes)
    series = torch.randn(1, 9, 5).double()
    expected, _ = model(series)
    for length in (9, 10, 21):
        for content in (0.0, 1e6, float("nan")):
            inputs = torch.full((1, length, 5), content).double()
            inputs[:, :9] = series
            logits, loss = model(inputs, torch.arange(length)[None] < 9, torch.tensor([2]))
            torch.testing.assert_close(logits, expected)
            model.zero_grad()
            loss.backward()
            assert all(gradient.isfinite().all() for gradient in gradients(model))


@pytest.mark.parametrize("length", [1, 20, 21], ids="t{}".format)
def test_any_length_up_to_the_longest_is_classified(length: int) -> None:
    logits, loss = build()(torch.randn(3, length, 5).double())
    assert logits.shape == (3, 6)
    assert loss is None


def test_loss_is_the_mean_cross_entropy() -> None:
    model, labels = build(), torch.tensor([0, 5, 3])
    logits, loss = model(torch.randn(3, 21, 5).double(), labels=labels)
    torch.testing.assert_close(loss, -logits.log_softmax(-1)[range(3), labels].mean())


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "sinusoidal"},
        {"norm": "pre"},
        {"pooling": "mean"},
        {"mixer_options": {}},
        {"kernel": 3},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_setting_changes_the_function_and_trains(changes: dict[str, Any]) -> None:
    model, inputs = build(**changes), torch.randn(3, 21, 5).double()
    logits, loss = model(inputs, labels=torch.tensor([0, 1, 2]))
    loss.backward()
    assert all(gradient.any() for gradient in gradients(model))
    assert not logits.allclose(build()(inputs)[0])


@pytest.mark.parametrize("length", [21, 2])
def test_a_token_is_made_of_as_many_steps_as_the_kernel_says(length: int) -> None:
    model, inputs = build(kernel=5), torch.randn(1, length, 5).double()
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(inputs)
    weight, bias = (model.get_parameter(f"embedding.{name}") for name in ("weight", "bias"))
    around = torch.zeros(length + 4, 5).double()
    around[2:-2] = inputs[0]
    tokens = [bias + sum(weight[:, :, k] @ around[t + k] for k in range(5)) for t in range(length)]
    expected = model.positions(torch.stack(tokens)[None] * 4)
    torch.testing.assert_close(seen[0], expected)


def test_a_kernel_without_a_middle_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kernel must be odd, .* got 4"):
        build(kernel=4)


def test_flow_maps_are_those_of_each_layer() -> None:
    model, inputs = build(), torch.randn(2, 21, 5).double()
    mask = torch.arange(21).expand(2, 21) < torch.tensor([[21], [13]])
    maps = model.flow_maps(inputs, mask)
    assert len(maps) == 2
    x = model.positions(model.embedding(inputs) * 4)
    mixer = model.get_submodule("blocks.0.mixer")
    assert isinstance(mixer, FlowMixer)
    expected = mixer.flow_map(x, mask=mask)
    torch.testing.assert_close(maps[0].source_competition, expected.source_competition)
    torch.testing.assert_close(maps[0].sink_allocation, expected.sink_allocation)
    assert maps[1].source_competition.shape == (2, 21, 4)
    torch.testing.assert_close(
        maps[1].source_competition.sum(1), mask.sum(1, keepdim=True).double().expand(2, 4)
    )


def test_flow_maps_of_another_mixer_are_refused() -> None:
    with pytest.raises(TypeError, match="this model has 'softmax'"):
        build(mixer="softmax", mixer_options={}).flow_maps(torch.randn(1, 21, 5).double())


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 22, 5), "at most 21 time steps.*got 22"), ((1, 21, 4), "5 channels, got 4")],
    ids=["too-long", "other-channels"],
)
def test_inputs_of_another_size_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(torch.randn(*shape).double())


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize("name", ["pooling", "padding", "positions", "norm", "mixer"])
def test_settings_that_mean_nothing_list_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected one of|must be"):
        build(**{name: "unheard-of"})


class TestLoadingPublishedParameters:
    def test_every_problem_is_listed(self, golden) -> None:
        state = parameters_of(golden("models/timeseries"))
        del state["output_layer.bias"]
        state["output_layer.scale"] = torch.ones(6)
        state["project_inp.weight"] = torch.zeros(16, 4)
        with pytest.raises(ValueError, match="not the parameters of a published") as caught:
            build().load_published_state_dict(state)
        for line in (
            "missing: head.bias",
            "not known: output_layer.scale",
            r"project_inp.weight: expected (16, 5), got (16, 4)",
        ):
            assert line in str(caught.value)

    def test_nothing_is_loaded_when_something_is_wrong(self, golden) -> None:
        state = parameters_of(golden("models/timeseries"))
        del state["output_layer.bias"]
        model, untouched = build(), build()
        with pytest.raises(ValueError, match="missing"):
            model.load_published_state_dict(state)
        for name, value in untouched.state_dict().items():
            assert value.equal(model.state_dict()[name])

    def test_sinusoidal_places_are_computed_not_loaded(self, golden) -> None:
        state = parameters_of(golden("models/timeseries"))
        build(positions="sinusoidal").load_published_state_dict(state)

    def test_mean_pooling_has_no_published_parameters(self, golden) -> None:
        with pytest.raises(ValueError, match="pooling='flatten', got 'mean'"):
            build(pooling="mean").load_published_state_dict(
                parameters_of(golden("models/timeseries"))
            )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": -4}, "dim must be at least 1, got -4"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"feedforward": 0}, "feedforward must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, r"dropout must be in \[0, 1\), got nan"),
    ],
    ids=["width", "heads", "layers", "feed-forward", "all-dropped", "nan"],
)
def test_a_size_that_means_nothing_is_refused_at_once(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)
