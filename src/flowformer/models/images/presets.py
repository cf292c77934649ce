"""Published image models by name."""

from flowformer.models.images.config import VisionModelConfig


def _deit(dim: int, num_heads: int) -> VisionModelConfig:
    """A DeiT of Touvron et al. (2021), table 1, without distillation."""
    return VisionModelConfig(
        patch_size=16,
        dims=(dim,),
        depths=(12,),
        num_heads=(num_heads,),
        layer_scale=None,
        pooling="cls",
        drop_path=0.1,
    )


VISION_PRESETS: dict[str, VisionModelConfig] = {
    "hierarchical": VisionModelConfig(),  # the Flowformer of the paper's table on ImageNet
    "deit-tiny": _deit(192, 3),
    "deit-small": _deit(384, 6),
    "deit-base": _deit(768, 12),
}
