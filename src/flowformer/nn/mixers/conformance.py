"""What every mixer promises, whatever its attention: checks that any mixer can be held to.

The tests hold all mixers of the table to them, `flowformer check-mixer` holds one of a user's own.
A check is a function of a `Subject` and of one case; it raises AssertionError where a promise is
broken, and returns the figure that it measured, if any, with its name. Lengths that are no multiple
of anything are in every list.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowformer.nn.mixers.building import check_options
from flowformer.nn.mixers.mixer import ProjectedMixer

Form = dict[str, bool]  # the keywords of a form of self-attention
Check = Callable[..., tuple[str, float] | None]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A mixer that is checked.

    Attributes:
        mixer: its class.
        options: of its constructor.
        rounding: in low precision the output may differ by this many eps of its largest value.
            Three tensors of a mixer of ours are rounded on the way (heads, attention, output), each
            by eps / 2; projections with weights within 1/√width at most double it.
        dim: width of the hidden states.
        num_heads: heads.
        longest: tokens of the longest sequence.
        exact: the precision in which promises are exact.
    """

    mixer: type[ProjectedMixer]
    options: Mapping[str, Any] = field(default_factory=dict)
    rounding: float = 3.0
    dim: int = 24
    num_heads: int = 3
    longest: int = 500
    exact: torch.dtype = torch.float64

    def build(
        self, *, dtype: torch.dtype | None = None, seed: int = 1, **options: Any
    ) -> ProjectedMixer:
        """Return one, in evaluation, its parameters drawn with a seed."""
        torch.manual_seed(seed)
        options = {"max_length": self.longest, **self.options, **options}
        check_options(self.mixer.__name__, self.mixer, options)
        return self.mixer(self.dim, self.num_heads, **options).to(dtype or self.exact).eval()

    @property
    def forms(self) -> list[Form]:
        """The calls for the forms of self-attention that it has, the bidirectional first."""
        able = self.mixer.capabilities
        return [{}] * able.bidirectional + [{"causal": True}] * able.causal

    def draw(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Return normal numbers of a seed, the same ones in every precision."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.to(dtype or self.exact)

    def close(
        self, actual: Tensor, expected: Tensor, tolerance: float = 1e-10, what: str = ""
    ) -> None:
        """Require two outputs, named in the message, to differ by a part of the largest value.

        Raises:
            AssertionError: they do; the message says by how much.
        """
        if actual.dtype == self.exact == torch.float32:
            tolerance = max(tolerance, 1e-4)
        largest = max(1.0, float(expected.detach().abs().max()))
        told: Any = (lambda words: f"{what}: {words}") if what else None
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * largest, msg=told)


class Promise(NamedTuple):
    """One of the promises.

    Attributes:
        topic: what it is about, in a word.
        name: the promise in words.
        check: the function that checks it: check(subject, **case).
        where: capabilities without which nothing is promised.
        keywords: the values of each keyword of the check, or a function of the subject for them.
        required: whether a mixer of a user's own must keep it, too, to be right.
    """

    topic: str
    name: str
    check: Check
    where: tuple[str, ...]
    keywords: Mapping[str, Any]
    required: bool = True

    def lacks(self, subject: Subject) -> list[str]:
        """Return the capabilities for want of which a subject does not promise it."""
        able = subject.mixer.capabilities
        return [name.replace("_", " ") for name in self.where if not getattr(able, name)]

    def cases(self, subject: Subject) -> list[dict[str, Any]]:
        """Return every combination of the keywords; none where a subject makes no such promise."""
        if self.lacks(subject):
            return []
        combined: list[dict[str, Any]] = [{}]
        for name, values in self.keywords.items():
            each: Any = values(subject) if callable(values) else values
            combined = [{**case, name: value} for case in combined for value in each]
        return combined


PROMISES: list[Promise] = []


def promise(
    topic: str, *, where: tuple[str, ...] = (), required: bool = True, **keywords: Any
) -> Callable[[Check], Check]:
    """Enter a check into PROMISES: see `Promise`, the name of which is that of the function."""

    def enter(check: Check) -> Check:
        name = check.__name__.replace("_", " ").strip()
        PROMISES.append(Promise(topic, name, check, where, keywords, required))
        return check

    return enter


def require(holds: object, message: str) -> None:
    """Raise AssertionError with a message where a promise does not hold."""
    if not holds:
        raise AssertionError(message)


