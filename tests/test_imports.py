"""Two wings, imports that point one way and in no circle, and `import flowformer` stays light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from flowformer import models

PACKAGE = Path(__file__).parents[1] / "src" / "flowformer"

# Import nothing of the package; no torch.
SHARED = {"files", "machine", "names", "config_json", "own_modules", "progress"}
BESIDE = {"data", "scores", "generation", "rollouts", "report", "compare"}

# What each room may import, itself aside. The library never imports the laboratory.
LIBRARY = {
    "ops": {"names"},
    "nn": {"ops", "names"},
    "models": {"ops", "nn", "names", "config_json"},
    "integrations": {"ops", "nn", "models", "names", "files", "config_json", "progress"},
}
LABORATORY = {
    "data": {"files", "machine", "names", "config_json", "progress"},
    "scores": {"generation", "names", "progress"},
    "generation": {"ops", "progress"},
    "rollouts": {"data", "names", "progress"},
    "report": {"scores", "files", "config_json"},
    "compare": {"nn", "models", "data", "scores", "report", "train", *SHARED},
    "train": {"ops", "nn", "models", *BESIDE, *SHARED},
    "recipes": {"ops", "nn", "models", "train", "names", *BESIDE},
    "integrations that read runs": {*LIBRARY, "train", *BESIDE, *SHARED},
    "cli": {
        "integrations that read runs",
        *LIBRARY,
        "train",
        "recipes",
        *BESIDE,
        *SHARED,
    },
}
ALLOWED = {
    **LIBRARY,
    **LABORATORY,
    **{name: set() for name in SHARED},
    "__main__": {"cli"},
    "__init__": {"ops"},
}

HEAVY = {"aeon", "lightning", "matplotlib", "pandas", "sklearn", "timm", "transformers", "tyro"}


def room(module: str) -> str:
    """`flowformer.nn.mixers.flow` -> `nn`; of the integrations, those that read runs apart."""
    if re.match(r"flowformer\.integrations\.(sklearn|\w+\.runs)\b", module):
        return "integrations that read runs"
    return module.split(".")[1]


def imported_modules(source: str, package: list[str]) -> Iterator[str]:
    """Yield what a module of `package` imports of flowformer, as absolute names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("flowformer."))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import flowformer.nn.flow", ["flowformer.nn.flow"]),
        ("from flowformer.nn import flow", ["flowformer.nn.flow"]),
        ("from flowformer import nn", ["flowformer.nn"]),
        ("from . import flow", ["flowformer.ops.flow"]),
        ("from .. import nn", ["flowformer.nn"]),
        ("def f():\n    from ..nn import flow", ["flowformer.nn.flow"]),
        ("import torch.nn", []),
    ],
)
def test_every_form_of_import_is_seen(source, expected):
    assert list(imported_modules(source, ["flowformer", "ops"])) == expected


def graph() -> dict[str, set[str]]:
    """Every module of the package, and the modules that it imports, also inside functions."""
    files = {
        ".".join(("flowformer", *file.relative_to(PACKAGE).with_suffix("").parts)): file
        for file in sorted(PACKAGE.rglob("*.py"))
    }
    modules = {name.removesuffix(".__init__"): file for name, file in files.items()}

    def module_of(name: str) -> str:
        return name if name in modules else module_of(name.rpartition(".")[0])

    imports = {}
    for module, file in modules.items():
        package = ["flowformer", *file.relative_to(PACKAGE).parts[:-1]]
        found = imported_modules(file.read_text(), package)
        imports[module] = {module_of(name) for name in found} - {module}
    return imports


GRAPH = graph()


def test_imports_point_one_way():
    against = []
    for module, imported in GRAPH.items():
        own = room(module) if module != "flowformer" else "__init__"
        assert own in ALLOWED, f"{own} has no place in the layout: give it one in this table"
        allowed = {own, *ALLOWED[own]}
        against += [
            f"{module} imports {other}"
            for other in sorted(imported - {"flowformer"})
            if room(other) not in allowed
        ]
    assert against == []


def test_the_library_needs_no_laboratory():
    for name, allowed in LIBRARY.items():
        assert allowed <= LIBRARY.keys() | SHARED, name


def test_no_imports_run_in_a_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("flowformer", HEAVY),
        ("flowformer.ops", HEAVY),
        ("flowformer.nn", HEAVY | {"torch._dynamo"}),
        ("flowformer.models", HEAVY | {"torch"}),
        ("flowformer.models.series.model", HEAVY),
        ("flowformer.recipes", HEAVY | {"torch"}),
        ("flowformer.data", HEAVY | {"torch"}),
        ("flowformer.cli", HEAVY - {"tyro"} | {"torch"}),
    ],
)
def test_import_is_light(module, unwanted):
    loaded = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert unwanted & set(loaded) == set()


def test_models_have_one_door():
    assert {name for name in models.__all__ if not hasattr(models, name)} == set()
    with pytest.raises(AttributeError, match="has no attribute 'Model'"):
        models.__getattr__("Model")
