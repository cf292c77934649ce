"""The short convolution: its equation, padding, packs, states, gradients, in every backend."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from flowformer import ConvolutionState, short_convolution
from flowformer.ops import convolution, states_in_place
from flowformer.ops.backends import available_backends
from flowformer.ops.backends.cpu.library import load_library
from flowformer.ops.convolution import short_convolutions
from tests.ops.cases import BACKENDS, needs_library

TRITON = pytest.param(
    "triton",
    marks=pytest.mark.skipif(
        available_backends()["triton"] is not None, reason=str(available_backends()["triton"])
    ),
)
every_backend = pytest.mark.parametrize("backend", [*BACKENDS, TRITON])
SIZES = {  # batch, tokens, heads, width, taps
    "one-token": (2, 1, 3, 5, 4),
    "below-the-window": (2, 3, 3, 5, 7),
    "odd": (2, 37, 3, 7, 4),
    "two-taps": (3, 18, 1, 17, 2),
    "one-tap": (2, 9, 2, 4, 1),
    "wide": (1, 50, 9, 64, 4),
    "five-taps": (1, 33, 2, 16, 5),
}
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
PADDED = [False, True, False, False, True, True, False, True, False]


def draw(size: tuple[int, ...], backend: str = "cpu", dtype: Any = None) -> tuple[Tensor, ...]:
    """Return x, weight and bias in the widest dtype that a backend takes."""
    b, t, h, d, w = size
    dtype = dtype or (torch.float32 if backend == "triton" else torch.float64)
    shapes = (b, t, h, d), (h, d, w), (h, d)
    x, weight, bias = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return x, weight, bias


def equation(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, activates: bool, ahead: int = 0
) -> Tensor:
    """Return it as torch's convolution of every channel, of whole sequences."""
    (b, t, h, d), w = x.shape, weight.shape[-1]
    channels = F.pad(x.flatten(2).mT, (w - 1 - ahead, ahead))
    of_channels = None if bias is None else bias.flatten()
    y = F.conv1d(channels, weight.reshape(h * d, 1, w), of_channels, groups=h * d)
    y = y.mT.reshape(b, t, h, d)
    return F.silu(y) if activates else y


def tolerance(backend: str) -> dict[str, Any]:
    return {"rtol": 1e-5, "atol": 1e-5} if backend == "triton" else {}


