"""The hierarchical Flowformer for images (paper, section 4.3) and DeiT, around any mixer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowformer.models.cross_entropy import ClassifierOutput, classified
from flowformer.models.images.config import VISION_PRESETS, VisionModelConfig
from flowformer.models.published import matched, read_checkpoint, rename_images
from flowformer.nn import TransformerBlock, build_mixer
from flowformer.nn.mixers.building import mixer_options

Grid = tuple[int, int]  # height and width, in tokens or pixels

STD = 0.02  # of linear layers, positions and the class token when drawn
EPS = 1e-6  # of the layer norms


class FeatureSize(NamedTuple):
    """A feature map's channels, and pixels of the image on a side of one of its places."""

    channels: int
    stride: int


class VisionClassifier(nn.Module):
    """Patches and positions, stages of blocks, a layer norm, the mean (or a class token), a head.

    The first stage reads patches of `patch_size` pixels; each further one squares of 2 × 2 tokens
    of the stage before it. A model of one stage with a class token is a DeiT (Touvron et al. 2021).

    Images of another size than at construction are read with the positions interpolated; both
    sides must be multiples of `config.stride`. (A mixer of a fixed length bounds the number of
    tokens to that at construction.)

    Args:
        config: the architecture.
        image_size: pixels on each side, or (height, width).
        channels: channels of an image.
        num_classes: number of logits; 0 for none, which makes the pooled features the output.

    Attributes:
        grid: patches that the table of positions holds, (height, width).
        checkpointing: compute the blocks anew in the backward pass rather than keep what they
            hold (less memory, more time).

    Examples:
        >>> import torch
        >>> from flowformer.models import VisionClassifier, VisionModelConfig
        >>> config = VisionModelConfig(dims=(16, 32), depths=(1, 1), num_heads=(2, 2))
        >>> model = VisionClassifier(config, image_size=32, num_classes=10)
        >>> images = torch.randn(2, 3, 32, 32)
        >>> model(images).logits.shape
        torch.Size([2, 10])
        >>> [tuple(each.shape) for each in model.feature_maps(images)]
        [(2, 16, 8, 8), (2, 32, 4, 4)]
    """

    def __init__(
        self,
        config: VisionModelConfig,
        *,
        image_size: int | Grid = 224,
        channels: int = 3,
        num_classes: int,
    ) -> None:
        """Create the layers and draw them as the published code does.

        Raises:
            ValueError: an image size that is no multiple of the stride, channels below 1, classes
                below 0, or an unknown mixer or option.
            NotImplementedError: the mixer has no bidirectional form.
        """
        super().__init__()
        if channels < 1 or num_classes < 0:
            raise ValueError(
                "expected channels of at least 1 and num_classes of at least 0, got "
                f"{channels} and {num_classes}"
            )
        self.config = config
        self.channels = channels
        self.grid = _grid(config, image_size)
        self.checkpointing = False
        dims, prefix = config.dims, int(config.pooling == "cls")
        sizes = [config.patch_size, *[2] * (len(dims) - 1)]
        self.downsamples = nn.ModuleList(
            nn.Conv2d(inputs, outputs, size, stride=size)
            for inputs, outputs, size in zip((channels, *dims), dims, sizes, strict=False)
        )
        self.cls = nn.Parameter(torch.empty(dims[0])) if prefix else None
        self.positions = nn.Parameter(torch.empty(prefix + math.prod(self.grid), dims[0]))
        last = max(sum(config.depths) - 1, 1)
        drops = (config.drop_path * number / last for number in range(sum(config.depths)))
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            places = prefix + math.prod(self.grid) // 4**stage
            blocks = (_build_block(config, stage, places, next(drops)) for _ in range(depth))
            self.stages.append(nn.ModuleList(blocks))
        self.norm: nn.Module = nn.LayerNorm(dims[-1], eps=EPS)
        self.head: nn.Module = nn.Identity()
        self.reset_head(num_classes)
        for parameter in (self.positions, *(() if self.cls is None else (self.cls,))):
            nn.init.trunc_normal_(parameter, std=STD)

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        labels: Int[Tensor, " b"] | Float[Tensor, "b classes"] | None = None,
    ) -> ClassifierOutput:
        """Classify the images.

        Args:
            images: normalised as in training.
            labels: the classes, or a distribution over them (mixup, label smoothing), for the loss.

        Raises:
            ValueError: other channels than at construction, a side that is no multiple of the
                stride, or labels outside the classes.
        """
        logits = self.head(self.pool(self.forward_features(images)))
        return classified(logits, labels, soft=True)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n dim"]:
        """Return the last tokens after the layer norm: row by row, a class token before them."""
        return self.norm(self.encode(images)[0])

    def pool(self, tokens: Float[Tensor, "b n dim"]) -> Float[Tensor, "b dim"]:
        """Pool the tokens for the head: their mean, or the class token."""
        return tokens.mean(1) if self.cls is None else tokens[:, 0]

    @property
    def feature_sizes(self) -> list[FeatureSize]:
        """The sizes of the maps of `feature_maps`: one a stage; of a single stage, one a block."""
        config = self.config
        if len(config.dims) == 1:
            return [FeatureSize(config.dims[0], config.patch_size)] * config.depths[0]
        return [
            FeatureSize(dim, config.patch_size * 2**stage) for stage, dim in enumerate(config.dims)
        ]

    def feature_maps(
        self, images: Float[Tensor, "b c h w"], indices: Sequence[int] | None = None
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Return feature maps [b, channels, height, width] for dense tasks, without the layer norm.

        Args:
            images: normalised as in training.
            indices: the places of the maps in `feature_sizes`; None for all.

        Raises:
            ValueError: as in `forward`, or an index out of range.
        """
        count = len(self.feature_sizes)
        wanted = range(count) if indices is None else indices
        if not all(0 <= index < count for index in wanted):
            raise ValueError(f"expected indices from 0 to {count - 1}, got {list(wanted)}")
        return self.encode(images, wanted)[1]

    def reset_head(self, num_classes: int) -> None:
        """Replace the head by a new one, drawn like the others; 0 for none."""
        if num_classes == 0:
            self.head = nn.Identity()
            return
        like = {"device": self.positions.device, "dtype": self.positions.dtype}
        self.head = nn.Linear(self.config.dims[-1], num_classes, **like).train(self.training)
        _draw(self.head)

    @torch.no_grad()
    def resize(self, image_size: int | Grid) -> None:
        """Interpolate the table of positions itself, for training at another size.

        Raises:
            ValueError: a side that is no multiple of the stride.
        """
        grid = _grid(self.config, image_size)
        table = resize_positions(self.positions, self.grid, grid)
        self.positions = nn.Parameter(table, requires_grad=self.positions.requires_grad)
        self.grid = grid

    def encode(
        self,
        images: Float[Tensor, "b c h w"],
        wanted: Sequence[int] = (),
        *,
        stop_early: bool = False,
    ) -> tuple[Float[Tensor, "b n d"], list[Float[Tensor, "b _ _ _"]]]:
        """Return the last tokens before the layer norm, and the wanted ones of the feature maps.

        Args:
            images: normalised as in training.
            wanted: indices of `feature_sizes`.
            stop_early: compute nothing after the last of them, whose tokens are returned then.
        """
        _check_images(images, channels=self.channels, stride=self.config.stride)
        maps, x = [], images
        for index, (tokens, grid) in enumerate(self._points(images)):
            x = tokens
            if index in wanted:
                maps.append(self._as_map(x, grid))
            if stop_early and index == max(wanted):
                break
        return x, maps

    def _points(self, images: Tensor) -> Iterator[tuple[Tensor, Grid]]:
        """Yield the tokens and their grid where there is a feature map."""
        x, single = images, len(self.config.dims) == 1
        for stage, blocks in enumerate(self.stages):
            assert isinstance(blocks, nn.ModuleList)
            x = self.downsamples[stage](x)
            grid = x.shape[2], x.shape[3]
            x = x.flatten(2).transpose(1, 2)
            if stage == 0:
                x = self._with_positions(x, grid)
            for number, block in enumerate(blocks, start=1):
                x = self._block(block, x)
                if single or number == len(blocks):
                    yield x, grid
            if stage + 1 < len(self.stages):
                x = self._as_map(x, grid)

    def _block(self, block: nn.Module, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n dim"]:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def _with_positions(self, x: Float[Tensor, "b n dim"], grid: Grid) -> Tensor:
        if self.cls is not None:
            x = torch.cat((self.cls.expand(x.shape[0], 1, -1), x), dim=1)
        same = grid == self.grid
        return x + (self.positions if same else resize_positions(self.positions, self.grid, grid))

    def _as_map(self, x: Float[Tensor, "b n dim"], grid: Grid) -> Float[Tensor, "b dim h w"]:
        image = x if self.cls is None else x[:, 1:]
        return image.transpose(1, 2).unflatten(2, grid)

    def load_published_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load parameters with the names of the published models.

        Those are the Flowformer's (thuml/Flowformer, Flowformer_CV), DeiT's and timm's
        VisionTransformer's; see `flowformer.models.published`.

        Raises:
            ValueError: parameters are missing, left over, or of another shape; all are listed.
        """
        what = "a published image model of this size"
        given = rename_images(state_dict, stages=len(self.config.dims))
        self.load_state_dict(matched(self, given, what=what))


def load_published_vision_model(
    path: Path | str, config: VisionModelConfig = VISION_PRESETS["hierarchical"]
) -> VisionClassifier:
    """Load the model in a checkpoint of the published training (Flowformer_CV, or DeiT's).

    Args:
        path: the checkpoint, with the parameters in its entry "model".
        config: the model's architecture, which the file does not tell. Images are square.

    Raises:
        ValueError: see `read_checkpoint`; or parameters are missing, left over or of another
            shape, which are all listed.
    """
    state = read_checkpoint(path, what="published image")
    if "head.weight" not in state or "pos_embed" not in state:
        raise ValueError(f"{path} is no published image model: no head.weight or no pos_embed")
    model = VisionClassifier(
        config,
        image_size=_side_of(state["pos_embed"], config, path) * config.patch_size,
        num_classes=len(state["head.weight"]),
    )
    model.load_published_state_dict(state)
    return model


def _side_of(positions: Tensor, config: VisionModelConfig, path: Path | str) -> int:
    """Return the patches on a side of the square images of published positions [1, n, dim]."""
    prefix = int(config.pooling == "cls")
    places = positions.shape[1] - prefix if positions.ndim == 3 else 0
    side, step = math.isqrt(max(places, 0)), config.stride // config.patch_size
    if places < 1 or side**2 != places or side % step:
        raise ValueError(
            f"{path} is not of this architecture: expected pos_embed (1, n, {config.dims[0]}) with "
            f"n a square of a multiple of {step}{', and a class token' * prefix}, got "
            f"{tuple(positions.shape)}"
        )
    return side


def resize_positions(table: Float[Tensor, "n dim"], old: Grid, new: Grid) -> Float[Tensor, "m dim"]:
    """Return a table of positions for another grid, by bicubic interpolation (as timm does it).

    Args:
        table: vectors of the grid's places row by row; those before them are kept (class token).
        old: height and width of its grid.
        new: height and width of the new grid.
    """
    prefix = len(table) - math.prod(old)
    image = table[prefix:].T.unflatten(1, old)[None].float()
    image = F.interpolate(image, new, mode="bicubic", antialias=True)
    return torch.cat((table[:prefix], image[0].flatten(1).T.to(table.dtype)))


def _grid(config: VisionModelConfig, image_size: int | Grid) -> Grid:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1 or height % config.stride or width % config.stride:
        raise ValueError(
            f"image_size must be a multiple of {config.stride} (patches of {config.patch_size}, "
            f"{len(config.dims)} stages), got {image_size}"
        )
    return height // config.patch_size, width // config.patch_size


def _build_block(
    config: VisionModelConfig, stage: int, places: int, drop_path: float
) -> TransformerBlock:
    dim = config.dims[stage]
    options = {"max_length": places, **mixer_options(config, "images")}
    mixer = build_mixer(config.mixer, dim, config.num_heads[stage], **options)
    mixer.attention.require("bidirectional")
    block = TransformerBlock(
        mixer,
        dim,
        max(1, round(config.feedforward_ratio * dim)),
        norm="pre",
        dropout=config.dropout,
        layer_scale=config.layer_scale,
        drop_path=drop_path,
        norm_eps=EPS,
    )
    for _, layer in block.linears():
        _draw(layer)
    return block


def _draw(layer: nn.Linear) -> None:
    nn.init.trunc_normal_(layer.weight, std=STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _check_images(images: Tensor, *, channels: int, stride: int) -> None:
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"expected images [b, {channels}, height, width], got {tuple(images.shape)}"
        )
    height, width = images.shape[2:]
    if height % stride or width % stride or not (height and width):
        raise ValueError(
            f"expected images whose sides are multiples of {stride}, got {height} × {width}"
        )
