"""Digests of what a run reads, by its place: other values give another one, wherever they lie.

A function for each kind of experiment, `digest(config, data)`, which loads the data where they are
not given. No torch here: the functions import what they need when they run.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowformer.machine import available_processors
from flowformer.train.config import TimeSeriesConfig
from flowformer.train.images.config import VisionConfig
from flowformer.train.language.config import LanguageConfig
from flowformer.train.sequences.config import SequenceConfig
from flowformer.train.trajectories.config import DecisionConfig

if TYPE_CHECKING:
    from flowformer.data.images.records import ImageData, ImageSplit
    from flowformer.data.language.tokens import PreparedText
    from flowformer.data.sequences.records import SequenceData
    from flowformer.data.series.records import TimeSeriesData
    from flowformer.data.trajectories.records import Trajectories

logger = logging.getLogger(__name__)

Digests = dict[str, str]

_MOST_FILES = 10_000  # that have a digest each; of more, each folder has one


def digest_series(config: TimeSeriesConfig, data: "TimeSeriesData | None" = None) -> Digests:
    """Digests of the training and the test series, their labels and classes."""
    if data is None:
        from flowformer.train.series.data import load_data

        data = load_data(config.data)
    own = config.data
    names = {part: f"{data.name}, {part} series" for part in ("train", "test")}
    if own.train_file is not None:
        names |= {"train": str(own.train_file), "test": str(own.test_file)}
    elif own.dataset is not None:
        folder = "" if own.folder is None else f" in {own.folder}"
        names = {part: f"{data.name}_{part.upper()}.ts{folder}" for part in names}
    splits = {"train": data.train, "test": data.test}
    return {
        names[part]: _digest([data.classes, split.labels, *split.series])
        for part, split in splits.items()
        if split is not None
    }


def digest_text(config: LanguageConfig, text: "PreparedText | None" = None) -> Digests:
    """Digests of each part of a tokenised text; of sums, which nobody reads, none."""
    from flowformer.data.language.tokens import read_meta
    from flowformer.train.language.config import ADDITION

    own = config.data
    if own.corpus == ADDITION:
        return {}
    if text is None:
        from flowformer.train.language.data import load_text

        text = load_text(own)
    name = own.corpus if own.folder is None else str(own.folder)
    # Those of the shards were compared with the files when these were opened.
    return {
        f"{name} ({part})": _digest([shard.sha256 for shard in shards])
        for part, shards in read_meta(text.folder).shards.items()
    }


def digest_sequences(config: SequenceConfig, data: "SequenceData | None" = None) -> Digests:
    """Digests of each part of a set of labelled sequences."""
    if data is None:
        from flowformer.train.sequences.data import load_sequences

        data = load_sequences(config.data)
    name = data.name if config.data.folder is None else str(config.data.folder)
    found = {}
    for part, split in data.splits.items():
        read = [split.inputs] if split.others is None else [split.inputs, split.others]
        arrays = [array for each in read for array in (each.offsets, each.values)]
        found[f"{name} ({part})"] = _digest([data.classes, split.labels, *arrays])
    return found


def digest_images(config: VisionConfig, data: "ImageData | None" = None) -> Digests:
    """Digests of each image file, or of each folder of very many; of a set's arrays by part."""
    if data is None:
        from flowformer.train.images.data import load_images

        data = load_images(config.data)
    name = config.data.dataset or str(config.data.path)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    found: Digests = {}
    files: list[Path] = []
    for part, split in splits.items():
        if split is not None and isinstance(split.images, np.ndarray):
            found[f"{name} ({part})"] = _digest([data.classes, split.labels, split.images])
        elif split is not None:
            files += _files(split)
    return found | digest_files(files)


def digest_trajectories(config: DecisionConfig, data: "Trajectories | None" = None) -> Digests:
    """A digest of all episodes; of two sets that are mixed, one of both."""
    if data is None:
        from flowformer.train.trajectories.data import load_trajectories

        data = load_trajectories(config.data)
    own = config.data
    name = str(own.path or own.dataset)
    if own.mixed_with is not None:
        name += f" or {own.mixed_with}"
    arrays = (data.observations, data.actions, data.rewards, data.starts, data.terminated)
    return {name: _digest(arrays)}


def digest_files(files: Iterable[Path], *, most: int = _MOST_FILES) -> Digests:
    """Digests of the content of files, read once; of each folder where there are too many.

    Args:
        files: to be read.
        most: that have a digest each.

    Raises:
        OSError: one cannot be read.
    """
    paths = sorted(set(files))
    if len(paths) > most:
        logger.info("reading %s files once, to know them again", f"{len(paths):,}")
    with ThreadPoolExecutor(min(8, available_processors())) as pool:
        digests = dict(zip(map(str, paths), pool.map(_digest_file, paths), strict=True))
    if len(paths) <= most:
        return digests
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(str(path.parent), []).append(f"{path.name} {digests[str(path)]}")
    return {folder: _digest(lines) for folder, lines in folders.items()}


def _files(split: "ImageSplit") -> list[Path]:
    return [image for image in split.images if isinstance(image, Path)]


def _hash() -> Any:
    return hashlib.blake2b(digest_size=16)


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _hash).hexdigest()


def _digest(values: Iterable[Any]) -> str:
    """Of arrays with their shapes and types, and of texts."""
    found = _hash()
    for value in values:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype.str}{value.shape}".encode())
            found.update(np.ascontiguousarray(value))
        else:
            found.update(repr(value).encode(errors="surrogatepass"))
    return found.hexdigest()


def require_same_data(runs: Mapping[str, Digests], now: Digests | None = None) -> None:
    """Refuses runs that have read other data than the first of them, or than there are now.

    Args:
        runs: what each has read, by its name.
        now: what is there now.

    Raises:
        ValueError: the message names the run and the data.
    """
    from flowformer.train.folder import changed_data

    first = next(iter(runs), None)
    for name, digests in runs.items():
        assert first is not None
        if changed := changed_data(runs[first], digests):
            raise ValueError(
                f"{first} and {name} have read different data, which do not compare: "
                f"{'; '.join(changed)}. Remove the runs of one, or choose another folder (--output)"
            )
    if first is not None and now is not None and (changed := changed_data(runs[first], now)):
        raise ValueError(
            f"{first} has read other data than there are now: {'; '.join(changed)}. Choose another "
            "folder (--output), or remove the runs"
        )
