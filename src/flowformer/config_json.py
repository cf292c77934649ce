"""Configurations to and from plain JSON values, strictly: nothing is guessed or dropped."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Turn a dataclass into JSON values: dataclass → dict, Path → str, tuple → list."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested values by their dotted path: {"a": {"b": 1}} → {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        # An empty mapping is a value: there is nothing in it to stand for it.
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def from_plain(kind: type[T], values: Any, where: str = "") -> T:
    """Build a dataclass from the plain values of `to_plain`.

    Args:
        kind: the dataclass to build.
        values: a mapping with an entry per field; a field with a default may be left out.
        where: dotted name of the place of `values` in the whole, for messages.

    Raises:
        ValueError: an unknown or missing key, a value of the wrong type, or one that the dataclass
            refuses; the message names the place by its dotted path.

    Examples:
        >>> from flowformer.models import LanguageModelConfig
        >>> from flowformer.config_json import from_plain, to_plain
        >>> plain = to_plain(LanguageModelConfig(dim=64))
        >>> from_plain(LanguageModelConfig, plain).dim
        64
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or kind.__name__} must be a mapping, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            raise ValueError(f"unknown key {prefix}{key}: expected one of {', '.join(fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ValueError(f"missing key {prefix}{name} of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    converted = {key: convert(hints[key], item, prefix + key) for key, item in values.items()}
    try:
        return kind(**converted)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def check_types(value: Any, where: str = "") -> None:
    """Refuse a dataclass with a field that is not of the annotated type.

    Args:
        value: the dataclass.
        where: dotted name of the place in the whole, for messages.

    Raises:
        ValueError: the message names the field.
    """
    hints = typing.get_type_hints(type(value))
    prefix = f"{where}." if where else ""
    for field in dataclasses.fields(value):
        convert(hints[field.name], getattr(value, field.name), prefix + field.name)


def convert(hint: Any, value: Any, where: str) -> Any:
    """Return a plain value as its type has it: a list as a tuple, an int as a float.

    Args:
        hint: the type.
        value: the value.
        where: dotted name of its place, for messages.

    Raises:
        ValueError: it is of another type; the message names the place.
    """
    origin = get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(get_args(hint), value, where)
    if origin is Literal:
        if value not in get_args(hint):
            expected = ", ".join(map(repr, get_args(hint)))
            raise ValueError(f"{where} must be one of {expected}, got {value!r}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(get_args(hint)[0], item, where) for item in value)
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), value, where)
    return _convert_scalar(hint, value, where)


def _convert_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in members:
        return None
    errors = []
    for member in members:
        if member is not type(None):
            try:
                return convert(member, value, where)
            except ValueError as error:
                errors.append(str(error))
    raise ValueError("; ".join(errors))


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    kind = get_origin(hint) or hint
    if kind is Any:
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{where} must be in the range of a float, got {value}") from error
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r}")
    return value
