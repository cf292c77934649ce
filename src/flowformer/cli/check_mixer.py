"""`flowformer check-mixer my_module:MyMixer`: the checks of every mixer, on one of one's own."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from flowformer.cli.parsing import parse
from flowformer.models.known_mixers import check_mixer_options, require_mixer
from flowformer.names import check_sizes
from flowformer.own_modules import import_own, may_define

if TYPE_CHECKING:
    from flowformer.nn.mixers import ProjectedMixer
    from flowformer.nn.mixers.conformance import Promise, Subject


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check a mixer: what it can do, and whether it keeps what every mixer promises.

    Attributes:
        mixer: MODULE:CLASS, the module as of python -m or a file; or the name of a mixer.
        options: of its constructor, as JSON.
        dim: width of the hidden states.
        num_heads: heads.
        longest: tokens of the longest sequence, at least 500.
        rounding: in low precision the output may differ by this many eps of its largest value; each
            tensor that is rounded on the way costs about one.
    """

    mixer: str
    options: dict[str, Any] | None = None
    dim: int = 32
    num_heads: int = 4
    longest: int = 500
    rounding: float = 10.0

    def __post_init__(self) -> None:
        check_sizes(self, "dim", "num_heads")
        if self.longest < 500:
            raise ValueError(f"longest must be at least 500, got {self.longest}")


def main(arguments: list[str]) -> int:
    """Run the checks and print what holds; the code is 1 where something does not."""
    options = parse(Options, arguments, prog="flowformer check-mixer")
    mixer = _find(options.mixer, options.options or {})
    from flowformer.nn.mixers.conformance import Subject

    subject = _exact(
        Subject(
            mixer=mixer,
            options=options.options or {},
            rounding=options.rounding,
            dim=options.dim,
            num_heads=options.num_heads,
            longest=options.longest,
        )
    )
    _say("mixer", f"{options.mixer}, {options.dim} wide, {options.num_heads} heads")
    _say("can do", str(mixer.capabilities) or "nothing")
    broken = 0
    for topic, text, problems, required in _checked(subject):
        _say(topic, text)
        broken += required * len(problems)
        for problem in problems:
            _say("", problem)
    return 1 if broken else 0


def _say(name: str, text: str) -> None:
    sys.stdout.write(f"{name:<11}{text}\n")
    sys.stdout.flush()


def _find(reference: str, options: Mapping[str, Any]) -> "type[ProjectedMixer]":
    """Return the mixer of a reference; one that its module has registered, as it did.

    What a module of a user's own can do is tried with the options that it is checked with.
    """
    place, colon, name = reference.rpartition(":")
    if not colon:
        require_mixer(reference)
        check_mixer_options(reference, options)
        from flowformer.nn.mixers.building import mixer_class

        return mixer_class(reference)
    found = getattr(import_own(place), name, None) if may_define(place, name) else None
    if not callable(found):
        raise ValueError(f"{place} has no class {name}: expected MODULE:CLASS, got {reference}")
    from flowformer.nn import MIXERS
    from flowformer.nn.mixers.own import OwnAttention, own_mixer

    for registered in MIXERS.values():
        kind: Any = registered.kind
        if found is registered or (issubclass(kind, OwnAttention) and found is kind.build):
            if not options or found is registered:
                return registered
            options = {**kind.defaults, **options}
    return own_mixer(name, cast(Any, found), **options)


def _exact(subject: "Subject") -> "Subject":
    """Return the subject, to be checked in float32 where it cannot compute in float64."""
    import torch

    try:
        subject.build()(subject.draw(1, 5, subject.dim), **subject.forms[0])
    except RuntimeError:  # which the check of dtypes tells
        return replace(subject, exact=torch.float32)
    return subject


def _checked(subject: "Subject") -> Iterator[tuple[str, str, list[str], bool]]:
    """Yield each topic, what came of it in words, what is broken, and whether it is required."""
    from flowformer.nn.mixers.conformance import PROMISES

    order = list(dict.fromkeys(promise.topic for promise in PROMISES))
    promises = sorted(PROMISES, key=lambda promise: order.index(promise.topic))
    for topic, group in groupby(promises, key=lambda promise: promise.topic):
        count, problems, figures, lacking, required = 0, [], {}, {}, False
        for promise in group:
            required |= promise.required
            lacking |= dict.fromkeys(promise.lacks(subject))
            for case in promise.cases(subject):
                count += 1
                problem, figure = _check(promise, subject, case)
                problems += [problem] if problem else []
                if figure is not None:
                    figures[figure[0]] = max(figure[1], figures.get(figure[0], 0.0))
        words = [
            f"{count} check{'s' * (count > 1)}" if count else "",
            *(f"{v:.2g} {n}" for n, v in figures.items()),
        ]
        words += [f"no {name}" for name in lacking]
        state = ("FAILS" if required else "lacks") if problems else "holds" if count else "-"
        yield topic, f"{state:<7}{', '.join(filter(None, words))}", problems, required


def _check(
    promise: "Promise", subject: "Subject", case: dict[str, Any]
) -> tuple[str, tuple[str, float] | None]:
    """Return what is broken, in a line, and the figure that was measured."""
    import torch

    torch.compiler.reset()  # torch bounds the number of compilations of one function
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "", promise.check(subject, **case)
    except Exception as error:  # noqa: BLE001 - whatever it is, the promise is broken
        values = ", ".join(f"{name} {value}" for name, value in case.items())
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        text = " ".join(lines[:2]) if kind else " ".join(lines)
        return f"{promise.name}{f' ({values})' if values else ''}: {kind}{text[:300]}", None
