"""What users write: names found in a table or refused with the nearest, settings checked."""

import difflib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")

IGNORED = -100  # the label or target that counts for nothing, as in torch and transformers

ENTRY_POINTS = "flowformer.mixers"  # by which an installed package brings mixers
REMEDY = (
    "one of your own is there once its module is imported, which calls "
    "flowformer.nn.register_mixer (on the command line --import MODULE)"
)


def choose(name: str, table: Mapping[str, T], noun: str) -> T:
    """Return what a table has under a name.

    Args:
        name: as the user wrote it.
        table: what there is.
        noun: what the name is of, for the message.

    Raises:
        ValueError: the table has no such name; the message lists those there are.
    """
    if name not in table:
        raise ValueError(
            f"unknown {noun} {name!r}: {did_you_mean(name, table)}choose from {', '.join(table)}"
        )
    return table[name]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "did you mean NAME? " for the nearest of some names; nothing where none is near."""
    near = difflib.get_close_matches(name.lower(), list(names), n=1)
    return f"did you mean {near[0]}? " if near else ""


def require_positive(**sizes: int | None) -> None:
    """Refuse a size below 1; None is passed over.

    Raises:
        ValueError: the message names the size.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_sizes(config: Any, *names: str) -> None:
    """Refuse a setting below 1, or a dropout, where there is one, outside [0, 1).

    Raises:
        ValueError: one of these; the message names it.
    """
    require_positive(**{name: getattr(config, name) for name in names})
    if not 0 <= getattr(config, "dropout", 0) < 1:
        raise ValueError(f"dropout must be in [0, 1), got {config.dropout}")


def check_choices(config: Any, *names: str) -> None:
    """Refuse a value that its field's `Literal` does not list.

    Raises:
        ValueError: there is one; the message lists the choices.
    """
    kinds = {field.name: field.type for field in fields(config)}  # of its bases too
    for name in names:
        choices = get_args(kinds[name])
        if getattr(config, name) not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}"
            )


def require_options(owner: str, given: Iterable[str], there: Iterable[str]) -> None:
    """Refuse options that there are not.

    Raises:
        ValueError: there is one; the message lists those there are.
    """
    there = sorted(there)
    if wrong := sorted(set(given).difference(there)):
        near = did_you_mean(wrong[0], there)
        raise ValueError(
            f"{owner!r} has no option {', '.join(wrong)}; {near}it takes {', '.join(there)}"
        )


def require_divided(dim: int, num_heads: int) -> None:
    """Refuse heads that do not share the width of the hidden states evenly.

    Raises:
        ValueError: they do not.
    """
    if dim % num_heads:
        raise ValueError(
            f"dim must be divisible by num_heads, got {dim=} and {num_heads=}; or give head_dim"
        )


def unknown(noun: str, name: str, names: Iterable[str], *, hint: str = "") -> ValueError:
    """Return the error of a name that is none of some names."""
    names = list(names)
    near = did_you_mean(name, names)
    return ValueError(f"unknown {noun} {name!r}: {near}expected one of {', '.join(names)}{hint}")


def require_there(path: Path) -> None:
    """Refuse a file or folder that is not there.

    Raises:
        OSError: the system's own.
    """
    path.stat()


def require_file(path: Path) -> None:
    """Refuse a file that is not there, or is a folder.

    Raises:
        OSError: as the system has it.
    """
    require_there(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


@dataclass(frozen=True)
class Early:
    """Says in the type of a setting what can be refused before anything is read or imported for it.

    Attributes:
        check: called with a value, or with each of a tuple; raises what is to be told.
    """

    check: Callable[[Any], object]


def endings(*allowed: str) -> Early:
    """Return what refuses a file whose name ends otherwise; a folder may have any name.

    Args:
        allowed: the ends, in lower case: ".csv", ".csv.gz".
    """

    def check(path: Path) -> None:
        if not path.is_dir() and not path.name.lower().endswith(allowed):
            named = " or ".join(filter(None, (", ".join(allowed[:-1]), allowed[-1])))
            raise ValueError(f"expected a file with {named}, got {path}")

    return Early(check)


ExistingPath = Annotated[Path, Early(require_there)]
ExistingFile = Annotated[Path, Early(require_file)]


def check_early(config: Any) -> None:
    """Check each setting of a dataclass whose type has an `Early` in it; None is passed over.

    Raises:
        Exception: of the first check that refuses a value.

    Examples:
        >>> from dataclasses import dataclass
        >>> from pathlib import Path
        >>> from flowformer.names import ExistingFile, check_early
        >>> @dataclass
        ... class Options:
        ...     file: ExistingFile | None = None
        >>> check_early(Options())
        >>> check_early(Options(file=Path("none.csv")))
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'none.csv'
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = getattr(config, field.name)
        for early in _early(hints[field.name]):
            for each in value if isinstance(value, tuple) else (value,):
                if each is not None:
                    early.check(each)


def _early(hint: Any) -> Iterator[Early]:
    if isinstance(hint, Early):
        yield hint
    for inner in get_args(hint):
        yield from _early(inner)
