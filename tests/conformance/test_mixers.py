"""What every mixer promises, whatever its attention: one suite over MIXERS.

A new mixer is held to all of it by standing in the table; its capability record chooses the tests,
and `cases.py` its options. What a mixer of a user's own can be held to as well is in the package,
`flowformer.nn.mixers.conformance`; here are the promises of projections, contexts and refusals.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

from flowformer.nn import MIXERS, ProjectedMixer
from flowformer.nn.mixers.conformance import PROMISES, Promise, Subject, padded
from tests.conformance.cases import CASES, Case

DIM, HEADS, LONGEST = Subject.dim, Subject.num_heads, Subject.longest
NAMES = list(MIXERS)


def having(capability: str) -> list[str]:
    return [name for name, kind in MIXERS.items() if getattr(kind.capabilities, capability)]


def subject_of(name: str) -> Subject:
    case = CASES.get(name, Case())
    return Subject(mixer=MIXERS[name], options=case.options, rounding=float(case.rounding))


def build(name: str, **options: Any) -> ProjectedMixer:
    return subject_of(name).build(**options)


def forms(name: str) -> list[dict[str, bool]]:
    return subject_of(name).forms


def draw(*shape: int, seed: int = 0) -> Tensor:
    return subject_of("flow").draw(*shape, seed=seed)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    subject_of("flow").close(actual, expected, tolerance)


@pytest.fixture
def fresh_compiler(shape_checks_off: None) -> None:  # noqa: ARG001 - it is wanted for what it does
    """Each case is a first compilation: torch bounds the number of those of one function."""
    torch.compiler.reset()


# Without a mask there is less of the same, and the causal form is compiled without one.
SLOW = ({"masked": False}, {"backend": "aot_eager"})


def promised(subject: Subject, name: str) -> Iterator[ParameterSet]:
    """Each case of each promise that a mixer makes, as a test of that name."""
    for promise in PROMISES:
        for case in promise.cases(subject):
            words = (promise.name, *(_word(*each) for each in case.items()))
            label = "-".join((name, *words)).replace(" ", "_")
            marks = [pytest.mark.slow] if promise.topic == "compile" and case in SLOW else []
            yield pytest.param(subject, promise, case, id=label, marks=marks)


def _word(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"not {name}"
    if isinstance(value, dict):
        return "causal" if value else "bidirectional"
    if isinstance(value, tuple):
        return f"{len(value)} pieces" if len(value) > 2 else "-".join(map(str, value))
    return str(value).removeprefix("torch.")


@pytest.mark.parametrize(
    ("subject", "promise", "case"),
    [each for name in NAMES for each in promised(subject_of(name), name)],
)
def test_every_mixer_keeps(
    subject: Subject, promise: Promise, case: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if promise.topic == "compile":
        request.getfixturevalue("fresh_compiler")
    promise.check(subject, **case)


@pytest.mark.parametrize("name", NAMES)
class TestProjections:
    def test_projections_have_the_published_names(self, name: str) -> None:
        projected = {"query", "key", "value"} & set(MIXERS[name].kind.inputs)
        children = {child for child, _ in build(name).named_children()}
        assert {f"{each}_projection" for each in projected | {"out"}} <= children

    def test_a_seed_fixes_parameters_and_dropout(self, name: str) -> None:
        x, form = draw(2, 63, DIM), forms(name)[0]
        runs = []
        for _ in range(2):
            mixer = build(name, dropout=0.5).train()
            torch.manual_seed(3)
            runs.append(mixer(x, **form)[0])
        assert runs[0].equal(runs[1])
        assert 0.3 < (runs[0] == 0).double().mean() < 0.7
        assert build(name, dropout=0.5)(x, **form)[0].equal(build(name)(x, **form)[0])

    def test_grouped_heads_are_repeated_heads(self, name: str) -> None:
        grouped, full, form = build(name, num_kv_heads=1), build(name), forms(name)[0]
        state = grouped.state_dict()
        for key, value in state.items():
            if key.startswith(("key_projection", "value_projection")):
                state[key] = value.repeat(HEADS, *[1] * (value.ndim - 1))
        full.load_state_dict(state)
        x = draw(2, 17, DIM)
        close(grouped(x, **form)[0], full(x, **form)[0])

    def test_refuses_a_context_mask_without_a_context(self, name: str) -> None:
        with pytest.raises(ValueError, match="context_mask was given without a context"):
            build(name)(
                draw(1, 5, DIM), context_mask=torch.ones(1, 5, dtype=torch.bool), **forms(name)[0]
            )

    def test_refuses_a_state_without_causal(self, name: str) -> None:
        with pytest.raises((ValueError, NotImplementedError), match=r"causal|state"):
            build(name)(draw(1, 5, DIM), return_state=True)


@pytest.mark.usefixtures("shape_checks_off")  # sizes are tensors there
@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the checks of shapes
@pytest.mark.parametrize(("name", "form"), [(name, form) for name in NAMES for form in forms(name)])
def test_a_trace_of_one_short_sequence_serves_batches_of_any_length(
    name: str, form: dict[str, bool]
) -> None:
    mixer = build(name, num_kv_heads=1).requires_grad_(False)

    def mix(x: Tensor, mask: Tensor) -> Tensor:
        return mixer(x, mask=mask, **form)[0]

    example = draw(1, 5, DIM), torch.ones(1, 5, dtype=torch.bool)
    traced: Any = torch.jit.trace(mix, example, check_trace=False)
    for batch, length in ((1, 5), (3, 70), (2, 1)):
        inputs = draw(batch, length, DIM, seed=1), draw(batch, length, seed=2) > -1
        close(traced(*inputs), mix(*inputs))


@pytest.mark.parametrize("name", having("causal"))
def test_a_causal_call_refuses_a_context(name: str) -> None:
    errors = (ValueError, NotImplementedError)
    with pytest.raises(errors, match=r"orders the tokens of one sequence|no cross form"):
        build(name)(draw(1, 5, DIM), draw(1, 5, DIM), causal=True)


@pytest.mark.parametrize("name", having("state"))
@pytest.mark.usefixtures("shape_checks_off")
def test_a_state_of_another_batch_or_another_mixer_is_refused(name: str) -> None:
    mixer, x = build(name), draw(3, 5, DIM)
    _, state = mixer(x, causal=True, return_state=True)
    with pytest.raises(ValueError, match=r"of the state must be .* got \[3"):
        mixer(x[:1], causal=True, state=state)
    states = [
        build(each)(x, causal=True, return_state=True)[1] for each in ("flow", "softmax", "linear")
    ]
    other = next(each for each in states if type(each) is not type(state))
    with pytest.raises(TypeError, match=r"the state must be a \w+State, got \w+State"):
        mixer(x, causal=True, state=other)


@pytest.mark.parametrize("name", having("cross"))
class TestCross:
    @pytest.mark.parametrize(("length", "sources"), [(1, 63), (63, 1), (17, 23)])
    def test_masked_context_equals_the_context_alone(
        self, name: str, length: int, sources: int
    ) -> None:
        mixer = build(name)
        subject = subject_of(name)
        queries = [draw(n, DIM, seed=n) for n in (length, (length + 1) // 2)]
        contexts = [draw(n, DIM, seed=n + 50) for n in ((sources + 1) // 2, sources)]
        for side in ("left", "right"):
            x, mask = padded(subject, queries, length + 2, side)
            context, context_mask = padded(subject, contexts, sources + 3, side)
            y, _ = mixer(x, context, mask=mask, context_mask=context_mask)
            assert not y[~mask].any()
            for row, (query, source) in enumerate(zip(queries, contexts, strict=True)):
                close(y[row, mask[row]], mixer(query[None], source[None])[0][0])

    def test_an_empty_context_gives_the_output_of_nothing(self, name: str) -> None:
        mixer = build(name)
        context = draw(1, 6, DIM).requires_grad_()
        y, _ = mixer(draw(1, 4, DIM), context, context_mask=torch.zeros(1, 6, dtype=torch.bool))
        y.square().sum().backward()
        close(y, mixer.out_projection.bias.expand_as(y))
        assert context.grad is not None
        assert not context.grad.any()

    def test_context_may_have_another_width(self, name: str) -> None:
        mixer = build(name, context_dim=7)
        assert mixer(draw(2, 5, DIM), draw(2, 9, 7))[0].shape == (2, 5, DIM)


INDEPENDENT = [
    *[(name, {}) for name in having("cross")],
    ("flow", {"independent_sinks": True}),
    ("flow", {"competition": None, "allocation": False}),
    ("flow-no-competition", {}),
    ("flow-no-allocation", {"competition": None}),
]


@pytest.mark.parametrize(
    ("name", "options"), INDEPENDENT, ids=["-".join((name, *o)) for name, o in INDEPENDENT]
)
def test_a_later_query_reaches_earlier_outputs_just_where_the_record_says_so(
    name: str, options: dict[str, Any]
) -> None:
    mixer, seen = build(name, **options), 4
    x, context = draw(2, 7, DIM), draw(2, 9, DIM, seed=1).requires_grad_()
    changed = x.clone()
    changed[:, seen:] = 3 * draw(2, 3, DIM, seed=2)
    mask = (torch.arange(7) < seen).expand(2, 7)
    wild = x.masked_fill(~mask[..., None], torch.nan)

    def earlier(x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Outputs, and the gradients of a loss of them alone, of what is the same in each call."""
        out = mixer(x, context, mask=mask)[0][:, :seen]
        wanted = [context, *mixer.parameters()]
        loss = (out * draw(*out.shape, seed=3)).sum()
        return [out.detach(), *torch.autograd.grad(loss, wanted, allow_unused=True)]

    def moved(others: list[Tensor]) -> list[float]:
        pairs = [(a, b) for a, b in zip(whole, others, strict=True) if a is not None]
        return [float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in pairs]

    whole = earlier(x)
    moves = [moved(earlier(changed)), moved(earlier(x[:, :seen])), moved(earlier(wild, mask))]
    assert mixer.capabilities == mixer.attention.capabilities
    if mixer.capabilities.independent_sinks:
        assert max(map(max, moves)) < 1e-12
        close(mixer(wild, context)[0][:, :seen], whole[0], 1e-12)
        assert mixer.attention.require("independent_sinks") is None
    else:
        assert min(outputs for outputs, *_ in moves) > 1e-7  # no record is False without need
        able = "flow with independent_sinks=True, softmax, linear"
        with pytest.raises(NotImplementedError, match=f"tokens to come; .* that can: {able}"):
            mixer.attention.require("independent_sinks")


