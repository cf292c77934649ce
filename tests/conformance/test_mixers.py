"""What every mixer promises, whatever its attention: one suite over MIXERS.

A new mixer is held to all of it by standing in the table; its capability record chooses the tests,
and `cases.py` its options.
"""

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from flowformer.nn import MIXERS, ProjectedMixer, build_mixer
from tests.conformance.cases import CASES, Case

DIM, HEADS, LONGEST = 24, 3, 500
NAMES = list(MIXERS)


def having(capability: str) -> list[str]:
    return [name for name, kind in MIXERS.items() if getattr(kind.capabilities, capability)]


def case(name: str) -> Case:
    return CASES.get(name, Case())


def build(
    name: str, *, dtype: torch.dtype = torch.float64, seed: int = 1, **options: Any
) -> ProjectedMixer:
    torch.manual_seed(seed)
    options = {"max_length": LONGEST, **case(name).options, **options}
    return build_mixer(name, DIM, HEADS, **options).to(dtype).eval()


def forms(name: str) -> list[dict[str, bool]]:
    """The calls for the forms of self-attention that it has, the bidirectional first."""
    bidirectional = [{}] if name in having("bidirectional") else []
    return bidirectional + ([{"causal": True}] if name in having("causal") else [])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def padded(sequences: list[Tensor], length: int, side: str) -> tuple[Tensor, Tensor]:
    """The sequences [n_i, dim] as a batch [b, length, dim] with wild padding, and its mask."""
    batch = 1e4 * draw(len(sequences), length, DIM, seed=99)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(length - len(sequence), None)
        batch[row, place], mask[row, place] = sequence, True
    return batch, mask


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    largest = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * largest)


@pytest.fixture
def fresh_compiler(shape_checks_off: None) -> None:  # noqa: ARG001 - it is wanted for what it does
    """Each case is a first compilation: torch bounds the number of those of one function."""
    torch.compiler.reset()


