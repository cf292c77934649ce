"""Pathfinder's pictures: dashed paths, of which two ends carry a dot.

The stimulus is that of Linsley et al., 2018 ("Learning long-range spatial dependencies with
horizontal gated recurrent units") and Kim et al., 2020, as the Long Range Arena (Tay et al., 2021)
sets it up, drawn anew: in each picture there are two long paths that begin near each other, and
shorter ones that distract. The dots are at both ends of one long path, or at the beginning of one
and the end of the other; without its dots a picture does not tell which.

The geometry is such that the label can be read off the picture. Call a pixel lit where it is at
least as bright as a path is at √½ pixels from its middle. Each point of a dash has a lit pixel
within √½ of it, so along a path the next lit pixel is at most `Geometry.reach` = gap + √2 away;
lit pixels of two paths are farther than that from each other, since the paths keep their distance.
Whoever walks over lit pixels in steps of at most `reach` comes from one dot to the other in the
positive pictures and in no others.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8

from flowformer.data.parallel import generator_of

_HALF_DIAGONAL = math.sqrt(0.5)  # no point is farther from the next pixel's middle
_INK = 0.75  # brightness of a path; a dot has 1

_GROWING = 96  # paths that grow at once, of which one is taken


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Measures of the pictures of one size, in pixels; a path is measured in its middle.

    Attributes:
        size: height and width of a picture.
        dash: length of a dash.
        gap: between one dash and the next.
        thickness: thickness of a dash.
        dot: radius of a dot.
        seed_distance: between the beginnings of the two long paths.
        max_turn: between one dash and the next, in radians.
        distractor_dashes: in all distractors together, where they find room.
    """

    size: int
    dash: float
    gap: float
    thickness: float
    dot: float
    seed_distance: float
    max_turn: float
    distractor_dashes: int

    @property
    def lit(self) -> float:
        """Brightness from which on a pixel is lit, of 1."""
        return _INK * (0.5 + self.thickness / 2 - _HALF_DIAGONAL)

    @property
    def reach(self) -> float:
        """Lit pixels of one path are chained by steps of at most this; no step joins two paths."""
        return self.gap + 2 * _HALF_DIAGONAL

    @property
    def lit_dot(self) -> float:
        """How far from the middle of a dot pixels are lit, at most."""
        return self.dot + 0.5 - self.lit


# Near LRA's settings of the published generator (paddle length and margin, thickness, marker
# radius, seed distance, distractors); the gap is wider by what a dash's round ends take of it.
GEOMETRIES = {
    32: Geometry(
        size=32,
        dash=1.5,
        gap=1.4,
        thickness=0.8,
        dot=1.5,
        seed_distance=7.0,
        max_turn=0.7,
        distractor_dashes=20,
    ),
    64: Geometry(
        size=64,
        dash=3.5,
        gap=2.5,
        thickness=1.0,
        dot=2.5,
        seed_distance=12.0,
        max_turn=0.7,
        distractor_dashes=22,
    ),
    128: Geometry(
        size=128,
        dash=4.5,
        gap=3.0,
        thickness=1.5,
        dot=3.0,
        seed_distance=20.0,
        max_turn=0.6,
        distractor_dashes=35,
    ),
    256: Geometry(
        size=256,
        dash=5.0,
        gap=4.0,
        thickness=2.0,
        dot=5.0,
        seed_distance=27.0,
        max_turn=0.5,
        distractor_dashes=30,
    ),
}
DASHES = {"easy": 6, "medium": 9, "hard": 14}  # of a long path: LRA's contour lengths


class PathfinderCase(NamedTuple):
    """A picture and what is drawn in it.

    Attributes:
        picture: grey, [size, size].
        label: whether a path joins the dots.
        paths: the dashes of each, first the two long paths: where each begins and ends, as row and
            column in pixels, (0, 0) in the middle of the first pixel; [dashes, 2, 2].
        dots: for each, which path it is on and at which end: 0 where it begins, -1 where it ends.
    """

    picture: UInt8[np.ndarray, "size size"]
    label: int
    paths: tuple[Float64[np.ndarray, "_ 2 2"], ...]
    dots: tuple[tuple[int, int], tuple[int, int]]