def missing(name: str) -> list[str]:
    """The calls that it refuses. What has no causal form refuses a state for that reason."""
    record = MIXERS[name].capabilities
    asked = ["bidirectional", "causal", "cross"] + (["state"] if record.causal else [])
    return [capability for capability in asked if not getattr(record, capability)]


def arguments(name: str, capability: str) -> dict[str, Any]:
    """A call that asks for the capability."""
    return {
        "causal": {"causal": True},
        "cross": {"context": draw(1, 9, DIM), **forms(name)[0]},
        "state": {"causal": True, "return_state": True},
        "bidirectional": {},
    }[capability]


@pytest.mark.parametrize(
    ("name", "capability"),
    [(name, capability) for name in NAMES for capability in missing(name)],
)
def test_asking_for_a_missing_capability_says_which_mixers_have_it(
    name: str, capability: str
) -> None:
    with pytest.raises(NotImplementedError, match=f"Mixers that can: .*{having(capability)[0]}"):
        build(name)(draw(1, 5, DIM), **arguments(name, capability))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in having("variable_length")])
def test_a_fixed_length_must_be_given_and_is_a_bound(name: str) -> None:
    with pytest.raises(ValueError, match="max_length"):
        build(name, max_length=None)
    with pytest.raises(ValueError, match=f"{LONGEST} keys, got {LONGEST + 1}"):
        build(name)(draw(1, LONGEST + 1, DIM))
