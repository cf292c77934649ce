"""ListOps: nested operations on lists of digits, as the Long Range Arena generates and writes them.

The task is that of Nangia and Bowman, 2018 ("ListOps: a diagnostic dataset for latent tree
learning"), in the long form of Tay et al., 2021 ("Long Range Arena"): `[MAX 4 3 [MIN 2 3 ] 1 0 ]`
is 4. The release's `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv` have a line `Source`,
`Target` and then one case a line: the expression in binary brackets, `( ( ( [MAX 4 ) 3 ) ] )`, a
tab, and its value. The round brackets say nothing that the others do not; LRA's own input pipeline
drops them, too.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from flowformer.data.options import SequenceOptions
from flowformer.data.parallel import Workers, generator_of
from flowformer.data.sequences.records import (
    PADDING,
    SequenceData,
    Sequences,
    SequenceSet,
    SequenceSplit,
    folder_of,
    sizes_of,
)
from flowformer.progress import Work, working

# The operators stand in the order of `_apply`. A token's id is its place here, counted from 1.
LISTOPS_TOKENS = ("[MIN", "[MAX", "[MED", "[SM", "]", *map(str, range(10)))
LISTOPS_SIZES = {"train": 96_000, "validation": 2_000, "test": 2_000}  # LRA's

_OPERATORS = 4
_FIRST_OPERATOR = PADDING + 1
_END = _FIRST_OPERATOR + _OPERATORS
_ZERO = _END + 1

_OPERATOR_SHARE = 0.25  # LRA's probability that an argument is an operation, not a digit
_BLOCK = 256  # candidates that are drawn at once: part of what a seed means
_PATIENCE = 200  # blocks without one new expression, after which there are held to be no more


@dataclass(frozen=True, kw_only=True)
class _Grammar:
    min_length: int
    max_length: int
    max_depth: int
    max_arguments: int

    def __post_init__(self) -> None:
        if not 1 <= self.min_length < self.max_length - 1:
            raise ValueError(
                "expected 1 <= min_length and a length between min_length and max_length, "
                f"got {self.min_length} and {self.max_length}"
            )
        if self.max_depth < 2 or self.max_arguments < 2:
            raise ValueError(
                "max_depth and max_arguments must be at least 2, "
                f"got {self.max_depth} and {self.max_arguments}"
            )


def generate_listops(
    *,
    sizes: Mapping[str, int] = LISTOPS_SIZES,
    min_length: int = 500,
    max_length: int = 2000,
    max_depth: int = 10,
    max_arguments: int = 10,
    balanced: bool = True,
    seed: int = 0,
    workers: int = 1,
) -> SequenceData:
    """Generate the data set with the grammar and the defaults of the Long Range Arena.

    An expression is an operator (`[MIN`, `[MAX`, `[MED`: the median, cut to an integer, or `[SM`:
    the sum modulo 10), 2 to `max_arguments` arguments and `]`. An argument is an expression with
    probability 1/4 and a digit otherwise, at depth `max_depth` always a digit; the outermost
    operator is at depth 1. Its value, a digit, is the class.

    Candidates are drawn in blocks; a block follows from the seed, the name of the part and the
    number of the block alone. Of them those are taken, in order, whose length is right, which
    occurred before in no part, and of whose value there are not enough yet; the order is shuffled
    at the end. So the number of workers changes nothing.

    Args:
        sizes: cases of each part.
        min_length: a length is above this, counted in tokens: each operator, digit and `]` is one.
        max_length: a length is below this.
        max_depth: depth of a digit.
        max_arguments: arguments of an operator.
        balanced: as many cases of each value as of any other, up to one. LRA does not balance: 0
            and 9 are about twice as frequent there as the others (False gives its distribution).
        seed: seed of everything.
        workers: processes; see `flowformer.data.parallel.Workers`.

    Returns:
        Token ids uint8 [t] below 16, see `LISTOPS_TOKENS`; labels 0 to 9.

    Raises:
        ValueError: no such expressions exist, or not as many distinct ones as asked for.
    """
    grammar = _Grammar(
        min_length=min_length,
        max_length=max_length,
        max_depth=max_depth,
        max_arguments=max_arguments,
    )
    for part, size in sizes.items():
        if size < 1:
            raise ValueError(f"expected at least 1 case of {part}, got {size}")
    seen: set[bytes] = set()
    splits: dict[str, SequenceSplit] = {}
    with Workers(workers) as pool:
        for part, size in sizes.items():
            draw = partial(_block, part=part, seed=seed, grammar=grammar)
            with working(f"generating the {part} part", total=size, unit="cases") as work:
                cases = _choose(
                    pool.map(draw, count()),
                    work,
                    size,
                    quota=[(size + 9 - value) // 10 if balanced else size for value in range(10)],
                    seen=seen,
                )
            splits[part] = _shuffled(cases, generator_of(seed, part))
    return listops_data(
        f"generated, seed {seed}, lengths {min_length} to {max_length}"
        + (", balanced" if balanced else ""),
        splits,
    )


def listops_data(source: str, splits: Mapping[str, SequenceSplit]) -> SequenceData:
    """Return the set of these parts."""
    return SequenceData(
        name="listops",
        source=source,
        classes=tuple(map(str, range(10))),
        vocab_size=PADDING + 1 + len(LISTOPS_TOKENS),
        splits=splits,
    )


class _Case(NamedTuple):
    tokens: bytes
    value: int


def _shuffled(cases: list[_Case], rng: np.random.Generator) -> SequenceSplit:
    order = rng.permutation(len(cases))
    return SequenceSplit(
        Sequences.of(np.frombuffer(cases[i].tokens, np.uint8) for i in order),
        np.array([cases[i].value for i in order]),
    )


def _choose(
    blocks: Iterable[list[_Case]],
    work: Work,
    size: int,
    *,
    quota: list[int],
    seen: set[bytes],
) -> list[_Case]:
    """Take the first candidates that are new and of a value whose quota is not filled."""
    chosen: list[_Case] = []
    left = list(quota)
    idle = 0
    for block in blocks:
        before = len(chosen)
        for case in block:
            digest = blake2b(case.tokens, digest_size=16).digest()
            if left[case.value] and digest not in seen and len(chosen) < size:
                seen.add(digest)
                left[case.value] -= 1
                chosen.append(case)
        work.reach(len(chosen))
        if len(chosen) == size:
            break
        idle = 0 if len(chosen) > before else idle + 1
        if idle == _PATIENCE:
            raise ValueError(
                f"expected {size:,} distinct expressions, found {len(chosen):,}: allow other "
                "lengths, more depth or more arguments"
            )
    return chosen


def _block(number: int, *, part: str, seed: int, grammar: _Grammar) -> list[_Case]:
    """Draw a block of expressions and keep those of a right length."""
    levels = _grow(generator_of(seed, part, number), grammar)
    widths, values = _fold(levels)
    lengths = widths[0]
    tokens = _write(levels, widths)
    ends = np.cumsum(lengths)
    kept = np.flatnonzero((grammar.min_length < lengths) & (lengths < grammar.max_length))
    return [_Case(tokens[ends[i] - lengths[i] : ends[i]].tobytes(), int(values[i])) for i in kept]


class _Level(NamedTuple):
    """The operations at one depth of all expressions of a block, and their arguments.

    Attributes:
        kinds: kinds of the operations [n].
        counts: counts of their arguments [n], which stand one after the other.
        nested: which arguments are operations, those of the next level [m].
        digits: what the others are [m].
    """

    kinds: np.ndarray
    counts: np.ndarray
    nested: np.ndarray
    digits: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """The place of each operation's first argument [n]."""
        return np.cumsum(self.counts) - self.counts