def draw_case(
    number: int, *, part: str = "train", seed: int = 0, size: int = 32, difficulty: str = "easy"
) -> PathfinderCase:
    """Draw a case, which follows from its number, part and seed, and the kind of picture.

    Of the cases 2n and 2n + 1 one is positive.

    Args:
        number: number of the case.
        part: the part of the data set that it is in.
        seed: seed of the data set.
        size: size of the picture: a key of `GEOMETRIES`.
        difficulty: the length of the long paths: a key of `DASHES`.

    Raises:
        ValueError: another size or difficulty.
    """
    geometry, dashes = check_kind(size, difficulty)
    rng = generator_of(seed, part, 0, number)
    first = int(generator_of(seed, part, 1, number // 2).integers(2))
    label = (number + first) % 2
    dots = ((0, 0), (0 if label else 1, -1))
    placed = _place_paths(rng, geometry, dashes)
    paths = tuple(
        np.stack([np.real(one), np.imag(one)], axis=1).reshape(-1, 2, 2) for one in placed
    )
    return PathfinderCase(_draw(geometry, paths, dots), label, paths, dots)


def check_kind(size: int, difficulty: str) -> tuple[Geometry, int]:
    """Return the geometry, and the number of dashes of a long path.

    Raises:
        ValueError: another size or difficulty than there are.
    """
    if size not in GEOMETRIES:
        raise ValueError(f"size must be one of {', '.join(map(str, GEOMETRIES))}, got {size}")
    if difficulty not in DASHES:
        raise ValueError(f"difficulty must be one of {', '.join(DASHES)}, got {difficulty!r}")
    return GEOMETRIES[size], DASHES[difficulty]


class _Outline(NamedTuple):
    """Points of the middle of paths, and how far from each pixels are lit at most.

    Attributes:
        points: where dashes begin and end, as complex numbers: row + i·column [n].
        radii: [n].
    """

    points: np.ndarray
    radii: np.ndarray


def _place_paths(
    rng: np.random.Generator, geometry: Geometry, dashes: int
) -> tuple[np.ndarray, ...]:
    """Return two long paths and distractors, all apart from each other: [2·dashes] complex each.

    Both long paths end as far from where the first begins, within a 32nd of the picture: else the
    distance between the dots would tell the label, the ends of two paths being farther apart.
    """
    nothing = _Outline(np.empty(0, complex), np.empty(0))
    while True:
        grown = _grow(rng, geometry, dashes, nothing)
        if grown is None:
            continue
        first = grown[:, 0]
        outline = _add(nothing, first, geometry, dotted=True)
        grown = _grow(rng, geometry, dashes, outline, near=first[0])
        if grown is None:
            continue
        farther = np.abs(np.abs(grown[-1] - first[0]) - abs(first[-1] - first[0]))
        if farther.min() <= geometry.size / 32:
            second = grown[:, farther.argmin()]
            break
    paths = [first, second]
    outline = _add(outline, second, geometry, dotted=True)
    length = dashes // 3
    for _ in range(geometry.distractor_dashes // length):
        grown = _grow(rng, geometry, length, outline, dotted=False)
        if grown is None:
            break  # the picture is full
        paths.append(grown[:, 0])
        outline = _add(outline, grown[:, 0], geometry, dotted=False)
    return tuple(paths)


def _add(outline: _Outline, path: np.ndarray, geometry: Geometry, *, dotted: bool) -> _Outline:
    radii = np.full(len(path), _HALF_DIAGONAL)
    if dotted:  # or may be
        radii[[0, -1]] = geometry.lit_dot
    return _Outline(np.concatenate([outline.points, path]), np.concatenate([outline.radii, radii]))


def _grow(
    rng: np.random.Generator,
    geometry: Geometry,
    dashes: int,
    others: _Outline,
    *,
    dotted: bool = True,
    near: complex | None = None,
) -> np.ndarray | None:
    """Grow random paths [2·dashes, p] in the picture, apart from others; None without room.

    Many paths grow at once, dash by dash. Those that leave the picture, or come too near to
    others or to themselves, are replaced by copies of the rest, which then go their own ways.
    One that is dotted may carry dots at its ends, which need more room. It begins at the seed
    distance from `near`, or anywhere.
    """
    angles = rng.uniform(0, 2 * math.pi, _GROWING)
    turns = rng.uniform(-geometry.max_turn, geometry.max_turn, (dashes, _GROWING))
    chances = rng.random((dashes, _GROWING))
    paths = np.empty((2 * dashes, _GROWING), complex)
    begin = _origins(rng, geometry, near)
    for step in range(dashes):
        headings = np.exp(1j * angles)
        paths[2 * step] = begin
        paths[2 * step + 1] = begin + geometry.dash * headings
        radii = [_HALF_DIAGONAL, _HALF_DIAGONAL]
        if dotted and step in (0, dashes - 1):
            radii[0 if step == 0 else 1] = geometry.lit_dot
        alive = np.flatnonzero(_fits(paths[: 2 * step + 2], radii, others, geometry))
        if not len(alive):
            return None
        chosen = alive[(len(alive) * chances[step]).astype(int)]
        paths = paths[:, chosen]
        begin = paths[2 * step + 1] + geometry.gap * headings[chosen]
        angles = angles[chosen] + turns[step]
    return paths


def _origins(rng: np.random.Generator, geometry: Geometry, near: complex | None) -> np.ndarray:
    if near is None:
        rows, columns = rng.uniform(0, geometry.size - 1, (2, _GROWING))
        return rows + 1j * columns
    return near + geometry.seed_distance * np.exp(1j * rng.uniform(0, 2 * math.pi, _GROWING))


def _fits(
    paths: np.ndarray, radii: list[float], others: _Outline, geometry: Geometry
) -> np.ndarray:
    """Return whether the last dash of each path [2·dashes, p] is where it may be.

    It must be lit within the picture only, and no step of `reach` may join it to another path. Two
    dashes are closest where one of them begins or ends, which the outline knows, and the other's
    nearest known point is displaced along it by half a dash at most: hence that term. Nor may it
    come as near to its own path, but for the dash before: for the looks, the label needs it not.
    """
    apart = geometry.reach + _HALF_DIAGONAL
    fits = (
        _square(paths[:-4:2] - paths[-2]).min(0, initial=math.inf) > (apart + _HALF_DIAGONAL) ** 2
    )
    middle = (geometry.size - 1) / 2
    for points, radius in zip(paths[-2:], radii, strict=True):
        room = geometry.size / 2 - radius
        fits &= np.maximum(np.abs(points.real - middle), np.abs(points.imag - middle)) <= room
        needed = (geometry.reach + radius + others.radii) ** 2 + (geometry.dash / 2) ** 2
        distances = _square(others.points[:, None] - points)
        fits &= (distances > needed[:, None]).all(axis=0)
    return fits


def _square(difference: np.ndarray) -> np.ndarray:
    return np.real(difference) ** 2 + np.imag(difference) ** 2


def _draw(
    geometry: Geometry, paths: tuple[np.ndarray, ...], dots: tuple[tuple[int, int], ...]
) -> np.ndarray:
    lines = np.concatenate(paths)
    discs = np.array([paths[path].reshape(-1, 2)[end] for path, end in dots])
    # A border takes what is drawn past the edge; it is cut off at the end.
    border = math.ceil(max(geometry.dash / 2 + geometry.thickness, geometry.dot) + 2)
    canvas = np.zeros((geometry.size + 2 * border,) * 2)
    _stroke(canvas, lines + border, geometry.thickness / 2, _INK)
    _stroke(canvas, np.stack([discs, discs], axis=1) + border, geometry.dot, 1.0)
    picture = canvas[border:-border, border:-border]
    return np.rint(255 * picture).astype(np.uint8)


def _stroke(canvas: np.ndarray, lines: np.ndarray, radius: float, ink: float) -> None:
    """Draw lines [n, 2, 2] with round ends, brighter over darker; the edge is a pixel wide."""
    begin, along = lines[:, 0], lines[:, 1] - lines[:, 0]
    square = (along**2).sum(1)
    half = math.ceil(math.sqrt(square.max()) / 2 + radius + 1)
    offsets = np.arange(-half, half + 1)
    middle = np.rint(lines.mean(axis=1)).astype(int)
    rows = middle[:, 0, None, None] + offsets[:, None]
    columns = middle[:, 1, None, None] + offsets
    down = rows - begin[:, 0, None, None]
    right = columns - begin[:, 1, None, None]
    reached = down * along[:, 0, None, None] + right * along[:, 1, None, None]
    share = np.clip(reached / np.maximum(square, 1e-12)[:, None, None], 0, 1)
    distance = np.hypot(
        down - share * along[:, 0, None, None], right - share * along[:, 1, None, None]
    )
    np.maximum.at(canvas, (rows, columns), ink * np.clip(radius + 0.5 - distance, 0, 1))
