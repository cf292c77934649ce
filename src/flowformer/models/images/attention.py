"""The attention of an image model's layers: the quantities that its pictures show."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from flowformer.models.images.model import Grid, VisionClassifier
from flowformer.nn import FlowMixer, ProjectedMixer, TransformerBlock
from flowformer.ops import FlowMap

Sink = Grid | Literal["class"]  # a pixel (row, column), or the class token


class LayerAttention(NamedTuple):
    """The attention of one layer to a batch of images of n tokens, a class token first.

    Attributes:
        stage: number of the layer's stage, from 0.
        block: number of the layer in the stage, from 0.
        grid: height and width of the image, in tokens.
        implied: W_i of out_i = Σ_j W_ij v_j for the chosen sink i. ``[b, h, n]``.
        flow: source competition and sink allocation ``[b, n, h]`` of Flow-Attention; None for
            another mixer.
    """

    stage: int
    block: int
    grid: Grid
    implied: Float[Tensor, "b h n"]
    flow: FlowMap | None


@torch.no_grad()
def layer_attentions(
    model: VisionClassifier, images: Float[Tensor, "b c h w"], *, sink: Sink | None = None
) -> list[LayerAttention]:
    """Return the attention of every layer while the model classifies the images.

    Args:
        model: the model, in evaluation.
        images: normalised as in training.
        sink: the pixel whose token receives (in every stage the token that covers it); "class"
            for the class token; None for the pixel in the middle.

    Raises:
        ValueError: the model is in training, the pixel is outside the images, there is no class
            token, or an error of the model itself.
        NotImplementedError: the mixer's output is not linear in its values.

    Examples:
        >>> import torch
        >>> from flowformer.models import VisionClassifier, VisionModelConfig
        >>> from flowformer.models.images.attention import layer_attentions
        >>> config = VisionModelConfig(dims=(16,), depths=(2,), num_heads=(2,))
        >>> model = VisionClassifier(config, image_size=32, num_classes=10).eval()
        >>> [layer.grid for layer in layer_attentions(model, torch.randn(1, 3, 32, 32))]
        [(8, 8), (8, 8)]
    """
    if model.training:
        raise ValueError("expected a model in evaluation: call model.eval(), for dropout is drawn")
    size = images.shape[-2], images.shape[-1]
    pixel = (size[0] // 2, size[1] // 2) if sink is None else sink
    _check_sink(model, size, pixel)
    layers = []
    for stage, block, mixer, x in _mixer_inputs(model, images):
        stride = model.config.patch_size * 2**stage
        grid = size[0] // stride, size[1] // stride
        token = 0
        if pixel != "class":
            before = x.shape[1] - math.prod(grid)
            token = before + pixel[0] // stride * grid[1] + pixel[1] // stride
        flow = mixer.flow_map(x) if isinstance(mixer, FlowMixer) else None
        layers.append(LayerAttention(stage, block, grid, mixer.implied_row(x, token), flow))
    return layers


_Seen = tuple[int, int, ProjectedMixer, Tensor]  # stage, block, its mixer, the mixer's input


def _mixer_inputs(model: VisionClassifier, images: Tensor) -> list[_Seen]:
    seen: list[_Seen] = []

    def watch(stage: int, number: int, mixer: ProjectedMixer) -> RemovableHandle:
        def note(_mixer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append((stage, number, mixer, inputs[0]))

        return mixer.register_forward_pre_hook(note)

    handles = []
    for stage, blocks in enumerate(model.stages):
        assert isinstance(blocks, nn.ModuleList)
        for number, block in enumerate(blocks):
            assert isinstance(block, TransformerBlock)
            assert isinstance(block.mixer, ProjectedMixer)
            handles.append(watch(stage, number, block.mixer))
    try:
        model.encode(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _check_sink(model: VisionClassifier, size: Grid, sink: Sink) -> None:
    if sink == "class":
        if model.cls is None:
            raise ValueError(
                "expected a sink in the image: this model has no class token, it takes the mean"
            )
    elif not (0 <= sink[0] < size[0] and 0 <= sink[1] < size[1]):
        raise ValueError(
            f"expected a sink (row, column) inside {size[0]} × {size[1]} pixels, got {sink}"
        )
