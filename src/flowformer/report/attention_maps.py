"""Pictures of an image model's attention: each layer and head over the image itself.

Shown is what the attention does and nothing else: neither the residual connections nor the output
projections, so no picture here explains a prediction.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from flowformer.files import write_atomically
from flowformer.report import page
from flowformer.report.figures import colour_bar, png_bytes, share_limit, share_ticks

Quantity = Literal["attention", "competition", "allocation"]

TITLES: dict[Quantity, str] = {
    "attention": "Attention: what {sink} takes from each token, in even shares",
    "competition": "Source competition: what each token gives, in even shares",
    "allocation": "Sink allocation: how far each token opens to receive, 0 to 1",
}
NEGATIVE = np.array([0.37, 0.39, 0.41])  # the colour of negative weights, a grey
OPACITY = 0.72  # of the colours over the image
MARK = "#ffdd00"
PANEL = 0.62  # inches on a side of a panel
PIXELS = 112  # on a side of a panel, at least

NOTES = (
    "Attention. Before its output projection a head gives the token i the sum over all tokens j of "
    "W_ij v_j, where v are the values. W is exact, whatever the attention computes instead of it: "
    "the gradient of that output with respect to the values, which the values do not enter. Drawn "
    "is W_ij · n / Σ_j |W_ij| of one token i, n tokens: 1 is an even share. Rows of Flow-Attention "
    "do not sum to one; how much i takes in all is not drawn.",
    "Source competition and sink allocation, of Flow-Attention alone, are c_j = n · softmax_j of "
    "the conserved source, 1 being an even share, and a_i = sigmoid of the conserved sink.",
    "A square is a token: each stage has its own grid. The residual connections, the projections "
    "and the layers in between are not in these pictures, so they explain no prediction.",
)

OURS = re.compile(r"\d+-.*-(side-by-side|attention|competition|allocation)\.png")


@dataclass(frozen=True, kw_only=True)
class LayerMaps:
    """The maps of one layer, one a head, on its grid of tokens.

    `attention` is W_ij · n / Σ_j |W_ij| for the chosen sink i, with out_i = Σ_j W_ij v_j and n
    tokens: 1 is an even share. `competition` is c_j, of which 1 is an even share too, and
    `allocation` a_j in (0, 1): those of Flow-Attention, None of others. `class_attention` is what
    the sink takes from the class token, which has no place on the grid; None without one.

    Raises:
        ValueError: the maps are not on one grid.
    """

    name: str
    attention: Float[np.ndarray, "heads rows columns"]
    competition: Float[np.ndarray, "heads rows columns"] | None = None
    allocation: Float[np.ndarray, "heads rows columns"] | None = None
    class_attention: Float[np.ndarray, " heads"] | None = None

    def __post_init__(self) -> None:
        """Check the shapes, which come from the caller's model."""
        shape = self.attention.shape
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"attention must be [heads, rows, columns], got shape {shape}")
        for name in ("competition", "allocation"):
            maps = getattr(self, name)
            if maps is not None and maps.shape != shape:
                raise ValueError(
                    f"{name} must have the shape of attention, {shape}, got {maps.shape}"
                )


@dataclass(frozen=True, kw_only=True)
class AttentionPicture:
    """One image, and the attention of every layer of one model to it.

    Attributes:
        image: the image that the model was given, as colours.
        name: name of the image.
        model: a name for the model, such as its mixer.
        sink: the pixel (row, column) whose token receives; None for the class token.
        layers: the layers from the first to the last.
        verdict: the class that the model predicts, if it is to be told.
    """

    image: UInt8[np.ndarray, "height width 3"]
    name: str
    model: str
    sink: tuple[int, int] | None
    layers: tuple[LayerMaps, ...]
    verdict: str = ""

    def __post_init__(self) -> None:
        """Check the shapes: every grid has to divide the image.

        Raises:
            ValueError: there is no layer, or a grid that does not fit the image.
        """
        if not self.layers:
            raise ValueError("expected at least one layer, got none")
        height, width = self.image.shape[:2]
        for layer in self.layers:
            rows, columns = layer.attention.shape[1:]
            if height % rows or width % columns:
                raise ValueError(
                    f"{layer.name}: expected a grid that divides {height} × {width} pixels, got "
                    f"{rows} × {columns}"
                )


