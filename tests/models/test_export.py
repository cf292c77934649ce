"""Every model leaves PyTorch: traced at one row and called with many, exported for any sizes."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call, grad, vmap

from flowformer.models.images.config import VisionModelConfig
from flowformer.models.images.model import VisionClassifier
from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import PairClassifier, SequenceClassifier
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.model import build_classifier
from flowformer.models.trajectories.config import BehaviourCloningConfig, DecisionModelConfig
from flowformer.models.trajectories.model import BehaviourCloning, DecisionTransformer
from tests.tracing import trace

pytestmark = pytest.mark.usefixtures("shape_checks_off")

SIZES: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1}
LONGEST = 80


class Case(NamedTuple):
    """A model, and inputs for it of so many rows and so long."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    call: Mapping[str, Any] = MappingProxyType({})
    lengths: bool = True


class Call(nn.Module):
    """A model with some keywords, of whose outputs the first tensor counts."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model, self.call = case.build().eval(), case.call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs, **self.call)[0]


def tokens(rows: int, time: int) -> Tensor:
    return torch.randint(1, 11, (rows, time))


def right(rows: int, time: int) -> Tensor:
    """A mask with padding at the right of all rows but the first."""
    return torch.arange(time) < time - torch.arange(rows)[:, None].clamp(max=time - 1)


def language(**options: Any) -> LanguageModel:
    config = LanguageModelConfig(**SIZES, feedforward=8, max_length=LONGEST, **options)
    return LanguageModel(config, vocab_size=11)


def sequences(kind: type = SequenceClassifier, **options: Any) -> nn.Module:
    config = SequenceModelConfig(**SIZES, feedforward=8, **options)
    return kind(config, vocab_size=11, num_classes=3, max_length=LONGEST)


def series(**options: Any) -> nn.Module:
    config = TimeSeriesModelConfig(**SIZES, feedforward=8, **options)
    return build_classifier(config, channels=2, num_classes=3, max_length=LONGEST)


def images(**options: Any) -> nn.Module:
    config = VisionModelConfig(patch_size=2, num_heads=(2,) * len(options["dims"]), **options)
    return VisionClassifier(config, image_size=8, num_classes=3)


def steps(rows: int, time: int) -> tuple[Tensor, ...]:
    at = torch.arange(time).expand(rows, time).clone()
    return torch.randn(rows, time), torch.randn(rows, time, 3), torch.randn(rows, time, 2), at


SEEN: dict[str, Any] = {"observation_dim": 3, "action_dim": 2}
CASES = {
    "language": Case(language, lambda b, t: (tokens(b, t),)),
    "language-padded": Case(
        lambda: language(positions="learned"), lambda b, t: (tokens(b, t), right(b, t))
    ),
    "language-no-clamp": Case(
        lambda: language(mixer_options={"clamp": None}, positions="rotary"),
        lambda b, t: (tokens(b, t),),
    ),
    "language-linear": Case(
        lambda: language(mixer="linear"), lambda b, t: (tokens(b, t), right(b, t))
    ),
    **{
        f"language-{mixer}": Case(
            partial(language, mixer=mixer), lambda b, t: (tokens(b, t), right(b, t))
        )
        for mixer in ("deltanet", "gated-deltanet", "gla")
    },
    "language-last": Case(
        language,
        lambda b, t: (tokens(b, t), right(b, t).flip(1)),
        {"last_logits_only": True},
    ),
    "sequences": Case(sequences, lambda b, t: (tokens(b, t) * right(b, t),)),
    "sequences-mean": Case(
        lambda: sequences(pooling="mean", padding="published"), lambda b, t: (tokens(b, t),)
    ),
    "pairs": Case(lambda: sequences(PairClassifier), lambda b, t: (tokens(b, t), tokens(b, t))),
    "series": Case(series, lambda b, t: (torch.randn(b, t, 2), right(b, t))),
    "series-mean": Case(
        lambda: series(pooling="mean", positions="sinusoidal"),
        lambda b, t: (torch.randn(b, t, 2), right(b, t)),
    ),
    "series-kernel": Case(
        lambda: series(kernel=3), lambda b, t: (torch.randn(b, t, 2), right(b, t))
    ),
    "series-published": Case(
        lambda: series(padding="published"), lambda b, t: (torch.randn(b, t, 2),)
    ),
    "dilated-conv": Case(
        lambda: series(encoder="dilated-conv"), lambda b, t: (torch.randn(b, t, 2), right(b, t))
    ),
    "lstm": Case(
        lambda: series(encoder="lstm"),
        lambda b, t: (torch.randn(b, t, 2), right(b, t)),
        lengths=False,  # torch unrolls an LSTM over the time
    ),
    "images": Case(
        lambda: images(dims=(8, 16), depths=(1, 1)),
        lambda b, _: (torch.randn(b, 3, 8, 8),),
        lengths=False,  # of patches
    ),
    "deit": Case(
        lambda: images(dims=(8,), depths=(1,), layer_scale=None, pooling="cls"),
        lambda b, _: (torch.randn(b, 3, 8, 8),),
        lengths=False,
    ),
    "decisions": Case(
        lambda: DecisionTransformer(DecisionModelConfig(**SIZES), **SEEN),
        lambda b, t: (*steps(b, t), right(b, t)),
    ),
    "cloning": Case(lambda: BehaviourCloning(BehaviourCloningConfig(dim=8), **SEEN), steps),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def check(program: Callable[..., Tensor], model: nn.Module, case: Case, time: int) -> None:
    for rows, length in ((1, time), (4, time), (3, 5), (2, LONGEST), (5, 64)):
        inputs = case.inputs(rows, length if case.lengths else time)
        torch.testing.assert_close(program(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


@cases
def test_a_model_traced_at_one_row_serves_many_rows_of_any_length(case: Case) -> None:
    model = Call(case)
    program = trace(model, case.inputs(1, 9))
    check(program, model, case, 9)
    assert "flowformer::" not in str(program.inlined_graph)


STRICT = ("language-last", "sequences", "series")  # dynamo reads the same code: some are enough
# Others export as much, and test_export.py of the images both kinds of image models.
SLOW = ("language", "language-padded", "language-no-clamp", "decisions", "images", "deit")
SLOW += ("series-published", "sequences-mean")


def exports() -> Iterator[Any]:
    for name, case in CASES.items():
        yield pytest.param(case, False, id=name, marks=[pytest.mark.slow] * (name in SLOW))
    for name in STRICT:
        yield pytest.param(CASES[name], True, id=f"{name}-strict", marks=pytest.mark.slow)


@pytest.mark.filterwarnings(
    "ignore:The tensor attributes .*lstm._flat_weights:UserWarning"
)  # torch
@pytest.mark.parametrize(("case", "strict"), list(exports()))
def test_an_exported_model_takes_any_batch_and_any_length(case: Case, strict: bool) -> None:
    model, inputs = Call(case), case.inputs(2, 9)
    sizes: dict[int, Dim] = {0: Dim("rows", max=64)}
    if case.lengths:
        sizes[1] = Dim("time", min=2, max=LONGEST)
    shapes = {"inputs": tuple(sizes for _ in inputs)}
    program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=strict)
    check(program.module(), model, case, 9)
    assert "flowformer" not in {
        node.target.namespace
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    }


@pytest.mark.parametrize(
    "case",
    [case for name, case in CASES.items() if name not in ("lstm", "cloning")],
    ids=[name for name in CASES if name not in ("lstm", "cloning")],
)
def test_gradients_of_each_sample_come_from_vmap(case: Case) -> None:
    model, inputs = Call(case), case.inputs(3, 9)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return functional_call(model, parameters, tuple(x[None] for x in sample)).square().sum()

    samples = vmap(grad(loss), in_dims=(None, *[0] * len(inputs)))(parameters, *inputs)
    for row in range(3):
        expected = grad(loss)(parameters, *(x[row] for x in inputs))
        for name, gradient in expected.items():
            torch.testing.assert_close(samples[name][row], gradient, rtol=1e-3, atol=1e-5)


def test_losses_by_chunks_have_gradients_of_each_sample() -> None:
    model, ids = language().eval(), tokens(3, 9)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], row: Tensor, logits: bool) -> Tensor:
        call = {"labels": row[None], "return_logits": logits}
        return functional_call(model, parameters, (row[None],), call).loss

    gradients, expected = (
        vmap(grad(loss), in_dims=(None, 0, None))(parameters, ids, logits)
        for logits in (False, True)
    )
    for name, wanted in expected.items():
        torch.testing.assert_close(gradients[name], wanted, rtol=1e-4, atol=1e-6)
