"""What the layers of an image model attend to, layer by layer and on their own grids."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from flowformer.models.images.attention import LayerAttention, Sink, layer_attentions
from flowformer.models.images.config import VisionModelConfig
from flowformer.models.images.model import VisionClassifier
from flowformer.nn import MIXERS

STAGES = VisionModelConfig(
    patch_size=2, dims=(8, 16), depths=(1, 2), num_heads=(2, 4), layer_scale=0.5
)
DEIT = replace(STAGES, dims=(16,), depths=(2,), num_heads=(4,), pooling="cls")
DRAWN = [
    name
    for name, mixer in MIXERS.items()
    if mixer.capabilities.bidirectional
    and (mixer.kind.linear_in_values or mixer.kind.weighted is not None)
]


def build(config: VisionModelConfig) -> VisionClassifier:
    torch.manual_seed(1)
    return VisionClassifier(config, image_size=16, num_classes=7).double().eval()


def look(config: VisionModelConfig, *, sink: Sink | None = None) -> list[LayerAttention]:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)).double()
    return layer_attentions(build(config), images, sink=sink)


@pytest.mark.parametrize("mixer", DRAWN)
def test_every_layer_is_seen_on_its_own_grid(mixer: str) -> None:
    layers = look(replace(STAGES, mixer=mixer))
    assert [(layer.stage, layer.block) for layer in layers] == [(0, 0), (1, 0), (1, 1)]
    assert [layer.grid for layer in layers] == [(8, 8), (4, 4), (4, 4)]
    assert [layer.implied.shape for layer in layers] == [(3, 2, 64), (3, 4, 16), (3, 4, 16)]
    assert [layer.flow is None for layer in layers] == [not mixer.startswith("flow")] * 3


def first_block(model: VisionClassifier) -> Any:
    stage = model.stages[0]
    assert isinstance(stage, nn.ModuleList)
    return stage[0]


def test_the_first_layer_is_that_of_its_mixer_alone() -> None:
    model, images = build(STAGES), torch.randn(1, 3, 16, 16).double()
    layer = layer_attentions(model, images, sink=(5, 9))[0]
    x = model.downsamples[0](images).flatten(2).transpose(1, 2) + model.positions
    block = first_block(model)
    x = block.norm1(x)
    torch.testing.assert_close(layer.implied, block.mixer.implied_row(x, 2 * 8 + 4))
    assert layer.flow is not None
    torch.testing.assert_close(layer.flow.source_competition, block.mixer.flow_map(x)[0])


def test_a_sink_is_the_token_that_covers_the_pixel_and_the_middle_by_default() -> None:
    for layer, middle in zip(look(STAGES, sink=(8, 8)), look(STAGES), strict=True):
        torch.testing.assert_close(layer.implied, middle.implied)
    corner, same, other = (look(STAGES, sink=sink)[0].implied for sink in ((0, 0), (1, 1), (0, 2)))
    torch.testing.assert_close(corner, same)
    assert not torch.equal(corner, other)


def test_a_class_token_stands_before_the_grid_and_can_be_the_sink() -> None:
    model, images = build(DEIT), torch.randn(1, 3, 16, 16).double()
    layers = layer_attentions(model, images)
    assert [layer.implied.shape for layer in layers] == [(1, 4, 65)] * 2
    assert model.cls is not None
    x = model.downsamples[0](images).flatten(2).transpose(1, 2)
    x = torch.cat((model.cls.expand(1, 1, -1), x), 1) + model.positions
    block = first_block(model)
    sinks: dict[Sink, int] = {"class": 0, (0, 0): 1, (15, 15): 64}
    for sink, token in sinks.items():
        layer = layer_attentions(model, images, sink=sink)[0]
        torch.testing.assert_close(layer.implied, block.mixer.implied_row(block.norm1(x), token))


def test_looking_changes_nothing() -> None:
    model, images = build(STAGES), torch.randn(1, 3, 16, 16).double()
    before = model(images).logits
    layer_attentions(model, images)
    torch.testing.assert_close(model(images).logits, before, rtol=0, atol=0)
    hooks = [module._forward_pre_hooks for module in model.modules()]
    assert not any(hooks)


def test_what_cannot_be_drawn_is_refused() -> None:
    model, images = build(STAGES), torch.randn(1, 3, 16, 16).double()
    with pytest.raises(ValueError, match=r"inside 16 × 16 pixels, got \(16, 0\)"):
        layer_attentions(model, images, sink=(16, 0))
    with pytest.raises(ValueError, match="no class token"):
        layer_attentions(model, images, sink="class")
    with pytest.raises(NotImplementedError, match="mixer yoso"):
        look(replace(STAGES, mixer="yoso"))
    with pytest.raises(ValueError, match="in evaluation"):
        layer_attentions(model.train(), images)
