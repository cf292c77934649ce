"""The examples in docstrings run, and print what they say that they print."""

import ast
import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowformer.nn import MIXERS
from flowformer.nn.mixers.head_attention import leave

PACKAGE = Path(__file__).parents[1] / "src" / "flowformer"

# Libraries that an extra brings: an example that imports one is skipped where it is missing.
EXTRAS = {"gymnasium", "lightning", "minari", "sklearn", "timm", "tokenizers", "transformers"}
EXTRAS |= {"pandas"}  # for the data frames of a comparison
IMPORTED = re.compile(r"^(?:from|import) (?:flowformer\.integrations\.)?(\w+)", re.MULTILINE)


def docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    """Yield the names and docstrings of a module and of all that it defines."""
    if text := ast.get_docstring(node):
        yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from docstrings(child, f"{name}.{child.name}")


EXAMPLES = [
    pytest.param(text, id=name)
    for file in sorted(PACKAGE.rglob("*.py"))
    for name, text in docstrings(
        ast.parse(file.read_text()), ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    )
    if ">>>" in text
]


@pytest.fixture(autouse=True)
def _no_mixer_is_left() -> Iterator[None]:
    before = set(MIXERS)
    yield
    for name in set(MIXERS) - before:
        leave(name)


@pytest.mark.parametrize("text", EXAMPLES)
def test_example_runs(text, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(text, {}, request.node.name, None, None)
    imported = {name for part in example.examples for name in IMPORTED.findall(part.source)}
    if "flowformer.compare" in text:
        imported.add("pandas")
    for library in imported & EXTRAS:
        pytest.importorskip(library)  # of an extra: the core alone has its examples tested too
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    assert runner.run(example, out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize(
    "name",
    [
        "compare.arrays.compare",
        "generation.generate.generate",
        "integrations.sklearn.classifier.FlowformerClassifier",
        "integrations.sklearn.regressor.FlowformerRegressor",
        "models.images.model.VisionClassifier",
        "models.language.model.LanguageModel",
        "models.sequences.model.SequenceClassifier",
        "models.series.model.TimeSeriesClassifier",
        "models.trajectories.model.DecisionTransformer",
        "nn.multihead.MultiheadAttention",
        "nn.replace.__init__.replace_attention",
        "rollouts.scores.evaluate_returns",
    ],
)
def test_users_call_it_and_find_an_example(name):
    assert name in {example.id for example in EXAMPLES}
