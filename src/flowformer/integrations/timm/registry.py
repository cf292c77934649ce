"""The names under which timm makes the models, and what it is told about their data.

No parameters are published to download; a checkpoint of the published training is read with
`pretrained=True, pretrained_cfg_overlay={"file": PATH}`.
"""

import math
from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from flowformer.integrations.timm.modeling import FlowformerImageModel
from flowformer.models.presets import VISION_PRESETS
from flowformer.models.vision import resize_positions
from flowformer.models.vision_loading import rename_published

__all__: list[str] = []  # timm adds the names that it registers


def _data(pool_size: tuple[int, int]) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": pool_size,
        "crop_pct": 224 / 256,  # as the published training measures
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "model.downsamples.0",
        "classifier": "model.head",
        "license": "mit",
    }


default_cfgs = generate_default_cfgs(
    {
        "flowformer_hierarchical.untrained": _data((7, 7)),
        "flowformer_deit_tiny.untrained": _data((14, 14)),
        "flowformer_deit_small.untrained": _data((14, 14)),
        "flowformer_deit_base.untrained": _data((14, 14)),
    }
)


@register_model
def flowformer_hierarchical(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The Flowformer of the paper's table on ImageNet: four stages, 43.3M parameters."""
    return _create("flowformer_hierarchical", "hierarchical", pretrained, kwargs)


@register_model
def flowformer_deit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-Ti with Flow-Attention, 5.7M parameters."""
    return _create("flowformer_deit_tiny", "deit-tiny", pretrained, kwargs)


@register_model
def flowformer_deit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-S with Flow-Attention, 22.1M parameters."""
    return _create("flowformer_deit_small", "deit-small", pretrained, kwargs)


@register_model
def flowformer_deit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-B with Flow-Attention, 86.6M parameters."""
    return _create("flowformer_deit_base", "deit-base", pretrained, kwargs)


def _create(variant: str, preset: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    config = kwargs.pop("config", VISION_PRESETS[preset])
    stages = len(config.dims)
    default = tuple(range(stages)) if stages > 1 else 3  # timm: the last three of a DeiT
    return build_model_with_cfg(
        FlowformerImageModel,
        variant,
        pretrained,
        pretrained_filter_fn=_renamed,
        feature_cfg={"out_indices": kwargs.pop("out_indices", default), "feature_cls": "getter"},
        config=config,
        **kwargs,
    )


def _renamed(state_dict: Mapping[str, Any], model: FlowformerImageModel) -> dict[str, Tensor]:
    """Published parameters under the names here, positions for the size of the model."""
    state: Mapping[str, Tensor] = state_dict.get("model", state_dict)
    if "pos_embed" not in state:
        return dict(state)
    body = model.model
    given = {n: v for n, (_, v) in rename_published(state, stages=len(body.config.dims)).items()}
    table = given["positions"]
    side = math.isqrt(len(table))  # a class token makes it no square number, and changes no root
    if (side, side) != body.grid:
        given["positions"] = resize_positions(table, (side, side), body.grid)
    return {f"model.{name}": value for name, value in given.items()}
