"""Imports point one way, and `import flowformer` stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "flowformer"

SHARED = ["files", "machine", "memory", "serialization"]  # import nothing of the package; no torch
CHAIN = ["ops", "nn", "models", "train", "recipes", "cli"]
BESIDE = ["data", "scores", "generation", "rollouts", "report", "compare"]

# What each part of the package may import, itself aside.
ALLOWED = {
    "ops": set(),
    "nn": {"ops"},
    "models": {"ops", "nn"},
    "train": {"ops", "nn", "models", *BESIDE, *SHARED},
    "recipes": {"ops", "nn", "models", "train", *BESIDE},
    "cli": {*CHAIN, *BESIDE, *SHARED, "integrations"},
    "data": {"files", "machine"},
    "scores": {"data", "generation"},
    "generation": set(),
    "rollouts": {"data"},
    "report": {"ops", "data", "scores", "compare", *SHARED},
    "compare": {"data", "scores", "report", "train", *SHARED},
    "integrations": {*CHAIN, *BESIDE, *SHARED} - {"cli"},
    "files": set(),
    "machine": set(),
    "memory": set(),
    "serialization": set(),
    "__main__": {"cli"},
    "__init__": {*CHAIN, *BESIDE, "integrations"} - {"cli"},
}

HEAVY = {"aeon", "lightning", "matplotlib", "pandas", "sklearn", "timm", "transformers", "tyro"}


def part(module: str) -> str:
    """`flowformer.nn.mixers.flow` -> `nn`."""
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


def test_imports_point_one_way():
    against = []
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        own = path.with_suffix("").parts[0]
        assert own in ALLOWED, f"{own} has no place in the layout: give it one in this table"
        against += [
            f"{path} imports {module}"
            for module in imported_modules(file.read_text(), ["flowformer", *path.parts[:-1]])
            if part(module) not in ALLOWED[own] | {own, "__version__"}
        ]
    assert against == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("flowformer", HEAVY),
        ("flowformer.ops", HEAVY),
        ("flowformer.nn", HEAVY | {"torch._dynamo"}),
        ("flowformer.models.series.transformer", HEAVY),
        ("flowformer.recipes", HEAVY | {"torch"}),
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