def _grow(rng: np.random.Generator, grammar: _Grammar) -> list[_Level]:
    """Draw the expressions of a block, all at once, from the outermost operators down."""
    levels: list[_Level] = []
    lengths = np.ones(_BLOCK, int)
    owner = np.arange(_BLOCK)  # the expression that an operation belongs to
    for depth in range(1, grammar.max_depth):
        counts = rng.integers(2, grammar.max_arguments + 1, len(owner))
        lengths += np.bincount(owner, 1 + counts, minlength=_BLOCK).astype(int)
        owner = np.repeat(owner, counts)
        nested = rng.random(len(owner)) < _OPERATOR_SHARE
        # An expression that is too long already will be left out: it need not grow on, and would
        # without bound where depth and arguments are many.
        nested &= (depth + 1 < grammar.max_depth) & (lengths < grammar.max_length)[owner]
        kinds = rng.integers(0, _OPERATORS, len(counts))
        levels.append(_Level(kinds, counts, nested, rng.integers(0, 10, len(owner))))
        owner = owner[nested]
        if not len(owner):
            break
    return levels


def _fold(levels: list[_Level]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return how many tokens the operations of each level have, and the expressions' values."""
    widths: list[np.ndarray] = []
    width = values = np.array([], int)
    for level in reversed(levels):
        arguments = level.digits.copy()
        arguments[level.nested] = values
        values = _apply(level, arguments)
        width = 2 + np.add.reduceat(_argument_widths(level, width), level.starts)
        widths.insert(0, width)
    return widths, values


def _argument_widths(level: _Level, below: np.ndarray) -> np.ndarray:
    widths = np.ones(len(level.nested), int)
    widths[level.nested] = below
    return widths


def _apply(level: _Level, arguments: np.ndarray) -> np.ndarray:
    """Return the value of each operation [n], from those of all arguments [m]."""
    starts, counts = level.starts, level.counts
    operation = np.repeat(np.arange(len(counts)), counts)
    ranked = np.sort(10 * operation + arguments) % 10  # each operation's arguments, sorted
    middle = ranked[starts + (counts - 1) // 2] + ranked[starts + counts // 2]
    total = np.add.reduceat(arguments, starts)
    results = [ranked[starts], ranked[starts + counts - 1], middle // 2, total % 10]
    return np.choose(level.kinds, results)


def _write(levels: list[_Level], widths: list[np.ndarray]) -> np.ndarray:
    """Return the tokens of all expressions, one after the other."""
    tokens = np.empty(widths[0].sum(), np.uint8)
    begin = np.cumsum(widths[0]) - widths[0]
    for level, width, below in zip(levels, widths, [*widths[1:], np.array([], int)], strict=True):
        tokens[begin] = _FIRST_OPERATOR + level.kinds
        tokens[begin + width - 1] = _END
        argument_widths = _argument_widths(level, below)
        offsets = np.cumsum(argument_widths) - argument_widths
        places = np.repeat(begin + 1 - offsets[level.starts], level.counts) + offsets
        tokens[places[~level.nested]] = _ZERO + level.digits[~level.nested]
        begin = places[level.nested]
    return tokens


def evaluate_listops(tokens: Iterable[int]) -> int:
    """Return the value of an expression, by a machine with a stack that reads it once.

    It shares nothing with the generator, to which it is a check.

    Args:
        tokens: ids, see `LISTOPS_TOKENS`.

    Raises:
        ValueError: they are not one whole expression.
    """
    stack: list[tuple[str, list[int]]] = []
    value = None
    for position, token in enumerate(tokens):
        text = LISTOPS_TOKENS[token - 1] if 0 < token <= len(LISTOPS_TOKENS) else None
        if text is None or value is not None:
            expected = "a token" if value is None else "no token after the end"
            raise ValueError(f"expected {expected}, got id {token} at {position}")
        if text.startswith("["):
            stack.append((text, []))
            continue
        if text == "]":
            if not stack or not stack[-1][1]:
                raise ValueError(f"expected an operator with arguments before the ] at {position}")
            result = _reduce(*stack.pop())
        else:
            result = int(text)
        if stack:
            stack[-1][1].append(result)
        else:
            value = result
    if value is None:
        raise ValueError(f"expected {len(stack) or 'an expression and its'} more ], got the end")
    return value


def _reduce(operator: str, arguments: list[int]) -> int:
    match operator:
        case "[MIN":
            return min(arguments)
        case "[MAX":
            return max(arguments)
        case "[MED":
            return int(statistics.median(arguments))
        case _:
            return sum(arguments) % 10


def verify_listops(data: SequenceData) -> None:
    """Evaluate every expression and compare it with its label.

    Raises:
        ValueError: one is not whole, or its label is another than its value; says which.
    """
    for part, split in data.splits.items():
        for number, label in enumerate(split.labels.tolist()):
            try:
                value = evaluate_listops(split.inputs[number].tolist())
            except ValueError as error:
                raise ValueError(f"{data.name}: {part} case {number}: {error}") from error
            if value != label:
                raise ValueError(
                    f"{data.name}: {part} case {number}: expected the label {value}, got {label}"
                )


_FILES = {
    "train": "basic_train.tsv",
    "validation": "basic_val.tsv",
    "test": "basic_test.tsv",
}
_HEADER = b"Source\tTarget"
_IDS = {token.encode(): PADDING + 1 + i for i, token in enumerate(LISTOPS_TOKENS)}


def read_listops(folder: str | Path) -> SequenceData:
    """Read the three files of the release.

    Args:
        folder: where they are.

    Returns:
        Token ids uint8 [t] below 16, see `LISTOPS_TOKENS`; labels 0 to 9. Whether the labels are
        the values is another question: see `flowformer.data.sequences.listops.verify_listops`.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: a file is not as the format has it; the message names it and the line.
    """
    folder = Path(folder)
    for name in _FILES.values():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"expected {', '.join(_FILES.values())} in {folder}: no {name}")
    return listops_data(
        f"Long Range Arena's files in {folder}",
        {part: _read(folder / name) for part, name in _FILES.items()},
    )


def _read(path: Path) -> SequenceSplit:
    tokens = bytearray()
    offsets, labels = [0], []
    for line, row in _rows(path):
        try:
            expression, label = _case(row)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from error
        tokens += expression
        offsets.append(len(tokens))
        labels.append(label)
    if not labels:
        raise ValueError(f"{path}: expected cases after the first line, got the end: truncated?")
    inputs = Sequences(np.frombuffer(bytes(tokens), np.uint8), np.array(offsets))
    return SequenceSplit(inputs, np.array(labels))


def _rows(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for line, text in enumerate(file, start=1):
            row = text.rstrip(b"\r\n")
            if line > 1:
                yield line, row
            elif row != _HEADER:
                raise ValueError(
                    f"{path}, line 1: expected {_HEADER.decode()!r}, got {_excerpt(row)!r}"
                )


def _case(row: bytes) -> tuple[bytes, int]:
    source, tab, target = row.partition(b"\t")
    if not tab:
        raise ValueError(f"expected a tab and a target after {_excerpt(source)!r}: truncated?")
    if target not in _IDS or not target.isdigit():
        raise ValueError(f"expected a target from 0 to 9, got {_excerpt(target)!r}")
    return parse_listops(source).tobytes(), int(target)


def parse_listops(source: bytes) -> UInt8[np.ndarray, " t"]:
    """Read an expression as the release writes it: its tokens, brackets that only group left out.

    Raises:
        ValueError: an unknown token, or not one whole expression.
    """
    words = source.translate(None, b"()").split()
    try:
        tokens = np.array([_IDS[word] for word in words], np.uint8)
    except KeyError as error:
        known = " ".join(LISTOPS_TOKENS)
        raise ValueError(f"expected one of {known}, got {_excerpt(error.args[0])!r}") from None
    _require_whole(tokens)
    return tokens


def _require_whole(tokens: np.ndarray) -> None:
    """Refuse what is not one operation with all its ends."""
    opens, ends = tokens < _END, tokens == _END
    depth = np.cumsum(opens.astype(int) - ends)
    if not len(tokens) or not opens[0]:
        raise ValueError("expected an expression that begins with an operator")
    if (depth[:-1] < 1).any():
        raise ValueError(f"expected one expression, got more after token {np.argmin(depth > 0)}")
    if depth[-1]:
        raise ValueError(f"expected the end of the expression, {depth[-1]} more ]: truncated?")
    if (opens[:-1] & ends[1:]).any():
        raise ValueError("expected an operator with arguments, got one without")


def _excerpt(text: bytes) -> str:
    shown = text.decode(errors="replace")
    return shown if len(shown) <= 40 else f"{shown[:40]}…"


def _read_checked(options: SequenceOptions) -> SequenceData:
    folder = folder_of(options)
    assert options.max_length is not None
    data = read_listops(folder)
    lengths = {part: split.inputs.lengths for part, split in data.splits.items()}
    part = max(lengths, key=lambda one: lengths[one].max())
    if (longest := lengths[part].max()) > options.max_length:
        raise ValueError(
            f"{folder}: expected at most max_length={options.max_length:,} tokens, got "
            f"{longest:,} in {part} case {lengths[part].argmax()}: an expression cannot be cut"
        )
    return data


def _generate(options: SequenceOptions, workers: int) -> SequenceData:
    own = {name: getattr(options, name) for name in ("min_length", "max_length", "max_depth")}
    return generate_listops(sizes=sizes_of(options), **own, seed=options.seed, workers=workers)


LISTOPS = SequenceSet(
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
    read=_read_checked,
    generate=_generate,
    files=("basic_*.tsv",),
)
