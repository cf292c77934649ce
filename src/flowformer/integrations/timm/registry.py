"""The names under which timm makes the models, and the data that it is told of.

No parameters are published to download; a checkpoint of the published training, the weights of a
run of `flowformer train` and those that a model made here saved are read with
`pretrained=True, pretrained_cfg_overlay={"file": PATH}`.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from flowformer.config_json import from_plain
from flowformer.files import parse_json
from flowformer.integrations.timm.modeling import FlowformerImageModel
from flowformer.models.images.config import VISION_PRESETS, VisionModelConfig
from flowformer.models.images.model import VisionClassifier, resize_positions
from flowformer.models.published import expected_parameters, fitted, rename_images

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
        "flowformer_gated_hierarchical.untrained": _data((7, 7)),
        "flowformer_gated_deit_tiny.untrained": _data((14, 14)),
        "flowformer_gated_deit_small.untrained": _data((14, 14)),
        "flowformer_gated_deit_base.untrained": _data((14, 14)),
    }
)


@register_model
def flowformer_hierarchical(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create the Flowformer of the paper's table on ImageNet: four stages, 43.3M parameters.

    Examples:
        >>> import timm
        >>> import flowformer.integrations.timm
        >>> from flowformer.models import VisionModelConfig
        >>> tiny = VisionModelConfig(dims=(16, 32), depths=(1, 1), num_heads=(2, 2))
        >>> model = timm.create_model("flowformer_hierarchical", config=tiny, num_classes=10)
        >>> model.num_classes
        10
    """
    return _create("flowformer_hierarchical", "hierarchical", pretrained, kwargs)


@register_model
def flowformer_deit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create DeiT-Ti with Flow-Attention, 5.7M parameters."""
    return _create("flowformer_deit_tiny", "deit-tiny", pretrained, kwargs)


@register_model
def flowformer_deit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create DeiT-S with Flow-Attention, 22.1M parameters."""
    return _create("flowformer_deit_small", "deit-small", pretrained, kwargs)


@register_model
def flowformer_deit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create DeiT-B with Flow-Attention, 86.6M parameters."""
    return _create("flowformer_deit_base", "deit-base", pretrained, kwargs)


@register_model
def flowformer_gated_hierarchical(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create the four stages of `flowformer_hierarchical` with gated linear attention."""
    return _create_gated("flowformer_gated_hierarchical", "hierarchical", pretrained, kwargs)


@register_model
def flowformer_gated_deit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create DeiT-Ti with gated linear attention."""
    return _create_gated("flowformer_gated_deit_tiny", "deit-tiny", pretrained, kwargs)


@register_model
def flowformer_gated_deit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create DeiT-S with gated linear attention."""
    return _create_gated("flowformer_gated_deit_small", "deit-small", pretrained, kwargs)