@every_backend
@every_size
def test_is_torchs_of_every_channel(size: tuple[int, ...], backend: str) -> None:
    x, weight, bias = draw(size, backend)
    most = size[4] - 1
    calls: list[Any] = [(None, None, 0), ("silu", bias, 0), (None, bias, most // 2)]
    for activation, given, ahead in [*calls, ("silu", None, most)]:
        y = short_convolution(
            x, weight, bias=given, activation=activation, ahead=ahead, backend=backend
        )
        right = equation(x, weight, given, activates=activation is not None, ahead=ahead)
        assert_close(y, right, **tolerance(backend))


@every_backend
@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_padding_is_stepped_over_whatever_stands_there(backend: str, ahead: int) -> None:
    x, weight, bias = draw((2, 9, 3, 5, 4), backend)
    mask = torch.tensor([PADDED, [False] * 4 + [True] + [False] * 4])
    wild = x.masked_fill(~mask[..., None, None], torch.nan)
    how: dict[str, Any] = {"bias": bias, "activation": "silu", "backend": backend}
    y = short_convolution(wild, weight, mask=mask, ahead=ahead, **how)
    for row in range(2):
        alone = short_convolution(x[row : row + 1, mask[row]], weight, ahead=ahead, **how)
        assert_close(y[row, mask[row]], alone[0], **tolerance(backend))
    assert not y[~mask].any()


@every_backend
def test_a_state_steps_over_padding(backend: str) -> None:
    x, weight, bias = draw((3, 9, 3, 5, 4), backend)
    mask = torch.tensor([PADDED, [False] * 4 + [True] + [False] * 4, [False] * 9])
    wild = x.masked_fill(~mask[..., None, None], torch.nan)
    state = ConvolutionState(torch.randn(3, 3, 3, 5, dtype=torch.float64))
    how: dict[str, Any] = {"bias": bias, "activation": "silu", "backend": backend}
    y, last = short_convolution(
        wild, weight, mask=mask, initial_state=state, return_state=True, **how
    )
    for row in range(2):
        alone, after = short_convolution(
            x[row : row + 1, mask[row]],
            weight,
            initial_state=ConvolutionState(state.recent[row : row + 1]),
            return_state=True,
            **how,
        )
        assert_close(y[row, mask[row]], alone[0], **tolerance(backend))
        assert_close(last.recent[row], after.recent[0], **tolerance(backend))
    assert_close(last.recent[2], state.recent[2], **tolerance(backend))


@every_backend
@pytest.mark.parametrize("begun", [False, True], ids=["fresh", "with-states"])
def test_a_pack_is_each_sequence_alone(backend: str, begun: bool) -> None:
    """Some of them are shorter than the window, and one has no token."""
    x, weight, bias = draw((1, 47, 3, 5, 4), backend)
    offsets = torch.tensor([0, 1, 1, 3, 8, 45, 47])
    state = ConvolutionState(torch.randn(6, 3, 3, 5, dtype=torch.float64)) if begun else None
    how: dict[str, Any] = {"bias": bias, "activation": "silu", "backend": backend}
    y, last = short_convolution(
        x, weight, cu_seqlens=offsets, initial_state=state, return_state=True, **how
    )
    for n, (start, end) in enumerate(pairwise(offsets.tolist())):
        before = ConvolutionState.initial(1, 4, 3, 5, x.device)
        if state is not None:
            before = ConvolutionState(state.recent[n : n + 1])
        if start == end:
            assert_close(last.recent[n : n + 1], before.recent, **tolerance(backend))
            continue
        alone, after = short_convolution(
            x[:, start:end], weight, initial_state=before, return_state=True, **how
        )
        assert_close(y[:, start:end], alone, **tolerance(backend))
        assert_close(last.recent[n : n + 1], after.recent, **tolerance(backend))


@every_backend
@pytest.mark.parametrize("part", [1, 2, 5, 20])
def test_chunk_by_chunk_is_the_whole(backend: str, part: int) -> None:
    x, weight, bias = draw((2, 37, 3, 5, 4), backend)
    how: dict[str, Any] = {"bias": bias, "backend": backend}
    parts, state = [], None
    for begin in range(0, 37, part):
        y, state = short_convolution(
            x[:, begin : begin + part], weight, initial_state=state, return_state=True, **how
        )
        parts.append(y)
    assert_close(torch.cat(parts, 1), short_convolution(x, weight, **how), **tolerance(backend))
    assert state is not None
    assert_close(state.recent, x[:, -3:].double(), rtol=0, atol=0)


@every_backend
@pytest.mark.parametrize("padded", [False, True])
def test_no_token_leaves_a_state_as_it_is(backend: str, padded: bool) -> None:
    """As of a rank that holds no part of a sequence."""
    x, weight, _ = draw((2, 0, 3, 5, 4), backend)
    mask = torch.ones(2, 0, dtype=torch.bool) if padded else None
    recent = torch.randn(2, 3, 3, 5, dtype=torch.float64, requires_grad=True)
    weight.requires_grad_()
    state = ConvolutionState(recent)
    how: dict[str, Any] = {"mask": mask, "backend": backend, "return_state": True}
    y, after = short_convolution(x, weight, initial_state=state, **how)
    assert y.shape == x.shape
    assert_close(after.recent, recent.to(x.dtype).double(), rtol=0, atol=0)
    grads = torch.autograd.grad(y.sum() + after.recent.sum(), (weight, recent))
    assert_close(list(grads), [torch.zeros_like(weight), torch.ones_like(recent)])


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "silu": {"activation": "silu"},
    "ahead": {"ahead": 2},
    "padded": {"mask": torch.tensor([PADDED, PADDED[::-1]]), "activation": "silu"},
    "padded-across": {"mask": torch.tensor([PADDED, PADDED[::-1]]).T.contiguous().T},
    "ahead-padded": {
        "mask": torch.tensor([PADDED, PADDED[::-1]]),
        "activation": "silu",
        "ahead": 1,
    },
    "state": {"recent": True, "activation": "silu"},
    "state-padded": {"recent": True, "mask": torch.tensor([PADDED, [False] * 8 + [True]])},
    "pack": {"cu_seqlens": torch.tensor([0, 1, 1, 3, 9]), "recent": True, "activation": "silu"},
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def differentiable(case: dict[str, Any], backend: str) -> tuple[Any, list[Tensor]]:
    """Return a function of all that has a gradient, its output and its state, and its inputs."""
    case = dict(case)
    offsets = case.get("cu_seqlens")
    rows = 2 if offsets is None else len(offsets) - 1
    x, weight, bias = draw((1 if offsets is not None else 2, 9, 2, 3, 4), backend)
    tensors = [x, weight, bias]
    if begun := case.pop("recent", False):
        tensors.append(torch.randn(rows, 3, 2, 3, dtype=torch.float64))

    def run(x: Tensor, weight: Tensor, bias: Tensor, *recent: Tensor) -> Any:
        if not begun:
            return short_convolution(x, weight, bias=bias, backend=backend, **case)
        y, state = short_convolution(
            x,
            weight,
            bias=bias,
            initial_state=ConvolutionState(*recent),
            return_state=True,
            backend=backend,
            **case,
        )
        return y, state.recent

    return run, [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("backend", BACKENDS)
@every_case
def test_gradients_are_those_of_finite_differences(case: dict[str, Any], backend: str) -> None:
    run, tensors = differentiable(case, backend)
    assert torch.autograd.gradcheck(run, tensors)


@needs_library
@pytest.mark.parametrize("case", [CASES["silu"], CASES["state"], CASES["pack"]])
def test_second_gradients_are_those_of_finite_differences(case: dict[str, Any]) -> None:
    run, tensors = differentiable(case, "cpu")
    assert torch.autograd.gradgradcheck(run, tensors)


@every_backend
@every_case
@pytest.mark.parametrize("size", [SIZES["odd"], SIZES["wide"], SIZES["five-taps"]])
def test_every_backend_has_the_gradients_of_the_reference(
    size: tuple[int, ...], case: dict[str, Any], backend: str
) -> None:
    b, t, h, d, w = size
    packed, case = "cu_seqlens" in case, dict(case)
    if packed:
        b = 1
        case["cu_seqlens"] = torch.tensor([0, 2, 2, t - 9, t])
    if "mask" in case:
        case["mask"] = torch.rand(b, t) > 0.3
    begun, found = case.pop("recent", False), []
    drawn = [*draw((b, t, h, d, w), backend)]
    drawn.append(torch.randn(4 if packed else b, w - 1, h, d, dtype=torch.float64))
    for name in ("reference", backend):
        x, weight, bias, recent = (x.detach().clone().requires_grad_() for x in drawn)
        state = ConvolutionState(recent) if begun else None
        y = short_convolution(x, weight, bias=bias, initial_state=state, backend=name, **case)
        grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        of = (x, weight, bias, recent) if begun else (x, weight, bias)
        found.append((y, *torch.autograd.grad(y, of, grad)))
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert_close(ours, theirs, **tolerance(backend))


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_once(backend: str, dtype: torch.dtype) -> None:
    x, weight, bias = draw(SIZES["odd"], dtype=dtype)
    x, weight, bias = (each.requires_grad_() for each in (x, weight, bias))
    exact = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
    grads, outputs = [], []
    for (tokens, taps, added), name in (((x, weight, bias), backend), (exact, "reference")):
        y = short_convolution(tokens, taps, bias=added, activation="silu", backend=name)
        grad = torch.linspace(-1, 1, y.numel()).view_as(y).to(dtype).to(y.dtype)
        outputs.append(y)
        grads.append(torch.autograd.grad(y, (tokens, taps, added), grad))
    assert outputs[0].dtype == dtype
    for ours, theirs in zip((outputs[0], *grads[0]), (outputs[1], *grads[1]), strict=True):
        assert ours.dtype == dtype
        rounding = (theirs.to(dtype).double() - theirs).abs().max()
        assert (ours.double() - theirs).abs().max() <= 2 * rounding


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_more_precision_than_the_tokens_keep_it(backend: str) -> None:
    """As under autocast."""
    x, weight, _ = draw((1, 20, 2, 8, 4), dtype=torch.float32)
    y = short_convolution(x.bfloat16(), weight, backend=backend)
    right = short_convolution(x.bfloat16().double(), weight.double(), backend="reference")
    assert y.dtype == torch.bfloat16
    assert_close(y, right.bfloat16())


SPOILED: dict[str, dict[str, Any]] = {  # what stands around tokens that are not finite
    "alone": {},
    "silu": {"activation": "silu"},
    "ahead": {"ahead": 1, "activation": "silu"},
    "padded": {"mask": torch.tensor([PADDED * 5, PADDED[::-1] * 5]), "activation": "silu"},
    "state": {"begun": True},
    "state-padded": {
        "begun": True,
        "mask": torch.tensor([PADDED * 5, [False] * 45]),
        "activation": "silu",
    },
    "pack": {"begun": True, "cu_seqlens": torch.tensor([0, 2, 2, 45]), "activation": "silu"},
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of Triton's interpreter
@every_backend
@pytest.mark.parametrize("case", SPOILED.values(), ids=SPOILED)
def test_what_is_not_finite_reaches_who_sees_it_and_no_gradient(
    case: dict[str, Any], backend: str
) -> None:
    """Neither in tokens, nor in padding, nor in a state; not even where NaN comes in from above."""
    case = dict(case)
    packed, begun = "cu_seqlens" in case, case.pop("begun", False)
    x, weight, bias = draw((1 if packed else 2, 45, 2, 3, 4), backend)
    recent = torch.randn(3 if packed else 2, 3, 2, 3, dtype=torch.float64)
    tokens, early = torch.zeros_like(x), torch.zeros_like(recent)
    for t, number in {1: torch.nan, 22: torch.inf, 23: torch.nan, 40: -torch.inf}.items():
        tokens[0, t, t % 2, 2] = number
    early[0, 0, 0, 1] = early[1, :, 1] = torch.nan  # in the case "state-padded" of no real token
    clean = [torch.where(each != 0, 0, kept) for each, kept in ((tokens, x), (early, recent))]
    wild = [x + tokens, recent + early]
    if "mask" in case:
        wild[0] = wild[0].masked_fill(~case["mask"][..., None, None], torch.nan)

    def run(tokens: Tensor, taps: Tensor, added: Tensor | None, before: Tensor, **how: Any) -> Any:
        state = ConvolutionState(before) if begun else None
        return short_convolution(tokens, taps, bias=added, initial_state=state, **how)

    plain = {**case, "activation": None, "backend": "reference"}
    flags = [(each != 0).to(each.dtype) for each in (tokens, early)]
    seen = run(flags[0], torch.ones_like(weight), None, flags[1], **plain) != 0
    grad = torch.randn_like(x)
    found = []
    for (each, before), above, name in (
        (wild, grad.masked_fill(seen, torch.nan), backend),
        (clean, grad.masked_fill(seen, 0), "reference"),
    ):
        leaves = [leaf.clone().requires_grad_() for leaf in (each, weight, bias, before)]
        y = run(*leaves, backend=name, **case)
        found.append((y, *torch.autograd.grad(y, leaves if begun else leaves[:3], above)))
        with torch.no_grad():
            assert torch.equal(run(*leaves, backend=name, **case).isfinite(), y.isfinite())
    (y, *grads), (right, *expected) = found
    assert not y[seen].isfinite().any()
    assert_close(y[~seen], right[~seen], **tolerance(backend))
    assert_close(grads, expected, **tolerance(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_reaches_no_second_gradient(backend: str) -> None:
    x, weight, _ = draw((1, 20, 1, 2, 4))
    found = []
    for number in (torch.nan, 0):
        tokens = x.clone()
        tokens[0, 9, 0, 1] = number
        leaves = tokens.requires_grad_(), weight.clone().requires_grad_()
        y = short_convolution(*leaves, activation="silu", backend=backend)
        kept = torch.ones_like(y, dtype=torch.bool)
        kept[0, 9:13, 0, 1] = False
        first = torch.autograd.grad(y[kept].square().sum(), leaves, create_graph=True)
        squares = torch.stack([each.square().sum() for each in first])
        found.append(torch.autograd.grad(squares.sum(), leaves))
    ours, right = found
    assert_close(ours[1], right[1])
    assert ours[0].isfinite().all()


def views(x: Tensor) -> dict[str, Tensor]:
    """Return tensors that lie in memory otherwise, with the same numbers."""
    wide = torch.cat((x, torch.randn_like(x)), 3)
    return {
        "heads-first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "of-wider-heads": wide[..., : x.shape[3]],
        "some-heads": torch.cat((x, x), 2)[:, :, x.shape[2] :],
        "features-apart": torch.stack((x, x), 4)[..., 1],
        "other-tokens-between": torch.stack((x, x), 2).flatten(1, 2)[:, ::2],
        "one-for-all": x[:, :1].expand(-1, x.shape[1], -1, -1),
    }


@needs_library
@pytest.mark.parametrize("name", views(torch.zeros(1, 1, 1, 1)))
def test_tensors_may_lie_in_memory_as_they_like(name: str) -> None:
    x, weight, _ = draw((2, 21, 3, 10, 4))
    x = views(x)[name].requires_grad_()
    weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    grad = views(torch.randn(2, 21, 3, 10, dtype=torch.float64))[name]
    found = []
    for backend in ("cpu", "reference"):
        y = short_convolution(x, weight, activation="silu", backend=backend)
        found.append((y, torch.autograd.grad(y, x, grad)[0]))
    assert_close(found[0], found[1])


@needs_library
@pytest.mark.parametrize("heads_first", [False, True])
def test_threads_change_no_number(heads_first: bool) -> None:
    x, weight, bias = draw((2, 1500, 4, 48, 4), dtype=torch.float32)
    x = views(x)["heads-first"] if heads_first else x
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf, taps = x.clone().requires_grad_(), weight.clone().requires_grad_()
            y = short_convolution(leaf, taps, bias=bias, activation="silu")
            found.append((y, *torch.autograd.grad(y.square().sum(), (leaf, taps))))
    finally:
        torch.set_num_threads(1)
    for others in found[1:]:
        assert_close(others, found[0], rtol=0, atol=0)


class TestSteps:
    @pytest.fixture(autouse=True)
    def _nothing_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(convolution._STEPS, "_known", {})

    @needs_library
    @pytest.mark.parametrize("in_place", [False, True], ids=["new", "in-place"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("narrow", [False, True], ids=["exact-weights", "weights-as-tokens"])
    def test_are_those_of_another_backend(
        self, in_place: bool, dtype: torch.dtype, narrow: bool
    ) -> None:
        x, weight, bias = draw((2, 7, 3, 11, 4), dtype=dtype)
        if not narrow:
            exact = torch.promote_types(dtype, torch.float32)
            weight, bias = weight.to(exact), bias.to(exact)
        how: dict[str, Any] = {"bias": bias, "activation": "silu", "return_state": True}
        state = ConvolutionState.initial(2, 4, 3, 11, x.device)
        expected = state
        for t in range(7):
            token, before = x[:, t : t + 1], state
            right, expected = short_convolution(
                token, weight, initial_state=expected, backend="chunked", **how
            )
            kept = before.recent.clone()
            with torch.no_grad():
                if in_place:
                    with states_in_place():
                        y, state = short_convolution(token, weight, initial_state=state, **how)
                else:
                    y, state = short_convolution(token, weight, initial_state=state, **how)
            assert_close(y, right)
            assert_close(state, expected, rtol=0, atol=0)
            if in_place and t > 0:
                assert state.recent.data_ptr() == before.recent.data_ptr()
                with pytest.raises(RuntimeError, match="given up"):
                    short_convolution(token, weight, initial_state=before, **how)
            elif not in_place:
                assert_close(before.recent, kept, rtol=0, atol=0)
        assert sum(map(len, convolution._STEPS._known.values())) == 1

    @needs_library
    @pytest.mark.parametrize("in_place", [False, True], ids=["new", "in-place"])
    @pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
    def test_several_are_those_of_each(
        self, in_place: bool, biased: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        several = convolution.PreparedSteps(tuple)
        monkeypatch.setattr(convolution, "_STEPS_OF_SEVERAL", several)
        sizes = (2, 6, 3, 11, 4), (2, 6, 2, 8, 4)
        tensors, weights, biases = zip(*map(draw, sizes), strict=True)
        biases = biases if biased else ()
        how: dict[str, Any] = {"activation": "silu", "return_state": True}
        recent = tuple(
            ConvolutionState.initial(2, 4, x.shape[2], x.shape[3], x.device).recent for x in tensors
        )
        for t in range(6):
            tokens, before = [x[:, t : t + 1] for x in tensors], [x.clone() for x in recent]
            each = [
                short_convolution(
                    tokens[i],
                    weights[i],
                    bias=biases[i] if biased else None,
                    initial_state=ConvolutionState(before[i]),
                    backend="chunked",
                    **how,
                )
                for i in range(2)
            ]
            with torch.no_grad():
                if in_place:
                    with states_in_place():
                        outputs, last = short_convolutions(
                            tokens, weights, recent, biases=biases, **how
                        )
                else:
                    outputs, last = short_convolutions(
                        tokens, weights, recent, biases=biases, **how
                    )
                    assert_close(recent, tuple(before), rtol=0, atol=0)
            assert last is not None
            assert_close(outputs, tuple(y for y, _ in each))
            assert_close(last, tuple(state.recent for _, state in each), rtol=0, atol=0)
            if in_place and t > 0:
                assert [x.data_ptr() for x in last] == [x.data_ptr() for x in recent]
            recent = last
        assert sum(map(len, several._known.values())) == 1

    @needs_library
    def test_those_that_train_are_not_prepared(self) -> None:
        x, weight, _ = draw((2, 1, 3, 5, 4))
        state = ConvolutionState.initial(2, 4, 3, 5, x.device)
        with torch.no_grad():
            short_convolution(x, weight, initial_state=state, return_state=True)
        weight.requires_grad_()
        y, _ = short_convolution(x, weight, initial_state=state, return_state=True)
        assert_close(torch.autograd.grad(y.sum(), weight)[0][..., 3], x[:, 0].sum(0))


@pytest.mark.usefixtures("shape_checks_off")
class TestGraphs:
    def test_one_graph_and_its_gradients(self) -> None:
        torch.compiler.reset()
        x, weight, bias = (each.requires_grad_() for each in draw((2, 9, 3, 5, 4)))
        mask = torch.tensor([PADDED] * 2)

        def run(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ConvolutionState]:
            return short_convolution(
                x, weight, bias=bias, activation="silu", mask=mask, return_state=True
            )

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        found, expected = compiled(x, weight, bias), run(x, weight, bias)
        assert_close(found, expected)
        tensors = (x, weight, bias)
        grads = [torch.autograd.grad(y.square().sum(), tensors) for y, _ in (found, expected)]
        assert_close(grads[0], grads[1])

    @pytest.mark.parametrize("backend", ["chunked", pytest.param("cpu", marks=needs_library)])
    def test_what_is_not_finite_reaches_no_gradient_of_a_graph(self, backend: str) -> None:
        torch.compiler.reset()
        x, weight, _ = draw((1, 20, 1, 2, 4))
        x[0, 9, 0, 1] = torch.nan
        weight.requires_grad_()

        def run(x: Tensor, weight: Tensor) -> Tensor:
            return short_convolution(x, weight, activation="silu", backend=backend)

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        grads = [
            torch.autograd.grad(each(x, weight)[:, :9].sum(), weight) for each in (compiled, run)
        ]
        assert grads[0][0].isfinite().all()
        assert_close(grads[0], grads[1])

    def test_is_exported_for_any_length(self) -> None:
        x, weight, _ = draw((2, 9, 3, 5, 4), dtype=torch.float32)

        class Module(torch.nn.Module):
            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                y, state = short_convolution(x, weight, activation="silu", return_state=True)
                return y, state.recent

        length = torch.export.Dim("length", min=2, max=1000)
        program = torch.export.export(Module(), (x,), dynamic_shapes={"x": {1: length}})
        longer = torch.randn(2, 40, 3, 5)
        assert_close(program.module()(longer), Module()(longer))

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
    def test_torch_func_maps_over_it(self) -> None:
        x, weight, _ = draw((2, 9, 3, 5, 4))
        many = torch.stack((x, 2 * x))
        mapped = torch.func.vmap(lambda x: short_convolution(x, weight))(many)
        assert_close(mapped, torch.stack([short_convolution(each, weight) for each in many]))
        pair: Any = torch.func.jvp(lambda x: short_convolution(x, weight), (x,), (x,))
        assert_close(pair[1], short_convolution(x, weight))  # it is linear

    # opcheck itself looks at .grad of tensors that are no leaves
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @needs_library
    def test_the_operators_keep_torchs_rules(self) -> None:
        x, weight, bias = (each.requires_grad_() for each in draw((2, 9, 3, 5, 4)))
        recent = torch.randn(2, 3, 3, 5, dtype=torch.float64, requires_grad=True)
        given = x, weight, bias, torch.tensor([PADDED] * 2), None, recent, True, 0, True
        torch.library.opcheck(torch.ops.flowformer.convolution.default, given)


def test_a_state_of_numbers_in_half_is_saved_and_loaded(tmp_path) -> None:
    x, weight, _ = draw((2, 9, 3, 5, 4), dtype=torch.float32)
    _, state = short_convolution(x.half(), weight, return_state=True)
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt")
    assert_close(loaded, state)
    assert loaded.recent.dtype == torch.float64


X, WEIGHT = torch.zeros(2, 5, 3, 4), torch.zeros(3, 4, 4)


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize(
    ("x", "weight", "how", "error", "message"),
    [
        (
            X[0],
            WEIGHT,
            {},
            ValueError,
            r"^x must be \[batch, time, head, feature\], .* \[5, 3, 4\]",
        ),
        (X.numpy(), WEIGHT, {}, TypeError, "^x must be a tensor, got ndarray"),
        (X, [[[1.0]]], {}, TypeError, "^weight must be a tensor, got list"),
        (X.long(), WEIGHT, {}, ValueError, "x must be a floating-point tensor, got .*int64"),
        (X, WEIGHT[:2], {}, ValueError, r"weight must be .* 3 heads of 4, got shape \[2, 4, 4\]"),
        (X, WEIGHT[..., :0], {}, ValueError, r"weight must be .* got shape \[3, 4, 0\]"),
        (X, WEIGHT, {"bias": WEIGHT}, ValueError, r"bias must be .* got shape \[3, 4, 4\]"),
        (
            X,
            WEIGHT,
            {"activation": "relu"},
            ValueError,
            "activation must be 'silu' or None, got 'r",
        ),
        (X, WEIGHT, {"ahead": 4}, ValueError, "ahead must be .* of the 4 tokens .* to 3, got 4"),
        (X, WEIGHT, {"ahead": 1, "return_state": True}, ValueError, "no later tokens: got ahead=1"),
        (X, WEIGHT, {"mask": X[..., 0, 0]}, TypeError, "mask of the tokens must be boolean"),
        (X, WEIGHT, {"mask": X[0, ..., 0] == 0}, ValueError, r"must be \[batch, time\] = \[2, 5\]"),
        (X, WEIGHT, {"cu_seqlens": torch.tensor([0, 5])}, ValueError, "have batch size 1"),
        (X[:1], WEIGHT, {"cu_seqlens": torch.tensor([0, 4])}, ValueError, "rise from 0 to .* 5"),
        (X, WEIGHT, {"initial_state": X}, TypeError, "must be a ConvolutionState, got Tensor"),
        (
            X,
            WEIGHT,
            {"initial_state": ConvolutionState(X.double())},
            ValueError,
            r"recent of the state must be \[2, 3, 3, 4\] .* got \[2, 5, 3, 4\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(x, weight, how, error, message) -> None:
    with pytest.raises(error, match=message):
        short_convolution(x, weight, **how)


@needs_library
def test_the_library_says_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    library = load_library()
    assert library is not None
    monkeypatch.setattr(library, "flowformer_convolution_forward", lambda _: 1)
    with pytest.raises(MemoryError, match="flowformer_convolution_forward could not allocate"):
        short_convolution(X, WEIGHT)
