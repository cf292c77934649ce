"""`flowformer data prepare | show` of the Long Range Arena's data sets."""

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import numpy as np
import tyro

from flowformer.cli.parsing import Named, parse
from flowformer.data.options import SequenceOptions
from flowformer.data.sequences.listops import LISTOPS_TOKENS, evaluate_listops
from flowformer.data.sequences.preparation import (
    find_sequence_set,
    prepare_sequences,
    sample_sequences,
    sequences_folder,
)
from flowformer.data.sequences.records import FIRST_BYTE, SequenceData, SequenceSplit
from flowformer.files import require_no_input, write_atomically

_SAMPLE_BYTES = 400  # shown of a text
_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class PrepareFlags(SequenceOptions):
    """Read or generate a set of the Long Range Arena once, into a folder.

    Attributes:
        output: folder of the prepared set; by default one under the user's cache.
        workers: processes that generate; as many as cores by default.
    """

    output: Path | None = None
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class ShowFlags(SequenceOptions):
    """Show cases of a set of the Long Range Arena, or of a prepared folder.

    Of a set that is generated, cases are generated for it and not kept; the others are prepared.

    Attributes:
        part: train, validation or test.
        count: cases shown, drawn at random and always the same.
        output: the picture that shows them, where they are pictures; NAME-PART.png by default.
    """

    part: str = "test"
    count: int = 4
    output: Path | None = None


Flags = TypeVar("Flags", bound=SequenceOptions)


def prepare(name: str, arguments: Sequence[str]) -> int:
    """Prepare a set and say what is in it."""
    flags, options = _parse(PrepareFlags, name, arguments, action="prepare")
    data = prepare_sequences(options, output=flags.output, workers=flags.workers)
    folder = sequences_folder(options) if flags.output is None else flags.output
    sys.stdout.write(f"{describe(data, folder)}\nNext: flowformer data show {folder}\n")
    return 0


def show(name: str, arguments: Sequence[str]) -> int:
    """Show cases of a set that has a name."""
    flags, options = _parse(ShowFlags, name, arguments, action="show")
    _require_some(flags.count)
    data = sample_sequences(options, part=flags.part, count=flags.count)
    sys.stdout.write("\n".join([data.name, *_wrapped(data.source), ""]))
    _show_cases(data, folder=flags.folder, part=flags.part, count=flags.count, output=flags.output)
    return 0


def show_folder(folder: Path, *, part: str, count: int, output: Path | None) -> int:
    """Say what is in a prepared folder, and show cases of it."""
    _require_some(count)
    data = SequenceData.load(folder)
    sys.stdout.write(describe(data, folder))
    _show_cases(data, folder=folder, part=part, count=count, output=output)
    return 0


def describe(data: SequenceData, folder: Path) -> str:
    """Return a table of the parts: cases, lengths, and how many are of each class."""
    columns = [[part, *_numbers(split, data)] for part, split in data.splits.items()]
    names = ["", "cases", "shortest", "median", "longest", *(f"is {one}" for one in data.classes)]
    width = max(map(len, names))
    lines = [
        f"{name:<{width}}" + "".join(f"{column[row]:>16}" for column in columns)
        for row, name in enumerate(names)
    ]
    return "\n".join([f"{data.name}, in {folder}", *_wrapped(data.source), "", *lines, ""])