@pytest.mark.parametrize("length", [1, 63, 500], ids="t{}".format)
@pytest.mark.parametrize("name", NAMES)
class TestAnyLength:
    def test_output_has_the_shape_and_dtype_of_the_input(self, name: str, length: int) -> None:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            x = draw(2, length, DIM, dtype=dtype)
            for form in forms(name):
                y, state = build(name, dtype=dtype)(x, **form)
                assert (y.shape, y.dtype, state) == (x.shape, dtype, None)
                assert y.isfinite().all()

    def test_low_precision_agrees_with_float64(self, name: str, length: int) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            mixer = build(name, dtype=dtype)
            x = draw(2, length, DIM, dtype=dtype)
            form = forms(name)[0]
            low, _ = mixer(x, **form)
            exact, _ = mixer.double()(x.double(), **form)
            close(low.double(), exact, case(name).rounding * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("length", "side"), [(1, "right"), (63, "left"), (63, "right"), (500, "left")], ids=str
)
@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name in having("exact_mask") for form in forms(name)]
)
def test_masked_batch_equals_each_sequence_alone(
    name: str, form: dict[str, bool], length: int, side: str
) -> None:
    mixer = build(name)
    sequences = [draw(n, DIM, seed=n) for n in sorted({1, (length + 1) // 2, length})]
    x, mask = padded(sequences, length + 7 if length + 7 <= LONGEST else LONGEST, side)
    x.requires_grad_()
    y, _ = mixer(x, mask=mask, **form)
    weight = draw(*y.shape, seed=5)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    assert not y[~mask].any()
    assert not gradient[~mask].any()
    for row, sequence in enumerate(sequences):
        alone = sequence[None].requires_grad_()
        expected, _ = mixer(alone, **form)
        (expected_gradient,) = torch.autograd.grad((expected * weight[row, mask[row]]).sum(), alone)
        close(y[row, mask[row]], expected[0])
        close(gradient[row, mask[row]], expected_gradient[0])


@pytest.mark.parametrize("name", NAMES)
class TestSelfAttention:
    def test_a_sequence_of_padding_gives_zeros_and_finite_gradients(self, name: str) -> None:
        mixer, form = build(name), forms(name)[0]
        x = draw(2, 9, DIM).requires_grad_()
        mask = torch.tensor([[False] * 9, [True] * 9])
        y, _ = mixer(x, mask=mask, **form)
        y.square().sum().backward()
        assert not y[0].any()
        assert y[1].any()
        assert x.grad is not None
        assert not x.grad[0].any()
        for each in (x, *mixer.parameters()):
            assert each.grad is not None
            assert each.grad.isfinite().all()

    def test_nan_in_the_padding_reaches_neither_outputs_nor_gradients(self, name: str) -> None:
        mask = torch.tensor([[True] * 5 + [False] * 4, [True] * 9])
        x = draw(2, 9, DIM).where(mask[..., None], torch.nan).requires_grad_()
        for form in forms(name):
            mixer = build(name)
            y, _ = mixer(x, mask=mask, **form)
            y.square().sum().backward()
            assert y.isfinite().all()
            for each in (x, *mixer.parameters()):
                assert each.grad is None or each.grad.isfinite().all()

    def test_gradients_reach_every_parameter(self, name: str) -> None:
        mixer = build(name)
        y, _ = mixer(draw(2, LONGEST, DIM), **forms(name)[0])
        y.square().sum().backward()
        without = [
            parameter_name
            for parameter_name, parameter in mixer.named_parameters()
            if parameter.grad is None or not parameter.grad.any()
        ]
        assert without == []

    def test_saved_parameters_restore_the_function(self, name: str) -> None:
        mixer, x, form = build(name), draw(2, 63, DIM), forms(name)[0]
        file = io.BytesIO()
        torch.save(mixer.state_dict(), file)
        file.seek(0)
        other = build(name, seed=2)
        assert not other(x, **form)[0].equal(mixer(x, **form)[0])
        other.load_state_dict(torch.load(file))
        assert other(x, **form)[0].equal(mixer(x, **form)[0])

    def test_saved_parameters_restore_the_function_of_a_mixer_on_empty_memory(
        self, name: str
    ) -> None:
        mixer, x, form = build(name), draw(2, 17, DIM), forms(name)[0]
        other = build(name, seed=2).to_empty(device="cpu")
        other._apply(lambda tensor: torch.full_like(tensor, 7))  # what memory may hold
        other.load_state_dict(mixer.state_dict())
        assert other(x, **form)[0].equal(mixer(x, **form)[0])

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

    @pytest.mark.usefixtures("fresh_compiler")
    @pytest.mark.parametrize(
        "masked",
        # Without a mask there is less of the same; TestCausal compiles that form without one.
        [True, pytest.param(False, marks=pytest.mark.slow)],
        ids=["masked", "full"],
    )
    def test_compiles_without_a_graph_break(self, name: str, masked: bool) -> None:
        mixer, length, form = build(name, dtype=torch.float32), 63, forms(name)[0]
        compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
        x = draw(2, length, DIM, dtype=torch.float32)
        mask = torch.arange(length).expand(2, length) < torch.tensor([[length], [length // 2]])
        options = {"mask": mask, **form} if masked else form
        close(compiled(x, **options)[0], mixer(x, **options)[0], 1e-6)

    def test_autocast_changes_precision_only(self, name: str) -> None:
        mixer, x = build(name, dtype=torch.float32), draw(2, 63, DIM, dtype=torch.float32)
        form = forms(name)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = mixer(x, **form)
        assert y.dtype == torch.bfloat16
        # Beside what low precision rounds, the input and the weights are rounded here too.
        tolerance = (case(name).rounding + 2) * torch.finfo(torch.bfloat16).eps
        close(y.float(), mixer(x, **form)[0], tolerance)

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
def test_a_trace_of_one_short_sequence_serves_batches_of_any_length_or_is_refused(
    name: str, form: dict[str, bool]
) -> None:
    mixer = build(name, num_kv_heads=1).requires_grad_(False)

    def mix(x: Tensor, mask: Tensor) -> Tensor:
        return mixer(x, mask=mask, **form)[0]

    example = draw(1, 5, DIM), torch.ones(1, 5, dtype=torch.bool)
    if "deltanet" in name:
        with pytest.raises(NotImplementedError, match="would fix the length of DeltaNet"):
            torch.jit.trace(mix, example)
        return
    traced: Any = torch.jit.trace(mix, example, check_trace=False)
    for batch, length in ((1, 5), (3, 70), (2, 1)):
        inputs = draw(batch, length, DIM, seed=1), draw(batch, length, seed=2) > -1
        close(traced(*inputs), mix(*inputs))


@pytest.mark.parametrize("name", having("causal"))
class TestCausal:
    def test_no_output_depends_on_the_future(self, name: str) -> None:
        mixer, x = build(name), draw(2, 63, DIM)
        y, _ = mixer(x, causal=True)
        for start in (1, 17, 62):
            changed = x.clone()
            changed[:, start:] = draw(2, 63 - start, DIM, seed=7)
            other, _ = mixer(changed, causal=True)
            close(other[:, :start], y[:, :start], 1e-12)
            assert not other[:, start].allclose(y[:, start])

    @pytest.mark.usefixtures("fresh_compiler")
    @pytest.mark.parametrize(
        "backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)]
    )
    def test_compiles_without_a_graph_break(self, name: str, backend: str) -> None:
        mixer = build(name, dtype=torch.float32)
        compiled = torch.compile(mixer, fullgraph=True, backend=backend)
        x = draw(2, 63, DIM, dtype=torch.float32)
        close(compiled(x, causal=True)[0], mixer(x, causal=True)[0], 1e-6)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "inf"])
    def test_what_is_not_finite_reaches_no_earlier_output_nor_its_gradient(
        self, name: str, value: float
    ) -> None:
        mixer, x, mask = build(name), draw(2, 63, DIM), torch.ones(2, 63, dtype=torch.bool)
        mask[1, :9] = False
        wild = x.clone()
        wild[0, 17], wild[1, 40, 3] = value, value
        runs = []
        for each in (x, wild):
            each.requires_grad_()
            y, _ = mixer(each, causal=True, mask=mask)
            seen = y[0, :17].square().sum() + y[1, 9:40].square().sum()
            runs.append((y.detach(), *torch.autograd.grad(seen, each)))
        (clean, right), (found, gradient) = runs
        for row, start in ((0, 17), (1, 40)):
            close(found[row, :start], clean[row, :start])
            close(gradient[row, :start], right[row, :start])
            if value is torch.nan:
                assert found[row, start].isnan().all()

    def test_refuses_a_context(self, name: str) -> None:
        errors = (ValueError, NotImplementedError)
        with pytest.raises(errors, match=r"orders the tokens of one sequence|no cross form"):
            build(name)(draw(1, 5, DIM), draw(1, 5, DIM), causal=True)


@pytest.mark.parametrize("name", [name for name in NAMES if len(forms(name)) == 2])
def test_the_causal_form_differs_from_the_bidirectional(name: str) -> None:
    mixer, x = build(name), draw(2, 17, DIM)
    assert not mixer(x, causal=True)[0].allclose(mixer(x)[0])


@pytest.mark.parametrize("name", having("state"))
class TestState:
    @pytest.mark.parametrize("pieces", [(1,) * 20, (7, 13), (19, 1)], ids="{}-pieces".format)
    @pytest.mark.parametrize("with_mask", [False, True], ids=["full", "masked"])
    def test_pieces_give_what_the_whole_gives(
        self, name: str, pieces: tuple[int, ...], with_mask: bool
    ) -> None:
        mixer, x = build(name), draw(3, 20, DIM).requires_grad_()
        mask = draw(3, 20, seed=4) > -0.5 if with_mask else None
        whole, _ = mixer(x, causal=True, mask=mask)
        state, parts = None, []
        for piece, piece_mask in zip(
            x.split(pieces, 1), [None] * 20 if mask is None else mask.split(pieces, 1), strict=False
        ):
            y, state = mixer(piece, causal=True, mask=piece_mask, state=state, return_state=True)
            parts.append(y)
        streamed = torch.cat(parts, 1)
        weight = draw(*whole.shape, seed=5)
        (expected,) = torch.autograd.grad((whole * weight).sum(), x)
        (gradient,) = torch.autograd.grad((streamed * weight).sum(), x)
        close(streamed, whole)
        close(gradient, expected)

    @pytest.mark.usefixtures("shape_checks_off")
    def test_a_state_of_another_batch_or_another_mixer_is_refused(self, name: str) -> None:
        mixer, x = build(name), draw(3, 5, DIM)
        _, state = mixer(x, causal=True, return_state=True)
        with pytest.raises(ValueError, match=r"of the state must be .* got \[3"):
            mixer(x[:1], causal=True, state=state)
        states = [
            build(each)(x, causal=True, return_state=True)[1]
            for each in ("flow", "softmax", "linear")
        ]
        other = next(each for each in states if type(each) is not type(state))
        with pytest.raises(TypeError, match=r"the state must be a \w+State, got \w+State"):
            mixer(x, causal=True, state=other)

    def test_a_state_can_be_reordered_detached_and_moved(self, name: str) -> None:
        mixer, x = build(name), draw(3, 20, DIM)
        _, state = mixer(x[:, :12], causal=True, return_state=True)
        order = torch.tensor([2, 0, 0])
        moved = state.reorder(order).detach().to("cpu")
        assert not any(part.requires_grad for part in moved if part is not None)
        y, _ = mixer(x[order, 12:], causal=True, state=moved)
        expected, _ = mixer(x[order], causal=True)
        close(y, expected[:, 12:])


@pytest.mark.parametrize("name", having("cross"))
class TestCross:
    @pytest.mark.parametrize(("length", "sources"), [(1, 63), (63, 1), (17, 23)])
    def test_masked_context_equals_the_context_alone(
        self, name: str, length: int, sources: int
    ) -> None:
        mixer = build(name)
        queries = [draw(n, DIM, seed=n) for n in (length, (length + 1) // 2)]
        contexts = [draw(n, DIM, seed=n + 50) for n in ((sources + 1) // 2, sources)]
        for side in ("left", "right"):
            x, mask = padded(queries, length + 2, side)
            context, context_mask = padded(contexts, sources + 3, side)
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
