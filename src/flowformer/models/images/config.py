"""The configuration of the image models, and the published ones by name; without torch."""

from dataclasses import dataclass
from typing import Any, Literal

from flowformer.models.known_mixers import MixerName
from flowformer.names import check_choices


@dataclass(frozen=True, kw_only=True)
class VisionModelConfig:
    """A classifier of images: stages of pre-norm blocks, each stage on a grid half as fine.

    The defaults are the published settings of the Flowformer on ImageNet. One stage and a class
    token make a DeiT (see `VISION_PRESETS`).

    Attributes:
        mixer: Name of the attention, a key of `flowformer.nn.MIXERS` that has a bidirectional
            form (b in docs/attention/mixers.md).
        mixer_options: Options of that mixer; None means its own defaults.
        patch_size: Pixels on a side of a patch, which is a token of the first stage.
        dims: Width of the hidden states, for each stage.
        depths: Blocks, for each stage.
        num_heads: Attention heads, for each stage.
        feedforward_ratio: Width inside the feed-forward parts, in widths of the stage.
        layer_scale: First value of a learned factor of what each feed-forward part adds; None for
            no such factor.
        pooling: Classify from the mean of the last tokens, or from a token of its own that is put
            before those of the image (cls, for one stage).
        dropout: Probability of dropping a value in training: after each attention, and after both
            layers of each feed-forward part.
        drop_path: Probability, in training, of leaving a part of the last block out for a sample;
            it grows from 0 in the first block evenly.
    """

    mixer: MixerName = "flow"
    mixer_options: dict[str, Any] | None = None
    patch_size: int = 4
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 10, 3)
    num_heads: tuple[int, ...] = (12, 12, 12, 12)
    feedforward_ratio: int | float = 4
    layer_scale: float | None = 1e-5
    pooling: Literal["mean", "cls"] = "mean"
    dropout: float = 0.0
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        """Check the sizes and the choices; the mixer is looked up when the model is built.

        Raises:
            ValueError: stages that are not told alike, a size below 1, a probability outside
                [0, 1), or a class token with more than one stage.
        """
        stages = len(self.dims), len(self.depths), len(self.num_heads)
        if len(set(stages)) != 1 or not self.dims:
            raise ValueError(
                "dims, depths and num_heads must have one entry for each stage, got "
                f"{self.dims}, {self.depths} and {self.num_heads}"
            )
        for name in ("patch_size", "dims", "depths", "num_heads"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.feedforward_ratio <= 0:
            raise ValueError(f"feedforward_ratio must be above 0, got {self.feedforward_ratio}")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        check_choices(self, "pooling")
        if self.pooling == "cls" and len(self.dims) > 1:
            raise ValueError(
                f"pooling='cls' needs a model of one stage, got {len(self.dims)}: a class token "
                "has no place on the grid that the next stage makes coarser"
            )

    @property
    def stride(self) -> int:
        """Pixels on a side of a token of the last stage; it divides every image's sides."""
        return self.patch_size * 2 ** (len(self.dims) - 1)


def _deit(dim: int, num_heads: int) -> VisionModelConfig:
    """Return a DeiT of Touvron et al. (2021), table 1, without distillation."""
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
"""The image models by name: the hierarchical Flowformer, and DeiT in three sizes."""