def _parse(
    kind: type[Flags], name: str, arguments: Sequence[str], *, action: str
) -> tuple[Flags, SequenceOptions]:
    """Read the flags; the help has those that the set takes, with their defaults.

    Returns:
        All flags, and the options that were given: one with the set's default counts as not given.
    """
    of = find_sequence_set(name)
    hints = get_type_hints(kind) | {"sizes": tuple[int, int, int] | None}
    given = {argument.partition("=")[0].replace("-", "_") for argument in arguments}
    columns: list[Any] = [("dataset", Named[str], field())]
    options = [one for one in fields(SequenceOptions) if one.name != "dataset"]
    for option in options:
        hint, default = hints[option.name], of.defaults.get(option.name, option.default)
        if option.name not in of.defaults:
            if f"__{option.name}" in given:  # tyro would not say which ones there are
                of.require_taken([option.name])
            hint = Annotated[hint, tyro.conf.Suppress]
        columns.append((option.name, hint, field(default=default)))
    made = make_dataclass(kind.__name__, columns, bases=(kind,), frozen=True, kw_only=True)
    made.__doc__ = kind.__doc__
    flags = parse(made, arguments, prog=f"flowformer data {action}")
    values = {one.name: getattr(flags, one.name) for one in options}
    values = {name: value for name, value in values.items() if value != of.defaults.get(name)}
    return flags, SequenceOptions(dataset=of.name, **values)


def _numbers(split: SequenceSplit, data: SequenceData) -> list[str]:
    sequences = [split.inputs] if split.others is None else [split.inputs, split.others]
    lengths = np.concatenate([one.lengths for one in sequences])
    counts = np.bincount(split.labels, minlength=len(data.classes))
    return [
        f"{len(split):,}",
        *(f"{measure(lengths):,.0f}" for measure in (np.min, np.median, np.max)),
        *(f"{count:,} ({count / len(split):.1%})" for count in counts),
    ]


def _show_cases(
    data: SequenceData, *, folder: Path | None, part: str, count: int, output: Path | None
) -> None:
    if part not in data.splits:
        raise ValueError(f"part must be one of {', '.join(data.splits)}, got {part!r}")
    if output is not None and data.picture is None:
        raise ValueError(f"output is for pictures, and {data.name} has none")
    if output is not None and folder is not None:
        require_no_input(output, [folder])
    split = data.splits[part]
    chosen = np.random.default_rng(0).permutation(len(split))[:count].tolist()
    if data.picture is not None:
        _write_pictures(data, part, chosen, output or Path(f"{data.name}-{part}.png"))
        return
    for case in chosen:
        lines = _expression(split, case) if data.name == "listops" else _texts(data, split, case)
        sys.stdout.write("\n".join(["", f"{part} case {case}", *lines, ""]))


def _expression(split: SequenceSplit, case: int) -> list[str]:
    tokens = split.inputs[case].tolist()
    text = " ".join(LISTOPS_TOKENS[token - 1] for token in tokens)
    value = evaluate_listops(tokens)
    return [*_wrapped(text), f"= {split.labels[case]} (evaluated: {value}, {len(tokens):,} tokens)"]


def _texts(data: SequenceData, split: SequenceSplit, case: int) -> list[str]:
    lines = [f"label: {data.classes[split.labels[case]]}"]
    for sequences in (split.inputs, split.others):
        if sequences is not None:
            tokens = sequences[case]
            start = (tokens[:_SAMPLE_BYTES] - FIRST_BYTE).astype(np.uint8).tobytes()
            more = " …" if len(tokens) > _SAMPLE_BYTES else ""
            lines += [f"{len(tokens):,} bytes:", *_wrapped(start.decode(errors="replace") + more)]
    return lines


def _write_pictures(data: SequenceData, part: str, chosen: list[int], output: Path) -> None:
    from flowformer.report.figures import contact_sheet, png_bytes

    split = data.splits[part]
    assert data.picture is not None
    pictures = np.stack([split.inputs[case].reshape(data.picture) for case in chosen])
    captions = [f"{case}: {data.classes[split.labels[case]]}" for case in chosen]
    sheet = contact_sheet((pictures - FIRST_BYTE).astype(np.uint8), captions)
    write_atomically(output, png_bytes(sheet))
    sys.stdout.write("".join(f"{part} case {caption}\n" for caption in captions))
    sys.stdout.write(f"\nin {output}\n")


def _require_some(count: int) -> None:
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH)