def padded(
    subject: Subject, sequences: list[Tensor], length: int, side: str
) -> tuple[Tensor, Tensor]:
    """The sequences [n_i, dim] as a batch [b, length, dim] with wild padding, and its mask."""
    batch = 1e4 * subject.draw(len(sequences), length, subject.dim, seed=99)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(length - len(sequence), None)
        batch[row, place], mask[row, place] = sequence, True
    return batch, mask


_lengths = partial(promise, length=[1, 63, 500])


@_lengths("dtype", dtype=[torch.float64, torch.float32, torch.bfloat16])
def _the_output_has_the_shape_and_dtype_of_the_input(
    subject: Subject, length: int, dtype: torch.dtype
) -> None:
    x = subject.draw(2, length, subject.dim, dtype=dtype)
    for form in subject.forms:
        y, state = subject.build(dtype=dtype)(x, **form)
        got = f"{list(y.shape)} of {y.dtype} for {list(x.shape)} of {x.dtype}"
        require(y.shape == x.shape and y.dtype == x.dtype, f"got {got}")
        require(state is None, "a state was returned that was not asked for")
        require(y.isfinite().all(), f"not all of the output in {dtype} is finite")


@_lengths("dtype", dtype=[torch.float32, torch.bfloat16])
def _low_precision_agrees_with_float64(
    subject: Subject, length: int, dtype: torch.dtype
) -> tuple[str, float]:
    mixer, form = subject.build(dtype=dtype), subject.forms[0]
    x = subject.draw(2, length, subject.dim, dtype=dtype)
    low, _ = mixer(x, **form)
    exact, _ = mixer.double()(x.double(), **form)
    eps = torch.finfo(dtype).eps
    largest = max(1.0, float(exact.detach().abs().max()))
    found = float((low.double() - exact).detach().abs().max()) / largest / eps
    require(found <= subject.rounding, f"{found:.3g} eps of {dtype}, expected {subject.rounding:g}")
    return f"eps of {str(dtype).removeprefix('torch.')}", found


