"""`flowformer recipes | info`: what there is to train, and to compute with; without the extras."""

import argparse
import importlib.metadata
import json
import re
import sys
from typing import Any

from flowformer.recipes import FIGURES, RECIPES
from flowformer.train.config import EpochsConfig
from flowformer.train.folder import read_versions
from flowformer.train.kinds import Experiment
from flowformer.train.sequences.config import SequencesConfig


def recipes(arguments: list[str]) -> int:
    """List the recipes."""
    # Not by tyro: what there is can be seen without the extras.
    argparse.ArgumentParser(
        prog="flowformer recipes",
        description="List the experiments that can be trained, with the figure that the paper "
        "prints.",
    ).parse_args(arguments)
    lines = [f"{'recipe':<29}{'length':<16}{'optimizer':<10}{'paper':>6}  what"]
    for name, build in RECIPES.items():
        config = build()
        figure = config.paper_score
        if isinstance(config, SequencesConfig):  # whose files may come later
            figure = config.paper_accuracy
        paper = "" if figure is None else config.measure.show(figure)
        what = (build.__doc__ or "").strip()
        lines.append(
            f"{name:<29}{_length(config):<16}{config.optimizer.name:<10}{paper:>6}  {what}"
        )
    lines += [
        "",
        *FIGURES,
        "Next: flowformer train NAME, or flowformer train NAME --help for every setting.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _length(config: Experiment) -> str:
    training = config.training
    if isinstance(training, EpochsConfig):
        return f"{training.epochs} epochs"
    return f"{training.steps:,} steps"


def info(arguments: list[str]) -> int:
    """Print versions, devices, backends and extras."""
    parser = argparse.ArgumentParser(  # not by tyro, which may be what is missing
        prog="flowformer info",
        description="Show versions, device, backends and extras, and why any is missing.",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options = parser.parse_args(arguments)
    facts = collect()
    if options.json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return 0
    lines = [f"{name:<14}{value}" for name, value in facts["versions"].items()]
    lines += ["", f"{'device':<14}{facts['device']}", f"{'CPU threads':<14}{facts['threads']}", ""]
    for name, reason in facts["backends"].items():
        state = "available" if reason is None else f"not available: {reason}"
        if name == "cpu":
            uses = facts["instruction_set"]
            state += f", with {uses}" if reason is None else " (chunked serves, slower)"
        lines.append(f"{f'backend {name}':<20}{state}")
    lines.append("")
    if not facts["extras"]:
        lines.append("extras              unknown: flowformer is not installed by pip here")
    for name, missing in facts["extras"].items():
        state = "installed" if not missing else f"missing {', '.join(missing)}: pip install"
        state += "" if not missing else f" 'flowformer[{name}]'"
        lines.append(f"{f'extra {name}':<20}{state}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def collect() -> dict[str, Any]:
    """Return versions, device, threads, backends (None or why not), extras (what they lack).

    The instruction set is the one that the compiled CPU library chose; None without it.
    """
    import torch

    from flowformer.ops.backends import available_backends
    from flowformer.ops.backends.cpu.library import instruction_set

    cuda = torch.cuda.is_available()
    return {
        "versions": read_versions(),
        "device": torch.cuda.get_device_name() if cuda else "cpu (no CUDA device)",
        "threads": torch.get_num_threads(),
        "backends": available_backends(),
        "instruction_set": instruction_set(),
        "extras": _missing_by_extra(),
    }


def _missing_by_extra() -> dict[str, list[str]]:
    # From the installed metadata, so that pyproject.toml remains the one place that says what an
    # extra brings.
    packages: dict[str, list[str]] = {}
    inner: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("flowformer") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources, or frozen
        requirements = []
    for requirement in requirements:
        match = re.match(r"""([\w.-]+)(?:\[(.*?)\])?.*extra == ["']([\w-]+)["']""", requirement)
        if match is None:
            continue
        package, options, extra = match.groups()
        packages.setdefault(extra, [])
        if package == "flowformer":  # an extra that brings another one
            inner.setdefault(extra, []).extend(options.split(","))
        else:
            packages[extra].append(package)

    def missing(extra: str) -> list[str]:
        nested = [name for other in inner.get(extra, ()) for name in missing(other.strip())]
        return [*nested, *(name for name in packages[extra] if not _is_installed(name))]

    return {extra: list(dict.fromkeys(missing(extra))) for extra in packages}


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
