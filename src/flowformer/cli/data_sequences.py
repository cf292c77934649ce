"""`flowformer data prepare | show` of the Long Range Arena's data sets."""

import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import numpy as np
import tyro

from flowformer.cli.parsing import parse
from flowformer.data.sequences.listops import LISTOPS_TOKENS, evaluate_listops
from flowformer.data.sequences.preparation import (
    ArenaOptions,
    ArenaSet,
    Difficulty,
    arena_folder,
    find_arena_set,
    prepare_arena,
    sample_arena,
)
from flowformer.data.sequences.records import FIRST_BYTE, SequenceData, SequenceSplit
from flowformer.files import require_no_input, write_atomically

_SAMPLE_BYTES = 400  # shown of a text
_WIDTH = 100
_SAY_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class ArenaFlags:
    """What flowformer data prepare NAME and show NAME take of a set of the Long Range Arena.

    Attributes:
        name: of the set, see flowformer data list.
        folder: where your files are, laid out as the release or the package has them.
        max_length: longest sequence: texts are cut to it, generated ListOps are below it, and
            files of longer ListOps are refused.
        min_length: generated ListOps are above it.
        max_depth: of generated ListOps.
        difficulty: of generated pictures: 6, 9 or 14 dashes in a long path.
        sizes: cases of train, validation and test that are generated.
        seed: of what is generated, shuffled or drawn.
    """

    name: str
    folder: Path | None = None
    max_length: int | None = None
    min_length: int | None = None
    max_depth: int | None = None
    difficulty: Difficulty | None = None
    sizes: tuple[int, int, int] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ArenaPrepareFlags(ArenaFlags):
    """Read or generate a set of the Long Range Arena once, into a folder.

    Attributes:
        output: folder of the prepared set; by default one under the user's cache.
        workers: processes that generate; as many as cores by default.
    """

    output: Path | None = None
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class ArenaShowFlags(ArenaFlags):
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


Flags = TypeVar("Flags", bound=ArenaFlags)


def prepare(name: str, arguments: Sequence[str]) -> int:
    """Prepares a set and says what is in it."""
    of = find_arena_set(name)
    flags = _parse(ArenaPrepareFlags, of, arguments, action="prepare")
    options = _options(of, flags)
    data = prepare_arena(
        name, options, output=flags.output, workers=flags.workers, progress=_progress()
    )
    folder = arena_folder(name, options) if flags.output is None else flags.output
    sys.stdout.write(f"{describe(data, folder)}\nNext: flowformer data show {folder}\n")
    return 0


def show(name: str, arguments: Sequence[str]) -> int:
    """Shows cases of a set that has a name."""
    of = find_arena_set(name)
    flags = _parse(ArenaShowFlags, of, arguments, action="show")
    _require_some(flags.count)
    data = sample_arena(name, _options(of, flags), part=flags.part, count=flags.count)
    sys.stdout.write("\n".join([data.name, *_wrapped(data.source), ""]))
    _show_cases(data, folder=flags.folder, part=flags.part, count=flags.count, output=flags.output)
    return 0


def show_folder(folder: Path, *, part: str, count: int, output: Path | None) -> None:
    """Says what is in a prepared folder, and shows cases of it."""
    _require_some(count)
    data = SequenceData.load(folder)
    sys.stdout.write(describe(data, folder))
    _show_cases(data, folder=folder, part=part, count=count, output=output)


def describe(data: SequenceData, folder: Path) -> str:
    """A table of the parts: cases, lengths, and how many are of each class."""
    columns = [[part, *_numbers(split, data)] for part, split in data.splits.items()]
    names = ["", "cases", "shortest", "median", "longest", *(f"is {one}" for one in data.classes)]
    width = max(map(len, names))
    lines = [
        f"{name:<{width}}" + "".join(f"{column[row]:>16}" for column in columns)
        for row, name in enumerate(names)
    ]
    return "\n".join([f"{data.name}, in {folder}", *_wrapped(data.source), "", *lines, ""])


def _parse(kind: type[Flags], of: ArenaSet, arguments: Sequence[str], *, action: str) -> Flags:
    """Reads the flags; the help has those that the set takes, with their defaults."""
    hints = get_type_hints(kind)
    given = {argument.partition("=")[0].replace("-", "_") for argument in arguments}
    columns: list[Any] = []
    for name in (one.name for one in fields(ArenaOptions)):
        if name in of.defaults:
            columns.append((name, hints[name], field(default=of.defaults[name])))
        else:
            if f"__{name}" in given:  # tyro would not say which ones there are
                of.require_taken([name])
            default = field(default=getattr(ArenaOptions, name))
            columns.append((name, Annotated[hints[name], tyro.conf.Suppress], default))
    made = make_dataclass(kind.__name__, columns, bases=(kind,), frozen=True, kw_only=True)
    made.__doc__ = kind.__doc__
    return parse(made, arguments, prog=f"flowformer data {action}")


def _options(of: ArenaSet, flags: ArenaFlags) -> ArenaOptions:
    """What was given; a flag that has the set's default counts as not given."""
    values = {one.name: getattr(flags, one.name) for one in fields(ArenaOptions)}
    return ArenaOptions(
        **{name: value for name, value in values.items() if value != of.defaults.get(name)}
    )


def _progress() -> Callable[[str, int], None]:
    said = time.monotonic()

    def say(part: str, count: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _SAY_SECONDS:
            sys.stderr.write(f"{part}: {count:,} cases\n")
            said = time.monotonic()

    return say


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
