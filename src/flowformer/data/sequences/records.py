"""Labelled sequences, or pairs of them, as the Long Range Arena's tasks are; and a set's entry."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int16, Shaped, UInt8

from flowformer.data.arrays import map_array
from flowformer.data.options import SequenceOptions
from flowformer.files import atomic_file, parse_json, write_atomically

PADDING = 0  # fills up batches; no real token has this id
FIRST_BYTE = PADDING + 1  # where a token is a byte or a grey value: the id of 0
BYTE_VOCAB = FIRST_BYTE + 256

_OF_OWN_FILES = ("folder", "max_length")  # the other options are of what is generated
GENERATED_PARTS = ("train", "validation", "test")
DESCRIPTION = "description.json"  # written last: a folder without it is not whole


@dataclass(frozen=True)
class Sequences:
    """Sequences of different lengths, one after the other in one array.

    Attributes:
        values: token ids [total], or features [total, c].
        offsets: where each begins, and where the last ends, [n + 1].
    """

    values: np.ndarray
    offsets: Int[np.ndarray, " n_plus_1"]

    def __post_init__(self) -> None:
        offsets = self.offsets
        if (
            offsets.ndim != 1
            or len(offsets) == 0
            or offsets[0] != 0
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError("expected offsets that rise from 0")
        if offsets[-1] != len(self.values):
            raise ValueError(
                f"expected {offsets[-1]:,} values, got {len(self.values):,}: truncated?"
            )

    @classmethod
    def of(cls, sequences: Iterable[np.ndarray]) -> "Sequences":
        """Join arrays of one kind; at least one is expected.

        Raises:
            ValueError: there are none.
        """
        arrays = list(sequences)
        if not arrays:
            raise ValueError("expected at least one sequence, got none")
        lengths = np.array([len(array) for array in arrays])
        return cls(np.concatenate(arrays), np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one, as a view: [t] or [t, c].

        Raises:
            IndexError: there is none of that number.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index in [0, {len(self)}), got {index}")
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Of each."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class SequenceSplit:
    """One part of a data set.

    Attributes:
        inputs: the sequences.
        labels: the class of each, from 0 on.
        others: where a case is a pair of documents, the second of each.
    """

    inputs: Sequences
    labels: Int[np.ndarray, " n"]
    others: Sequences | None = None

    def __post_init__(self) -> None:
        counts = {"labels": len(self.labels)}
        if self.others is not None:
            counts["others"] = len(self.others)
        for name, count in counts.items():
            if count != len(self.inputs):
                raise ValueError(f"expected {len(self.inputs)} {name}, one a sequence, got {count}")

    @classmethod
    def of_pictures(
        cls, pictures: UInt8[np.ndarray, "n h w"], labels: Shaped[np.ndarray, " n"]
    ) -> "SequenceSplit":
        """Take the grey values of each picture, row by row, as tokens (`byte_tokens`)."""
        offsets = np.arange(len(pictures) + 1) * (pictures.shape[1] * pictures.shape[2])
        values = byte_tokens(pictures.reshape(-1))
        return cls(Sequences(values, offsets), labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SequenceData:
    """A data set of labelled sequences.

    Attributes:
        name: name of the set.
        source: where it is from, in words; and in what it differs from the set of a paper.
        classes: what each label means.
        vocab_size: token ids are below this, and `PADDING` is none of them; None for features.
        splits: train and test, and validation where the set has one of its own.
        picture: height and width, where a sequence is the rows of a picture.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    vocab_size: int | None
    splits: Mapping[str, SequenceSplit]
    picture: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check labels and tokens against what they are said to be.

        Raises:
            ValueError: a label or a token is out of range; the message says where.
        """
        for part, split in self.splits.items():
            _require_below(len(self.classes), split.labels, f"{self.name}: {part} labels", least=0)
            for sequences in (split.inputs, split.others):
                if self.vocab_size is not None and sequences is not None:
                    what = f"{self.name}: {part} tokens"
                    _require_below(self.vocab_size, sequences.values, what, least=PADDING + 1)

    @property
    def paired(self) -> bool:
        """Whether a case is a pair of documents."""
        return any(split.others is not None for split in self.splits.values())

    def save(self, folder: Path) -> None:
        """Write it; a kill leaves a folder that `load` refuses, never half a set."""
        for part, split in self.splits.items():
            for name, array in _arrays(split).items():
                with atomic_file(folder / f"{part}-{name}.npy") as file:
                    np.save(file, array)
        description: dict[str, Any] = {
            "name": self.name,
            "source": self.source,
            "classes": self.classes,
            "vocab_size": self.vocab_size,
            "picture": self.picture,
            "splits": {part: list(_arrays(split)) for part, split in self.splits.items()},
        }
        write_atomically(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "SequenceData":
        """Read what `save` wrote: look through the arrays once, and leave them on the disk.

        Raises:
            FileNotFoundError: there is no such set there, or not a whole one.
            ValueError: a file is damaged.
        """
        path = folder / DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(f"expected a prepared data set in {folder}, found none")
        try:
            known = parse_json(path.read_text())
            splits = {part: _read_split(folder, part, of) for part, of in known["splits"].items()}
            return cls(
                name=known["name"],
                source=known["source"],
                classes=tuple(known["classes"]),
                vocab_size=known["vocab_size"],
                splits=splits,
                picture=None if known["picture"] is None else tuple(known["picture"]),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder} holds a damaged data set: delete it, to prepare it anew ({error})"
            ) from error


@dataclass(frozen=True, kw_only=True)
class SequenceSet:
    """A data set that has a name; it stands beside its reader.

    Attributes:
        name: in the table of sets.
        description: one line.
        source: where it is from.
        defaults: the options that it takes, and their values where they are not given.
        read: reads the user's files, or fetches those of a package.
        generate: makes the set where no folder is given, by so many processes; None for a set that
            is only read.
        files: patterns of the user's files, in the folder. None where their content is known.
    """

    name: str
    description: str
    source: str
    defaults: Mapping[str, Any]
    read: Callable[[SequenceOptions], SequenceData]
    generate: Callable[[SequenceOptions, int], SequenceData] | None = None
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
        """Return the options that it takes, with files of the user or without.

        Raises:
            ValueError: it does not take one of the names.
        """
        takes, when = self.options, ""
        if own_files and self.generate is not None:
            takes = tuple(name for name in takes if name in _OF_OWN_FILES)
            when = " with files of one's own"
        for name in names:
            if name not in takes:
                raise ValueError(f"{self.name}{when} takes {', '.join(takes)}, got {name}")
        return takes

    def resolve(self, options: SequenceOptions) -> SequenceOptions:
        """Fill in the defaults; paths become absolute.

        Raises:
            ValueError: an option is given that the set does not take, or not beside a folder, or
                the sizes are not three.
        """
        given = {
            field.name: value
            for field in fields(SequenceOptions)
            if (value := getattr(options, field.name)) != field.default and field.name != "dataset"
        }
        takes = self.require_taken(given, own_files=options.folder is not None)
        if options.sizes is not None and len(options.sizes) != 3:
            raise ValueError(
                f"expected three sizes, of train, validation and test, got {options.sizes}"
            )
        if options.folder is not None:
            given["folder"] = options.folder.expanduser().resolve()
        values = {name: given.get(name, self.defaults[name]) for name in takes}
        return SequenceOptions(dataset=self.name, **values)


def folder_of(options: SequenceOptions) -> Path:
    """Return the folder of the user's files.

    Raises:
        ValueError: none is given.
    """
    if options.folder is None:
        raise ValueError(f"{options.dataset} is read from files of one's own: give their folder")
    return options.folder


def sizes_of(options: SequenceOptions) -> dict[str, int]:
    """Return the number of cases of each part of a generated set."""
    assert options.sizes is not None
    return dict(zip(GENERATED_PARTS, options.sizes, strict=True))


def byte_tokens(values: UInt8[np.ndarray, " n"]) -> Int16[np.ndarray, " n"]:
    """Bytes, or grey values, as token ids: value + 1, below `BYTE_VOCAB`."""
    return values.astype(np.int16) + np.int16(FIRST_BYTE)


def _require_below(bound: int, values: np.ndarray, what: str, *, least: int) -> None:
    if not len(values):
        return
    lowest, highest = values.min(), values.max()
    if lowest < least or highest >= bound:
        raise ValueError(f"{what} must be in [{least}, {bound}), got {lowest} to {highest}")


def _arrays(split: SequenceSplit) -> dict[str, np.ndarray]:
    arrays = {
        "values": split.inputs.values,
        "offsets": split.inputs.offsets,
        "labels": split.labels,
    }
    if split.others is not None:
        arrays |= {"other-values": split.others.values, "other-offsets": split.others.offsets}
    return arrays


def _read_split(folder: Path, part: str, names: list[str]) -> SequenceSplit:
    arrays = {name: map_array(folder / f"{part}-{name}.npy") for name in names}
    others = None
    if "other-values" in arrays:
        others = Sequences(arrays["other-values"], arrays["other-offsets"])
    return SequenceSplit(Sequences(arrays["values"], arrays["offsets"]), arrays["labels"], others)
