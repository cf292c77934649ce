"""Pictures of a data set on one sheet, each with what it is."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from flowformer.report.figures import GREY

_INCHES = 1.6  # of a picture


def contact_sheet(pictures: UInt8[np.ndarray, "n h w"], captions: Sequence[str]) -> Figure:
    """Draw grey pictures in rows, black at 0, with a caption under each.

    Raises:
        ValueError: there are no pictures, or not as many captions.
    """
    if len(pictures) != len(captions) or not captions:
        raise ValueError(f"expected a caption a picture, got {len(pictures)} and {len(captions)}")
    columns = math.ceil(math.sqrt(len(captions)))
    rows = math.ceil(len(captions) / columns)
    figure = Figure(figsize=(_INCHES * columns, 1.2 * _INCHES * rows), layout="constrained")
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_xlabel(caption, fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(GREY)
    return figure