@register_model
def flowformer_gated_deit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create DeiT-B with gated linear attention."""
    return _create_gated("flowformer_gated_deit_base", "deit-base", pretrained, kwargs)


def _create_gated(variant: str, preset: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """Create a model whose mixer is `gated`, unless another is given, such as `flow-gated`."""
    return _create(variant, preset, pretrained, {"mixer": "gated", **kwargs})


def _create(variant: str, preset: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    config = kwargs.pop("config", VISION_PRESETS[preset])
    stages = len(config.dims)
    default = tuple(range(stages)) if stages > 1 else 3  # timm: the last three of a DeiT
    return build_model_with_cfg(
        FlowformerImageModel,
        variant,
        pretrained,
        pretrained_filter_fn=_adapted,
        feature_cfg={"out_indices": kwargs.pop("out_indices", default), "feature_cls": "getter"},
        config=config,
        **kwargs,
    )


def _adapted(state_dict: Mapping[str, Any], model: FlowformerImageModel) -> dict[str, Tensor]:
    """Return a file's parameters under the names here, positions for the size of the model.

    The file is of the published training, of a run of `flowformer train`, or of a model made here;
    for gated attention, one of a mixer without its parts too, which then change nothing at first.
    What timm itself adapts is left to it: a head of other classes, and the channels of an image.

    Raises:
        ValueError: parameters are missing, left over, or of another shape, which are all listed;
            the run was of another mixer or other heads; or the positions are of no square image and
            of another size.
    """
    state: Mapping[str, Tensor] = state_dict.get("model", state_dict)
    body = model.model
    given = (
        rename_images(state, stages=len(body.config.dims))
        if "pos_embed" in state
        else {name.removeprefix("model."): (name, value) for name, value in state.items()}
    )
    if "positions" in given:
        name, table = given["positions"]
        # One saved by timm's model itself may be of an oblong image, and is then of this one.
        same = name == "model.positions" and len(table) == len(body.positions)
        given["positions"] = name, table if same else _resized(table, body)
    own = expected_parameters(body, given)
    goes_on = len(own) < len(body.state_dict())
    own = {name: value for name, value in own.items() if name not in _HEAD}
    head = {name: given.pop(name)[1] for name in _HEAD if name in given}
    # timm goes by its defaults, not by the file: of other classes it drops the head.
    told: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    _require_own_settings(told.get("file"), body.config, goes_on=goes_on)
    told["num_classes"] = len(head["head.weight"]) if "head.weight" in head else 0
    stem = given[_STEM][1] if _STEM in given else own[_STEM]
    if stem.ndim == 4 and stem[:, :1].shape == own[_STEM][:, :1].shape:
        told["input_size"] = (stem.shape[1], *told.get("input_size", (3, 224, 224))[1:])
        own[_STEM] = stem
    found = fitted(own, given, what="an image model of this architecture")
    if goes_on:
        warnings.warn(
            f"the file has none of the parts of {body.config.mixer!r}: they begin so that they "
            "change nothing, and must be trained",
            UserWarning,
            stacklevel=2,
        )
    if not head and model.num_classes:
        warnings.warn(
            f"the file has no head: that of the model, for {model.num_classes} classes, is new and "
            "must be trained",
            UserWarning,
            stacklevel=2,
        )
    return {f"model.{name}": value for name, value in (found | head).items()}


def _require_own_settings(file: str | None, config: VisionModelConfig, *, goes_on: bool) -> None:
    """Refuse a run's weights in a model that would compute something else with them.

    Of one that goes on with another mixer's, all but the heads may differ.
    """
    folder = Path(file or "").parent
    record = folder / "config.json"
    if file is None or Path(file).name != "weights.safetensors" or not record.is_file():
        return
    try:
        there = parse_json(record.read_text(encoding="utf-8"))["config"]["model"]
        there = from_plain(VisionModelConfig, there)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{record} is not that of a run on images: {error}") from error
    differences = [
        f"{name} is {trained!r} there and {own!r} here"
        # The shapes do not tell these.
        for name in (*([] if goes_on else ["mixer", "mixer_options"]), "num_heads")
        if (trained := getattr(there, name) or {}) != (own := getattr(config, name) or {})
    ]
    if differences:
        raise ValueError(
            f"{file} is of another architecture: {'; '.join(differences)}. Give "
            f"config=load_run({str(folder)!r}).config.model"
        )


_HEAD = ("head.weight", "head.bias")
_STEM = "downsamples.0.weight"


def _resized(table: Tensor, body: VisionClassifier) -> Tensor:
    """Resize the positions of a square image for the images of a model."""
    places = len(table) - (body.cls is not None)
    side = math.isqrt(max(places, 0))
    if places < 1 or side**2 != places:
        raise ValueError(
            f"expected positions of a square image, or as many as the model has "
            f"({len(body.positions)}), got {len(table)}: create the model with the img_size of the "
            "file, and call set_input_size"
        )
    grid = side, side
    return table if grid == body.grid else resize_positions(table, grid, body.grid)
