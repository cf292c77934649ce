"""The `.ts` text format of the UEA and UCR archives, read strictly.

aeon reads the format too, but without line numbers, with labels in lower case, and without a look
at what `@dimensions`, `@seriesLength` and `@classLabel` promise. A test holds the two readers equal
on the files that aeon ships.
"""

import difflib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float64

# No archive's file needs more of it, and a line of PEMS-SF is a megabyte long.
_EXCERPT_LENGTH = 40
_MOST_DIGITS = 18  # of a count; Python itself refuses to read thousands
_ALIKE = 0.65  # of a tag and one that is known: "labels" is not "classlabel", "class" is
_UNKNOWN = {"?", "nan"}  # what writers put where a label is not known


class TsFormatError(ValueError):
    """A `.ts` file does not hold what the format or its own header promises."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TsFile:
    """What one `.ts` file holds.

    Attributes:
        path: the file.
        problem_name: what `@problemName` says; empty without one.
        series: one [channels, time] array a data line; NaN is a missing value.
        labels: one label a data line, spelled as in `@classLabel`, None where it is not known (`?`
            or `NaN`); None where the header has none or none is known.
        classes: the labels that `@classLabel` lists, in its order. Where data lines have labels of
            several words, the list is read as made of these.
        targets: where the header has `@targetLabel true`, the number to predict of each data line,
            None where it is not known; else None.
    """

    path: Path
    problem_name: str
    series: tuple[Float64[np.ndarray, "channels _"], ...]
    labels: tuple[str | None, ...] | None
    classes: tuple[str, ...]
    targets: tuple[float | None, ...] | None = None


def read_ts(path: str | Path) -> TsFile:
    """Read one `.ts` file.

    The header is lines `@tag value` up to `@data`; case and underscores of a tag do not matter. A
    data line is the channels, separated by `:`, each of them numbers separated by commas, with `?`
    or `NaN` for a missing value; at its end stands the label, where the header has
    `@classLabel true …`, or the number to predict, where it has `@targetLabel true`; where it has
    neither, a `:` or `:?` may stand there. Lines that are blank or start with `#` or `%` are left
    out.

    Args:
        path: the file.

    Warns:
        UserWarning: the header has tags that the format does not know, which are skipped.

    Raises:
        FileNotFoundError: there is no such file, or it is a folder.
        TsFormatError: the file is not as the format, or its own header, has it. The message names
            the file, the line, what was expected and what came. Timestamps and a tag that looks
            like a misspelt one are refused in the same way.
    """
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(f"expected a .ts file, got the folder {path}")
    lines = _Lines(path)
    header = _read_header(lines)
    series: list[np.ndarray] = []
    labels: list[tuple[int, str]] = []  # with the number of the line
    targets: list[float | None] = []
    for line in lines:
        parts, label = header.part(line)
        header.check_parts(len(parts) + (label is not None), lines)
        if label is not None and header.targeted:
            targets.append(_read_target(label, lines))
        elif label is not None:
            labels.append((lines.number, label))
        series.append(_read_series(parts, lines))
        header.check_series(series[-1], lines)
    if not series:
        lines.fail("at least one series after @data", "the end of the file")
    classes, known = _spelled(header.words, labels, lines)
    return TsFile(
        path=path,
        problem_name=header.problem_name,
        series=tuple(series),
        labels=known if any(known) else None,
        classes=classes,
        targets=tuple(targets) or None,
    )


class _Lines:
    """The lines of a file that are neither blank nor comments, and the number of the last read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 1
        self._content = self._read()

    def __iter__(self) -> Iterator[str]:
        return (
            self._content
        )  # always the same one: the data's loop goes on where the header's stopped

    def _read(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            for self.number, raw in enumerate(file, start=1):
                content = raw.removeprefix(b"\xef\xbb\xbf").strip()
                # Comments first: official files have names in other encodings there.
                if not content or content.startswith((b"#", b"%")):
                    continue
                if b"\0" in content:
                    self.fail("text", f"binary data, {_excerpt(content)}")
                try:
                    text = content.decode()
                except UnicodeDecodeError:
                    self.fail("UTF-8 text", f"binary data, {_excerpt(content)}")
                yield text

    def fail(self, expected: str, came: str) -> NoReturn:
        raise TsFormatError(f"{self.path}, line {self.number}: expected {expected}, got {came}")


@dataclass(kw_only=True)
class _Header:
    """What the header promises of every data line; what it leaves open, the first line settles."""

    problem_name: str = ""
    words: tuple[str, ...] = ()
    targeted: bool = False
    channels: int | None
    equal_length: bool
    length: int | None
    length_source: str = "@seriesLength says"

    @property
    def labelled(self) -> bool:
        """Whether a data line ends in a class or a number to predict."""
        return bool(self.words) or self.targeted

    def part(self, line: str) -> tuple[list[str], str | None]:
        """Return the channels of a data line and its label, None in a file without."""
        parts = line.split(":")
        if self.targeted:
            return parts[:-1], parts[-1].strip()
        if self.words:
            # A class may have the ':' that separates channels in its name.
            own = self.channels if any(":" in word for word in self.words) else None
            if own is None or len(parts) <= own:
                own = max(len(parts) - 1, 0)
            return parts[:own], " ".join(":".join(parts[own:]).split())
        # Writers end a line without a label like one with, or say that there is none.
        last = parts[-1].strip()
        if len(parts) > 1 and (not last or (last == "?" and len(parts) - 1 == self.channels)):
            parts.pop()
        return parts, None

    def check_parts(self, parts: int, lines: _Lines) -> None:
        channels = parts - self.labelled
        if channels < 1:
            lines.fail("at least one channel and a label, with ':' between", "a line without ':'")
        self.channels = self.channels or channels
        if channels != self.channels:
            what = f"{self.channels} channel{'s' * (self.channels > 1)}"
            what += " and a label" * self.labelled
            lines.fail(
                f"{what}, {self.channels + self.labelled} parts separated by ':'",
                f"{parts}",
            )

    def check_series(self, series: np.ndarray, lines: _Lines) -> None:
        length = series.shape[1]
        if self.length is None and self.equal_length:
            self.length, self.length_source = length, "in the first series (@equalLength true)"
        if self.length is not None and length != self.length:
            lines.fail(f"{self.length} values a channel, as {self.length_source}", f"{length}")


def _read_header(lines: _Lines) -> _Header:
    tags: dict[str, Any] = {}
    for line in lines:
        if not line.startswith("@"):
            lines.fail("'@tag value' or '@data' before any data", _excerpt(line))
        name, *values = line[1:].split() or [""]
        tag = name.lower().replace("_", "")
        if tag == "data":
            if values:
                lines.fail("@data alone on its line", _excerpt(line))
            equal_length = tags.get("equallength", "serieslength" in tags)
            return _Header(
                problem_name=tags.get("problemname", ""),
                words=_words(tags, lines),
                targeted=tags.get("targetlabel", False),
                channels=_promised_channels(tags, lines),
                equal_length=equal_length,
                length=tags.get("serieslength") if equal_length else None,
            )
        if tag not in _TAGS:
            _say_unknown(name, values, lines)
            continue
        key = "dimensions" if tag == "dimension" else tag
        tags[key] = _TAGS[tag](f"@{tag}", values, lines)
    return lines.fail("a line '@data'", "the end of the file")


def _say_unknown(tag: str, values: list[str], lines: _Lines) -> None:
    known = [*_TAGS, *(() if values else ("data",))]
    near = difflib.get_close_matches(tag.lower(), known, n=1, cutoff=_ALIKE)
    if near:
        lines.fail(f"a tag of the format (did you mean @{near[0]}?)", f"'@{_shortened(tag)}'")
    warnings.warn(
        f"{lines.path}, line {lines.number}: skipped the tag '@{_shortened(tag)}', which the "
        "format does not know",
        UserWarning,
        stacklevel=4,
    )


def _spelled(
    words: tuple[str, ...], labels: list[tuple[int, str]], lines: _Lines
) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Return the classes that a header lists, and the data lines' labels as it spells them."""
    classes = _joined_words(words, [label for _, label in labels])
    # The field's readers lower-case whole files, so files exist that mix the cases.
    spelling = {label.casefold(): label for label in classes} | {label: label for label in classes}
    known: list[str | None] = []
    for lines.number, label in labels:
        if label.casefold() in _UNKNOWN:
            known.append(None)
            continue
        spelled = spelling.get(label) or spelling.get(label.casefold())
        if spelled is None:
            lines.fail(f"a label that @classLabel lists ({_listed(classes)})", _excerpt(label))
        known.append(spelled)
    return classes, tuple(known)


def _joined_words(words: tuple[str, ...], labels: list[str]) -> tuple[str, ...]:
    """Return the words of a header as classes: those that data lines have as one label together."""
    several = {tuple(label.casefold().split()) for label in labels if " " in label}
    sizes = sorted({len(label) for label in several}, reverse=True)
    classes: list[str] = []
    place = 0
    while place < len(words):
        folded = [word.casefold() for word in words[place : place + max(sizes, default=1)]]
        size = next((size for size in sizes if tuple(folded[:size]) in several), 1)
        classes.append(" ".join(words[place : place + size]))
        place += size
    return tuple(label for label in dict.fromkeys(classes) if label.casefold() not in _UNKNOWN)


def _words(tags: dict[str, Any], lines: _Lines) -> tuple[str, ...]:
    words: tuple[str, ...] = tags.get("classlabel", ())
    if words and tags.get("targetlabel", False):
        lines.fail("classes or numbers to predict", "'@classLabel true' and '@targetLabel true'")
    return words


def _promised_channels(tags: dict[str, Any], lines: _Lines) -> int | None:
    channels = tags.get("dimensions")
    if not tags.get("univariate", False):
        return channels
    if channels not in (None, 1):
        lines.fail("one channel, as @univariate true says", f"@dimensions {channels}")
    return 1


def _text(tag: str, values: list[str], lines: _Lines) -> str:  # noqa: ARG001 - called like its neighbours
    return " ".join(values)


def _boolean(tag: str, values: list[str], lines: _Lines) -> bool:
    value = " ".join(values).lower()
    if value not in ("true", "false"):
        lines.fail(f"'{tag} true' or '{tag} false'", _excerpt(value))
    return value == "true"


def _timestamps(tag: str, values: list[str], lines: _Lines) -> bool:
    if _boolean(tag, values, lines):
        lines.fail(f"'{tag} false' (series of equal steps, without their times)", f"'{tag} true'")
    return False


def _count(tag: str, values: list[str], lines: _Lines) -> int:
    value = " ".join(values)
    if not value.isdecimal() or len(value) > _MOST_DIGITS or int(value) < 1:
        lines.fail(f"'{tag}' and a positive integer", _excerpt(value))
    return int(value)


def _class_labels(tag: str, values: list[str], lines: _Lines) -> tuple[str, ...]:
    labelled = _boolean(tag, values[:1], lines)
    if labelled and not values[1:]:
        lines.fail(f"'{tag} true' and the labels", "no label")
    return tuple(values[1:]) if labelled else ()


_TAGS = {
    "problemname": _text,
    "timestamps": _timestamps,
    "missing": _boolean,
    "univariate": _boolean,
    "dimension": _count,
    "dimensions": _count,
    "equallength": _boolean,
    "serieslength": _count,
    "classlabel": _class_labels,
    "targetlabel": _boolean,
}


def _read_target(text: str, lines: _Lines) -> float | None:
    if text.casefold() in _UNKNOWN:
        return None
    values = _numbers(text)
    if values is None or len(values) != 1 or np.isnan(values[0]):
        lines.fail("a finite number to predict, '?' or NaN, after the channels", _excerpt(text))
    return float(values[0])


def _read_series(parts: list[str], lines: _Lines) -> Float64[np.ndarray, "channels _"]:
    channels = [_read_channel(part, index, lines) for index, part in enumerate(parts)]
    for index, channel in enumerate(channels):
        if len(channel) != len(channels[0]):
            lines.fail(
                f"{len(channels[0])} values in channel {index}, as in channel 0",
                f"{len(channel)} values",
            )
    return np.stack(channels)


def _read_channel(text: str, index: int, lines: _Lines) -> Float64[np.ndarray, " _"]:
    values = _numbers(text)
    if values is None:
        tokens = text.split(",")
        time = next(time for time, token in enumerate(tokens) if _numbers(token) is None)
        lines.fail(
            f"a finite number, '?' or NaN at time {time} of channel {index}",
            _excerpt(tokens[time].strip()),
        )
    return values


def _numbers(text: str) -> Float64[np.ndarray, " _"] | None:
    """Return the comma-separated numbers, or None when one of them is none."""
    if "_" in text:  # float() reads 1_000 as a thousand
        return None
    try:
        values = np.fromiter(map(float, text.replace("?", "nan").split(",")), np.float64)
    except ValueError:
        return None
    return None if np.isinf(values).any() else values


def _listed(labels: tuple[str, ...]) -> str:
    shown = ", ".join(labels[:10])
    return shown if len(labels) <= 10 else f"{shown}, … {len(labels)} in all"


def _shortened(text: str) -> str:
    return text if len(text) <= _EXCERPT_LENGTH else f"{text[:_EXCERPT_LENGTH]}…"


def _excerpt(content: str | bytes) -> str:
    if len(content) <= _EXCERPT_LENGTH:
        return repr(content) if content else "nothing"
    return f"{content[:_EXCERPT_LENGTH]!r}…"