@promise("dtype")
def _autocast_changes_precision_only(subject: Subject) -> None:
    mixer, form = subject.build(dtype=torch.float32), subject.forms[0]
    x = subject.draw(2, 63, subject.dim, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = mixer(x, **form)
    require(y.dtype == torch.bfloat16, f"the output is of {y.dtype}, and not of torch.bfloat16")
    # Beside what low precision rounds, the input and the weights are rounded here too.
    tolerance = (subject.rounding + 2) * torch.finfo(torch.bfloat16).eps
    subject.close(y.float(), mixer(x, **form)[0], tolerance)


@promise(
    "padding",
    where=("exact_mask",),
    form=lambda subject: subject.forms,
    place=[(1, "right"), (63, "left"), (63, "right"), (500, "left")],
)
def _a_padded_batch_gives_what_each_sequence_gives_alone(
    subject: Subject, form: Form, place: tuple[int, str]
) -> None:
    (length, side), mixer = place, subject.build()
    lengths = sorted({1, (length + 1) // 2, length})
    sequences = [subject.draw(n, subject.dim, seed=n) for n in lengths]
    x, mask = padded(subject, sequences, min(length + 7, subject.longest), side)
    x.requires_grad_()
    y, _ = mixer(x, mask=mask, **form)
    weight = subject.draw(*y.shape, seed=5)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    require(not y[~mask].any(), "outputs at padded places are not zero")
    require(not gradient[~mask].any(), "padded places have a gradient")
    for row, sequence in enumerate(sequences):
        alone = sequence[None].requires_grad_()
        expected, _ = mixer(alone, **form)
        (expected_gradient,) = torch.autograd.grad((expected * weight[row, mask[row]]).sum(), alone)
        subject.close(y[row, mask[row]], expected[0])
        subject.close(gradient[row, mask[row]], expected_gradient[0])


@promise("padding")
def _a_sequence_of_padding_gives_zeros_and_finite_gradients(subject: Subject) -> None:
    mixer, form = subject.build(), subject.forms[0]
    x = subject.draw(2, 9, subject.dim).requires_grad_()
    mask = torch.tensor([[False] * 9, [True] * 9])
    y, _ = mixer(x, mask=mask, **form)
    y.square().sum().backward()
    require(not y[0].any(), "outputs at padded places are not zero")
    require(y[1].any(), "the other sequence of the batch gives zeros")
    assert x.grad is not None
    require(not x.grad[0].any(), "padded places have a gradient")
    for name, each in (("x", x), *mixer.named_parameters()):
        require(each.grad is not None, f"no gradient reaches {name}")
        assert each.grad is not None
        require(each.grad.isfinite().all(), f"the gradient of {name} is not finite")


@promise("padding", form=lambda subject: subject.forms)
def _nan_in_the_padding_reaches_neither_outputs_nor_gradients(subject: Subject, form: Form) -> None:
    mask = torch.tensor([[True] * 5 + [False] * 4, [True] * 9])
    x = subject.draw(2, 9, subject.dim).where(mask[..., None], torch.nan).requires_grad_()
    mixer = subject.build()
    y, _ = mixer(x, mask=mask, **form)
    y.square().sum().backward()
    require(y.isfinite().all(), "outputs are NaN")
    for name, each in (("x", x), *mixer.named_parameters()):
        require(each.grad is None or each.grad.isfinite().all(), f"the gradient of {name} is NaN")


@promise("packing", form=lambda subject: subject.forms)
def _packed_sequences_are_mixed_each_for_itself(subject: Subject, form: Form) -> None:
    mixer, lengths = subject.build(), (5, 1, 17, 40)
    x = subject.draw(1, sum(lengths), subject.dim)
    together, state = mixer(x, cu_seqlens=torch.tensor([0, *lengths]).cumsum(0), **form)
    require(state is None, "a state was returned that was not asked for")
    alone = torch.cat([mixer(each, **form)[0] for each in x.split(lengths, 1)], 1)
    subject.close(together, alone)


@promise("training")
def _gradients_reach_every_parameter(subject: Subject) -> None:
    mixer = subject.build()
    y, _ = mixer(subject.draw(2, subject.longest, subject.dim), **subject.forms[0])
    y.square().sum().backward()
    without = [
        name
        for name, parameter in mixer.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    require(not without, f"no gradient reaches {', '.join(without)}")


@promise("saving")
def _saved_parameters_restore_the_function(subject: Subject) -> None:
    mixer, x, form = subject.build(), subject.draw(2, 63, subject.dim), subject.forms[0]
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    other = subject.build(seed=2)
    same = other(x, **form)[0].equal(mixer(x, **form)[0])
    require(not same, "other parameters give the same outputs")
    other.load_state_dict(torch.load(file, weights_only=True))
    require(other(x, **form)[0].equal(mixer(x, **form)[0]), "what was loaded gives other outputs")


@promise("saving")
def _saved_parameters_restore_the_function_of_a_mixer_on_empty_memory(subject: Subject) -> None:
    mixer, x, form = subject.build(), subject.draw(2, 17, subject.dim), subject.forms[0]
    other = subject.build(seed=2).to_empty(device="cpu")
    other._apply(lambda tensor: torch.full_like(tensor, 7))  # what memory may hold
    other.load_state_dict(mixer.state_dict())
    restored = other(x, **form)[0].equal(mixer(x, **form)[0])
    require(restored, "what it computes from is neither a parameter nor a buffer that is saved")


@promise("compile", masked=[True, False])
def _it_compiles_without_a_graph_break(subject: Subject, masked: bool) -> None:
    length, form = 63, subject.forms[0]
    mask = torch.arange(length).expand(2, length) < torch.tensor([[length], [length // 2]])
    _compile(subject, "aot_eager", **({"mask": mask, **form} if masked else form))


@promise("compile", where=("causal",), backend=["eager", "aot_eager"])
def _the_causal_form_compiles_without_a_graph_break(subject: Subject, backend: str) -> None:
    _compile(subject, backend, causal=True)


def _compile(subject: Subject, backend: str, **call: Any) -> None:
    mixer = subject.build(dtype=torch.float32)
    compiled = torch.compile(mixer, fullgraph=True, backend=backend)
    x = subject.draw(2, 63, subject.dim, dtype=torch.float32)
    subject.close(compiled(x, **call)[0], mixer(x, **call)[0], 1e-6)


@promise("future", where=("causal",))
def _no_output_depends_on_the_future(subject: Subject) -> None:
    mixer, x = subject.build(), subject.draw(2, 63, subject.dim).requires_grad_()
    y, _ = mixer(x, causal=True)
    for start in (1, 17, 62):
        changed = x.detach().clone()
        changed[:, start:] = subject.draw(2, 63 - start, subject.dim, seed=7)
        other, _ = mixer(changed, causal=True)
        subject.close(other[:, :start], y[:, :start], 1e-12)
        moved = not other[:, start].allclose(y[:, start])
        require(moved, f"the output of token {start} does not depend on it")
        weight = subject.draw(*y[:, :start].shape, seed=5)
        seen = (y[:, :start] * weight).sum()
        (gradient,) = torch.autograd.grad(seen, x, retain_graph=True)
        later = gradient[:, start:]
        subject.close(later, torch.zeros_like(later), 1e-12, f"gradients of tokens after {start}")


@promise("nonfinite", where=("causal",), required=False, value=[torch.nan, torch.inf])
def _what_is_not_finite_reaches_no_earlier_output_nor_its_gradient(
    subject: Subject, value: float
) -> None:
    mixer, x = subject.build(), subject.draw(2, 63, subject.dim)
    mask = torch.ones(2, 63, dtype=torch.bool)
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
        subject.close(found[row, :start], clean[row, :start], what="outputs")
        subject.close(gradient[row, :start], right[row, :start], what="gradients")
        if value is torch.nan:
            require(found[row, start].isnan().all(), "a NaN does not show in its own output")


@promise("future", where=("causal",), form=lambda subject: subject.forms[1:])
def _the_causal_form_differs_from_the_bidirectional(subject: Subject, form: Form) -> None:
    mixer, x = subject.build(), subject.draw(2, 17, subject.dim)
    same = mixer(x, **form)[0].allclose(mixer(x)[0])
    require(not same, "with and without causal=True the outputs are the same")


@promise(
    "streaming",
    where=("state",),
    pieces=[(1,) * 20, (7, 13), (19, 1)],
    masked=lambda subject: [False, True][: 1 + subject.mixer.capabilities.exact_mask],
)
def _pieces_give_what_the_whole_gives(
    subject: Subject, pieces: tuple[int, ...], masked: bool
) -> None:
    mixer, x = subject.build(), subject.draw(3, 20, subject.dim).requires_grad_()
    mask = subject.draw(3, 20, seed=4) > -0.5 if masked else None
    whole, _ = mixer(x, causal=True, mask=mask)
    state, parts = None, []
    masks = [None] * 20 if mask is None else mask.split(pieces, 1)
    for piece, piece_mask in zip(x.split(pieces, 1), masks, strict=False):
        y, state = mixer(piece, causal=True, mask=piece_mask, state=state, return_state=True)
        parts.append(y)
    streamed = torch.cat(parts, 1)
    weight = subject.draw(*whole.shape, seed=5)
    (expected,) = torch.autograd.grad((whole * weight).sum(), x)
    (gradient,) = torch.autograd.grad((streamed * weight).sum(), x)
    subject.close(streamed, whole)
    subject.close(gradient, expected)


@promise("streaming", where=("state",))
def _a_state_can_be_reordered_detached_and_moved(subject: Subject) -> None:
    mixer, x = subject.build(), subject.draw(3, 20, subject.dim)
    _, state = mixer(x[:, :12], causal=True, return_state=True)
    order = torch.tensor([2, 0, 0])
    moved = state.reorder(order).detach().to("cpu")
    require(not any(part.requires_grad for part in tensors_of(moved)), "it keeps its gradients")
    y, _ = mixer(x[order, 12:], causal=True, state=moved)
    expected, _ = mixer(x[order], causal=True)
    subject.close(y, expected[:, 12:])


def _keyword_promise(topic: str, capability: str) -> None:
    """Hold a module of a user's own to a keyword that its call names: a trial found it broken."""

    def broken(subject: Subject) -> Mapping[str, str]:
        return getattr(subject.mixer.kind, "broken", {})

    @promise(topic, capability=lambda subject: broken(subject).keys() & {capability})
    def _what_its_call_names_it_does(subject: Subject, capability: str) -> None:
        require(False, broken(subject)[capability])


for _topic, _capability in (
    ("padding", "exact_mask"),
    ("future", "causal"),
    ("streaming", "state"),
):
    _keyword_promise(_topic, _capability)


def tensors_of(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from tensors_of(part)
