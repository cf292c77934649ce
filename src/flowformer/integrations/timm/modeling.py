"""The image models with the methods that timm asks of a model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from flowformer.models.images.config import VisionModelConfig
from flowformer.models.images.model import VisionClassifier


class FlowformerImageModel(nn.Module):
    """A `VisionClassifier` behind timm's interface; timm's words for its settings.

    Args:
        config: the architecture.
        img_size: pixels on each side, or (height, width). Other sizes are read too.
        in_chans: channels of an image.
        num_classes: number of logits; 0 for the pooled features.
        global_pool: "avg" (stages) or "token" (DeiT), which the architecture has; "" for none,
            without a head: the features themselves.
        drop_rate: dropout of the configuration; None leaves it as it is there.
        drop_path_rate: drop_path of the configuration; None leaves it as it is there.
        mixer: name of another attention than that of the configuration.
        mixer_options: the options of that attention.
        device: where the parameters stand.
        dtype: dtype of the parameters.
    """

    def __init__(  # noqa: PLR0913 - timm's keywords
        self,
        config: VisionModelConfig,
        *,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        mixer: str | None = None,
        mixer_options: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the model.

        Raises:
            ValueError: as `VisionClassifier` does, or another pooling than the architecture's.
        """
        super().__init__()
        changes: dict[str, Any] = {}
        if drop_rate is not None:
            changes["dropout"] = drop_rate
        if drop_path_rate is not None:
            changes["drop_path"] = drop_path_rate
        if mixer is not None:
            changes |= {"mixer": mixer, "mixer_options": None}
        if mixer_options is not None:
            changes["mixer_options"] = mixer_options
        config = replace(config, **changes)
        self.model = VisionClassifier(
            config, image_size=img_size, channels=in_chans, num_classes=num_classes
        ).to(device, dtype)
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = config.dims[-1]
        self.single = len(config.dims) == 1  # a DeiT: features of each block, tokens as output
        self.global_pool = self._checked_pool(global_pool)
        self.feature_info = [
            {"num_chs": size.channels, "reduction": size.stride, "module": name}
            for size, name in zip(self.model.feature_sizes, self._points(), strict=True)
        ]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        """Return the logits; without a head the pooled features, without pooling the features."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        """Normalised features: [b, dim, h, w] of stages, tokens [b, n, dim] of a DeiT."""
        return self._normalised(self.model.encode(x)[0], x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the features and classify them.

        Args:
            x: the features of `forward_features`.
            pre_logits: stop before the classifier.

        Raises:
            ValueError: nothing is pooled and there is a classifier, which is of one vector.
        """
        if not self.global_pool and not pre_logits and self.num_classes > 0:
            raise ValueError(
                "global_pool='' leaves every token, and the classifier reads one vector: give "
                f"num_classes=0 beside it, got {self.num_classes}"
            )
        if self.global_pool:
            x = self.model.pool(x if self.single else x.flatten(2).transpose(1, 2))
        return x if pre_logits else self.model.head(x)

    def forward_intermediates(
        self,
        x: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of the stages, or of the blocks of a DeiT, and the last features.

        Args:
            x: the images.
            indices: the maps wanted; an int for the last ones, None for all.
            norm: apply the last layer norm to maps that are as wide as it.
            stop_early: compute nothing after the last of them.
            output_fmt: "NCHW".
            intermediates_only: return the maps alone.

        Raises:
            ValueError: another output_fmt.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        points = len(self._points())
        taken, last = _taken(points, indices)
        tokens, maps = self.model.encode(x, taken, stop_early=stop_early)
        if norm:
            for place, index in enumerate(sorted(taken)):
                if self.single or index == points - 1:
                    maps[place] = self.model.norm(maps[place].movedim(1, -1)).movedim(-1, 1)
        if intermediates_only:
            return maps
        ended = not stop_early or last == points - 1
        return (self._normalised(tokens, x) if ended else tokens), maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove all layers after the last of these feature maps; return their indices.

        Args:
            indices: the maps to keep; an int for the last ones.
            prune_norm: remove the last layer norm too.
            prune_head: remove the head and the pooling too.
        """
        points = len(self._points())
        taken, last = _taken(points, indices)
        shorter = last < points - 1
        if self.single:
            blocks = self.model.stages[0]
            assert isinstance(blocks, nn.ModuleList)
            self.model.stages[0] = blocks[: last + 1]
        else:
            self.model.stages = self.model.stages[: last + 1]
            self.model.downsamples = self.model.downsamples[: last + 1]
        if prune_norm or (shorter and not self.single):  # it is as wide as the last stage
            self.model.norm = nn.Identity()
        if prune_head or (shorter and not self.single):
            self.reset_classifier(0, "")
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.model.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one.

        Args:
            num_classes: number of logits; 0 for no head.
            global_pool: as at construction; None leaves it as it is.

        Raises:
            ValueError: another pooling than the architecture's.
        """
        if global_pool is not None:
            self.global_pool = self._checked_pool(global_pool)
        self.num_classes = num_classes
        self.model.reset_head(num_classes)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Interpolate the table of positions to another size, for training at it."""
        self.model.resize(img_size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks anew in the backward pass rather than keep their activations."""
        self.model.checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Tell which parameters belong to which layer, for a learning rate that falls with depth.

        Args:
            coarse: stages rather than blocks.
        """
        blocks: Any = r"^model\.(?:stages|downsamples)\.(\d+)"
        if self.single or not coarse:
            blocks = [
                (r"^model\.stages\.(\d+)\.(\d+)", None),
                (r"^model\.downsamples\.([1-9]\d*)", (-1,)),  # before the blocks of its stage
                (r"^model\.norm", (99999,)),
            ]
        return {"stem": r"^model\.(?:cls$|positions$|downsamples\.0\.)", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that the published optimizers do not decay."""
        return {"model.positions", "model.cls"}

    def _checked_pool(self, global_pool: str | None) -> str:
        own = "token" if self.single else "avg"
        if global_pool not in (None, "", own):
            raise ValueError(f"global_pool must be {own!r} or '', got {global_pool!r}")
        return own if global_pool is None else global_pool

    def _points(self) -> list[str]:
        """Return the modules after which there is a feature map."""
        if not self.single:
            return [f"model.stages.{stage}" for stage in range(len(self.model.stages))]
        blocks = self.model.stages[0]
        assert isinstance(blocks, nn.ModuleList)
        return [f"model.stages.0.{number}" for number in range(len(blocks))]

    def _normalised(self, tokens: Float[Tensor, "b n d"], images: Tensor) -> Tensor:
        tokens = self.model.norm(tokens)
        if self.single:
            return tokens
        stride = self.feature_info[len(self.model.stages) - 1]["reduction"]
        grid = images.shape[2] // stride, images.shape[3] // stride
        return tokens.transpose(1, 2).unflatten(2, grid)


def _taken(points: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Return the indices from 0 on, and the last of them."""
    given = list(indices) if isinstance(indices, Sequence) else indices
    return feature_take_indices(points, given)
