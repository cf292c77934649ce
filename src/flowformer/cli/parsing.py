"""tyro, set up once: flags from dataclasses, and a mixer's options as JSON."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from flowformer.names import check_early

try:
    import tyro
except ImportError as error:
    raise ImportError(
        "tyro is needed for the command line: pip install 'flowformer[train]'"
    ) from error

Positional = tyro.conf.Positional  # of a setting with a default, given without its name

T = TypeVar("T")
# A field that the command line calls name, and takes without a flag where it has no default.
Named = Annotated[T, tyro.conf.arg(name="name")]

_registry = tyro.constructors.ConstructorRegistry()


@_registry.primitive_rule
def _json_object(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    # A mixer's options are open: each mixer has its own, and checks them itself.
    if info.type != dict[str, Any] | None:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda strings: _read_json_object(strings[0]),
        is_instance=lambda value: value is None or isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    )


def parse(kind: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Read arguments into a dataclass; an error in them ends the process with code 2.

    What the types of its fields say of their values (`flowformer.names.Early`) is checked too: a
    file that is not there is told before anything is imported to read it.

    Args:
        kind: the dataclass; its docstrings are the help.
        arguments: the words after the command.
        prog: the command's name in the help.
        default: the values of arguments that are not given.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    with _registry:
        values = tyro.cli(
            kind,
            args=list(arguments),
            prog=prog,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalRequiredArgs),
            **options,
        )
    check_early(values)
    return values


def _read_json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON such as '{{\"clamp\": 1.0}}', got {text!r}") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"expected a JSON object or null, got {text!r}")
    return value