def relative_weights(weights: Float[np.ndarray, "heads n"]) -> Float[np.ndarray, "heads n"]:
    """W_ij · n / Σ_j |W_ij|: 1 is an even share; zero where all weights are."""
    total = np.abs(weights).sum(axis=1, keepdims=True)
    return weights * weights.shape[1] / np.where(total > 0, total, 1)


def title(picture: AttentionPicture, quantity: Quantity) -> str:
    """Say in a line what a figure of that quantity shows."""
    sink = "the class token" if picture.sink is None else "the marked token"
    return TITLES[quantity].format(sink=sink)


def head_maps(picture: AttentionPicture, quantity: Quantity) -> Figure:
    """Draw one row a layer, one panel a head, over the image in grey; each layer has a scale.

    Raises:
        ValueError: the model has no such quantity.
    """
    maps = [_maps(layer, quantity) for layer in picture.layers]
    heads = max(map(len, maps))
    figure, grid = _figure(picture, columns=heads, rows=len(maps))
    _draw_image(figure.add_subplot(grid[: max(2, len(maps) // 5), 0]), picture, quantity)
    grey = _grey(picture)
    for row, (layer, panels) in enumerate(zip(picture.layers, maps, strict=True)):
        norm, colours = _scale(panels, quantity)
        axes = figure.add_subplot(grid[row, 1])
        _draw_row(axes, [_over(grey, panel, norm, colours) for panel in panels], heads)
        _name_row(axes, _row_name(layer, quantity))
        bar = colour_bar(ScalarMappable(norm, colours), figure.add_subplot(grid[row, 2]))
        _few_ticks(bar.ax, norm)
    _head(
        figure,
        f"{picture.model}, {picture.name}",
        title(picture, quantity),
        "a row for each layer with its own scale, a panel for each head",
        "" if quantity == "allocation" else _note(maps),
    )
    return figure


def side_by_side(pictures: Sequence[AttentionPicture]) -> Figure:
    """Draw the attention of several models to one image: a row a model, a panel a layer.

    All panels have one scale. Models that read images of other sizes have the sink at their own
    pixel; the first one's is drawn.

    Raises:
        ValueError: there is no picture, or they are not of one image and one kind of sink.
    """
    kinds = [(each.name, "class token" if each.sink is None else "pixel") for each in pictures]
    if len(set(kinds)) != 1:
        raise ValueError(f"expected pictures of one image and one kind of sink, got {kinds}")
    rows = [[layer.attention.mean(axis=0) for layer in each.layers] for each in pictures]
    every = [panel for row in rows for panel in row]
    norm, colours = _share_scale(every)
    layers = max(map(len, rows))
    figure, grid = _figure(pictures[0], columns=layers, rows=len(pictures))
    place = figure.add_subplot(grid[: max(2, len(rows) // 5), 0])
    _draw_image(place, pictures[0], "attention", verdict=False)
    for row, (picture, panels) in enumerate(zip(pictures, rows, strict=True)):
        axes = figure.add_subplot(grid[row, 1])
        grey = _grey(picture)
        width = _draw_row(axes, [_over(grey, panel, norm, colours) for panel in panels], layers)
        _name_row(axes, f"{picture.model}\n{picture.verdict}")
        places = [(place + 0.5) * width for place in range(len(panels))]
        axes.set_xticks(places, [_short(layer.name) for layer in picture.layers], fontsize=5.5)
        axes.tick_params(length=0)
    bar = colour_bar(ScalarMappable(norm, colours), figure.add_subplot(grid[:, 2]))
    _few_ticks(bar.ax, norm)
    _head(
        figure,
        pictures[0].name,
        title(pictures[0], "attention"),
        "a row for each model, a panel for each layer: mean over heads, one scale for all",
        _note(every),
    )
    return figure


def _figure(picture: AttentionPicture, *, columns: int, rows: int) -> tuple[Figure, GridSpec]:
    """Return a figure with rows of panels, the image before them, and scales behind them."""
    height, width = picture.image.shape[:2]
    size = PANEL * columns + 3.2, PANEL * height / width * max(rows, 2) + 1.3
    figure = Figure(figsize=size, layout="constrained")
    widths = [1.6, PANEL * columns, 0.09]
    return figure, figure.add_gridspec(max(rows, 2), 3, width_ratios=widths)


def _head(figure: Figure, *lines: str) -> None:
    figure.suptitle("\n".join(filter(None, lines)), fontsize=8.5, parse_math=False)


def _maps(layer: LayerMaps, quantity: Quantity) -> Float[np.ndarray, "heads rows columns"]:
    maps = getattr(layer, quantity)
    if maps is None:
        raise ValueError(f"{layer.name} has no {quantity}: only Flow-Attention has")
    return maps


def _scale(
    maps: Float[np.ndarray, "heads rows columns"], quantity: Quantity
) -> tuple[Normalize, str]:
    if quantity == "allocation":
        low, high = float(maps.min()), float(maps.max())
        return Normalize(low, max(high, low + 1e-6)), "cividis"
    return _share_scale([maps])


def _share_scale(maps: Sequence[Float[np.ndarray, "..."]]) -> tuple[Normalize, str]:
    """Logarithmic around 1, an even share: blue is less, red is more."""
    limit = share_limit(np.concatenate([np.abs(each).ravel() for each in maps]))
    return LogNorm(1 / limit, limit), "RdBu_r"


def _few_ticks(axes: Axes, norm: Normalize) -> None:
    """Return ticks at both ends, and in the middle of shares."""
    assert norm.vmin is not None
    assert norm.vmax is not None
    if isinstance(norm, LogNorm):
        ticks, names = share_ticks(norm.vmax)
        ticks, names = ticks[::2], names[::2]
    else:
        ticks = [norm.vmin, norm.vmax]
        names = [f"{tick:.2f}" for tick in ticks]
    axes.set_yticks(ticks, names, fontsize=5.5)
    axes.minorticks_off()


def _grey(picture: AttentionPicture) -> Float[np.ndarray, "height width 1"]:
    """Return the image's lightness, 0 to 1 (ITU-R BT.601), as small as panels and grids allow."""
    grey = picture.image @ np.array([0.299, 0.587, 0.114]) / 255
    height, width = grey.shape
    grids = [layer.attention.shape[1:] for layer in picture.layers]
    for factor in range(width // PIXELS, 1, -1):
        sizes = height // factor, width // factor
        whole = height % factor == 0 and width % factor == 0
        if whole and all(not (sizes[0] % rows or sizes[1] % columns) for rows, columns in grids):
            grey = grey.reshape(sizes[0], factor, sizes[1], factor).mean(axis=(1, 3))
            break
    return grey[..., None]


def _over(
    grey: Float[np.ndarray, "height width 1"],
    panel: Float[np.ndarray, "rows columns"],
    norm: Normalize,
    colours: str,
) -> Float[np.ndarray, "height width 3"]:
    """Return the map in colours over the image, a square of pixels a token."""
    assert norm.vmin is not None
    tints = colormaps[colours](norm(np.maximum(panel, norm.vmin)))[..., :3]
    tints = np.where(panel[..., None] < 0, NEGATIVE, tints)
    rows, columns = (size // parts for size, parts in zip(grey.shape, panel.shape, strict=False))
    tints = tints.repeat(rows, axis=0).repeat(columns, axis=1)
    return OPACITY * tints + (1 - OPACITY) * grey


def _draw_row(axes: Axes, panels: Sequence[np.ndarray], places: int) -> int:
    """Draw panels from left to right, up to `places`; return the pixels from one to the next."""
    height, width = panels[0].shape[:2]
    gap = max(1, width // 28)
    strip = np.full((height, places * (width + gap) - gap, 3), 255, np.uint8)
    for place, panel in enumerate(panels):
        start = place * (width + gap)
        strip[:, start : start + width] = np.round(255 * panel)
    axes.imshow(strip)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return width + gap


def _name_row(axes: Axes, name: str) -> None:
    axes.set_ylabel(name, fontsize=6.5, rotation=0, ha="right", va="center", parse_math=False)


def _short(name: str) -> str:
    """stage 1, block 2 -> 1.2, for ticks."""
    return ".".join(re.findall(r"\d+", name)) or name


def _draw_image(
    axes: Axes, picture: AttentionPicture, quantity: Quantity, *, verdict: bool = True
) -> None:
    axes.imshow(picture.image)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if verdict:
        axes.set_xlabel(picture.verdict, fontsize=6.5, parse_math=False)
    if quantity == "attention" and picture.sink is not None:
        row, column = picture.sink
        for colour, width in (("black", 3.0), (MARK, 1.5)):
            axes.plot(column, row, "+", color=colour, markersize=9, markeredgewidth=width)


def _row_name(layer: LayerMaps, quantity: Quantity) -> str:
    if quantity != "attention" or layer.class_attention is None:
        return layer.name
    return f"{layer.name}\nclass token {layer.class_attention.mean():.2f}×"


def _note(maps: Iterable[Float[np.ndarray, "..."]]) -> str:
    """Say what the colours of shares mean."""
    grey = ", dark grey negative" if any((each < 0).any() for each in maps) else ""
    return f"red more than an even share, blue less{grey}"


def attention_parts(
    images: Sequence[Sequence[AttentionPicture]],
) -> tuple[dict[str, bytes], list[str]]:
    """Return the PNG files by name, and the HTML of a report's section.

    Args:
        images: for each image, the pictures of one model or more, to stand side by side.

    Raises:
        ValueError: two models have one name, or the pictures of an image are of several.
    """
    files: dict[str, bytes] = {}
    parts = [page.paragraph(note, soft=True) for note in NOTES]
    for number, pictures in enumerate(images, 1):
        names = [each.model for each in pictures]
        if len(set(names)) != len(names):
            raise ValueError(f"expected models of different names, got {names}")
        parts.append(page.heading(pictures[0].name))
        stem = f"{number}-{_plain(Path(pictures[0].name).stem)}"
        if len(pictures) > 1:
            files[f"{stem}-side-by-side.png"] = content = png_bytes(side_by_side(pictures))
            alt = f"{title(pictures[0], 'attention')}, mean over heads: {', '.join(names)}."
            parts.append(page.picture(content, alt=alt))
        for each in pictures:
            for quantity in _quantities(each):
                content = png_bytes(head_maps(each, quantity))
                files[f"{stem}-{_plain(each.model)}-{quantity}.png"] = content
                alt = f"{each.model}. {title(each, quantity)}, in {len(each.layers)} layers."
                parts.append(page.picture(content, alt=alt))
    return files, parts


def write_attention_page(folder: Path, images: Sequence[Sequence[AttentionPicture]]) -> Path:
    """Write FOLDER/index.html, which stands alone, and the pictures beside it as PNG.

    Args:
        folder: made when missing; PNG files of an earlier page in it are removed.
        images: see `attention_parts`.

    Returns:
        The page.

    Raises:
        ValueError: see `attention_parts`.
    """
    files, parts = attention_parts(images)
    models = dict.fromkeys(each.model for pictures in images for each in pictures)
    name = f"What {', '.join(models)} attend{'s' if len(models) == 1 else ''} to"
    for file, content in files.items():
        write_atomically(folder / file, content)
    written = page.save(folder, name, parts)
    for old in folder.glob("*.png"):
        if old.name not in files and OURS.fullmatch(old.name):  # the folder may hold others
            old.unlink()
    return written


def _quantities(picture: AttentionPicture) -> Iterator[Quantity]:
    yield "attention"
    if picture.layers[0].competition is not None:
        yield "competition"
    if picture.layers[0].allocation is not None:
        yield "allocation"


def _plain(name: str) -> str:
    """Return the name as part of a file's name."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "image"
