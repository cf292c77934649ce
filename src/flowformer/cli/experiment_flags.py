"""A recipe and the flags that change it: one for every setting of its kind of experiment."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from flowformer.train.kinds import Experiment

T = TypeVar("T")


def parse_experiment(
    own: type[T], arguments: Sequence[str], *, prog: str, config: Experiment
) -> tuple[T, Experiment]:
    """Read the flags of a command and those of an experiment's parts.

    Args:
        own: the command's own flags, a frozen dataclass with a default for each.
        arguments: what follows the recipe.
        prog: how the help calls the command.
        config: the experiment that the flags change.

    Returns:
        The command's own values, and the experiment, its files found from any folder.
    """
    from flowformer.cli.parsing import parse  # here: messages of errors need no tyro

    parts = {part.name: part.type for part in fields(config) if _is_part(part.type)}
    defaults = {name: getattr(config, name) for name in parts}
    if not {"-h", "--help"}.isdisjoint(arguments):  # it ends the process
        defaults["model"] = _with_mixers_in_its_help(config)
        parts["model"] = type(defaults["model"])
    flags = make_dataclass(
        own.__name__, list(parts.items()), bases=(own,), frozen=True, kw_only=True
    )
    # tyro reads the help of a field from the docstring of the class that has it.
    flags.__doc__ = _summary(own) + _part_help(config, list(parts))
    default = flags(**defaults)
    values: Any = parse(flags, arguments, prog=prog, default=default)
    changed = {name: _found_from_anywhere(getattr(values, name)) for name in parts}
    before, model = config.model, changed["model"]
    if model.mixer != before.mixer and model.mixer_options == before.mixer_options:
        from flowformer.compare.choice import options_for

        # They are those of the other mixer.
        changed["model"] = replace(model, mixer_options=options_for(model.mixer, before) or None)
    return values, replace(config, **changed)


def part_settings(kind: type) -> list[tuple[str, str]]:
    """Return the settings of a kind of experiment: part and name of each."""
    return [
        (part.name, setting.name)
        for part in fields(kind)
        if _is_part(part.type)
        for setting in fields(cast(Any, part.type))
    ]


def _with_mixers_in_its_help(config: Experiment) -> Any:
    """The model's configuration, its docstring with the mixers, which are known with torch only."""
    from flowformer.nn.mixers.building import load_installed
    from flowformer.nn.mixers.head_attention import able

    load_installed()
    kind: Any = type(config.model)
    names = ", ".join(able("causal" if config.causal else "bidirectional"))
    described: Any = make_dataclass(kind.__name__, [], bases=(kind,), frozen=True, kw_only=True)
    described.__doc__ = re.sub(
        r" mixer: .*?(?=\n +mixer_options:)",
        f" mixer: Name of the attention: {names}.",
        inspect.cleandoc(kind.__doc__ or ""),
        flags=re.DOTALL,
    )
    return described(**{each.name: getattr(config.model, each.name) for each in fields(kind)})


def _summary(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("Attributes:")[0]


def _part_help(config: Experiment, parts: Sequence[str]) -> str:
    described = "\n".join(inspect.cleandoc(kind.__doc__ or "") for kind in type(config).__mro__)
    lines = [re.search(rf"^ +{name}: .+$", described, re.MULTILINE) for name in parts]
    return "\n".join(["Attributes:", *(line[0] for line in lines if line)])


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def _found_from_anywhere(part: Any) -> Any:
    paths = {
        setting.name: value.resolve()
        for setting in fields(part)
        if isinstance(value := getattr(part, setting.name), Path)
    }
    return replace(part, **paths)
