"""What a comparison is asked for: methods by name, each checked before hours go into any."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowformer.compare.methods import methods_of
from flowformer.models.known_mixers import Form
from flowformer.own_modules import OwnModule, own_module
from flowformer.train.kinds import Experiment

_SHARE = 0.9  # of the memory that is there, for all runs together

Methods = Mapping[str, Mapping[str, Any]]  # the options of each, by its name


def choose_methods(methods: str | Sequence[str] | Methods, experiment: Experiment) -> Methods:
    """Return the options of each method, in order.

    Args:
        methods: names of mixers, or "all" for every one that the experiment can have, and of other
            methods; or the options of each by its name.
        experiment: the experiment.

    Raises:
        ValueError: there is no such mixer, method or option.
    """
    fitting = mixers_for(experiment)
    names = [methods] if isinstance(methods, str) else list(methods)
    names = [each for name in names for each in (fitting if name == "all" else [name])]
    require_each_once(names)
    given = methods if isinstance(methods, Mapping) else {}
    chosen = {
        name: {**options_for(name, experiment.model), **given.get(name, {})} for name in names
    }
    mixers = [name for name in names if name not in methods_of(experiment)]
    require_form(mixers, fitting, experiment)
    for name in mixers:
        check_mixer(name, chosen[name], experiment)
    return chosen


def require_each_once(names: Sequence[str]) -> None:
    """Refuse no names of methods, and one that stands twice.

    Raises:
        ValueError: the message has the names.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"expected names of methods, each once, got {', '.join(names) or 'none'}")


def mixers_for(experiment: Experiment) -> list[str]:
    """Return the mixers that have the form which an experiment needs, installed ones too."""
    from flowformer.nn.mixers.building import load_installed
    from flowformer.nn.mixers.head_attention import able

    load_installed()
    return able(form_of(experiment))


def require_form(names: Iterable[str], fitting: Sequence[str], experiment: Experiment) -> None:
    """Refuse a mixer that has not the form which an experiment needs.

    Raises:
        ValueError: the message names the choices.
    """
    from flowformer.nn import MIXERS

    for name in names:
        if name in MIXERS and name not in fitting:
            raise ValueError(
                f"{name} has no {form_of(experiment)} form, which {experiment.name} needs: choose "
                f"from {', '.join(fitting)}"
            )


def form_of(experiment: Experiment) -> Form:
    """Return the form in which an experiment has its mixers."""
    return "causal" if experiment.causal else "bidirectional"


def options_for(name: str, model: Any) -> dict[str, Any]:
    """Return those of a model's mixer options that another mixer has too, such as a clamp.

    Args:
        name: of the other mixer, or of a method that is none and has no options.
        model: the configuration of the model.
    """
    if not model.mixer_options:
        return {}
    from flowformer.nn.mixers import MIXERS
    from flowformer.nn.mixers.head_attention import option_names

    known = option_names(MIXERS[name].kind) if name in MIXERS else set()
    return {key: value for key, value in model.mixer_options.items() if key in known}


def check_mixer(name: str, options: Mapping[str, Any], experiment: Experiment) -> None:
    """Build a mixer that has options, on no device and so in no memory.

    Raises:
        ValueError: there is no such mixer, or no such option or value.
    """
    import torch

    from flowformer.nn import MIXERS, build_mixer

    if name in MIXERS and not options:
        return
    model: Any = experiment.model
    sizes = (experiment.data, model)
    # Of no matter, but for mixers that need one.
    length = next((n for part in sizes if (n := getattr(part, "max_length", None))), 1024)
    with torch.device("meta"):
        build_mixer(name, model.dim, model.num_heads, **{"max_length": length, **options})


def own_modules(names: Iterable[str]) -> dict[str, OwnModule]:
    """Return the modules that gave mixers their names, of those that are a user's own."""
    from flowformer.nn import MIXERS

    found = {name: own_module(MIXERS[name].origin) for name in names if name in MIXERS}
    return {name: module for name, module in found.items() if module is not None}


def share_of_memory(experiment: Experiment, jobs: int) -> int | None:
    """Return the bytes that a run may take of this machine, with others beside it; None on a GPU.

    Args:
        experiment: what runs.
        jobs: runs at a time.
    """
    from flowformer.machine import available_memory
    from flowformer.train.prediction import choose_device

    available = available_memory()
    if available is None or choose_device(experiment.training.accelerator).type != "cpu":
        return None
    return int(_SHARE * available / jobs)
