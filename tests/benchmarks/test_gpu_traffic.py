"""What the GPU kernels move and multiply is counted as Triton's interpreter sees it happen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton has wheels for Linux alone")

from benchmarks.attention.gpu import roofline as gpu_roofline  # noqa: E402
from benchmarks.attention.gpu import traffic as gpu_traffic  # noqa: E402
from benchmarks.attention.gpu.roofline import H100, Card  # noqa: E402
from benchmarks.attention.gpu.traffic import Call, Pass  # noqa: E402
from benchmarks.attention.peers import FORWARD  # noqa: E402
from flowformer import FlowState  # noqa: E402
from flowformer.ops.backends.triton import launch  # noqa: E402
from flowformer.ops.backends.triton.tuning import Settings  # noqa: E402

INTERPRETED = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="there is a GPU: nothing is interpreted"
)
FORMS = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


def call_of(causal: bool, **sizes: Any) -> Call:
    # Splits, the last one short, and blocks that are padded: 300 tokens are ten chunks of 32.
    given = {"batch": 1, "length": 300, "heads": 2, "width": 20, "dtype": torch.float32}
    return Call(causal=causal, **(given | sizes))


class Accesses:
    """Of each launch: the bytes read and the bytes written, each once, and the operations."""

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []

    def touch(self, kind: str, pointers: Any, mask: Any) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        places = pointers.data[mask.data.astype(bool)].ravel().tolist()
        self.launches[-1][kind].update((place, size) for place in places)

    def passes(self) -> list[Pass]:
        return [
            Pass(
                name=each["name"],
                moved=sum(size for kind in ("read", "write") for _, size in each[kind]),
                flop=each["flop"],
            )
            for each in self.launches
        ]


@contextmanager
def watched() -> Iterator[Accesses]:
    from triton.runtime.interpreter import InterpreterBuilder

    seen = Accesses()
    builder: Any = InterpreterBuilder
    load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot
    make = launch._launch

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        seen.touch("read", pointers, mask)
        return load(self, pointers, mask, *rest)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        seen.touch("write", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def multiplied(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        seen.launches[-1]["flop"] += 2 * a.data.size * b.data.shape[-1]
        return dot(self, a, b, *rest)

    def launched(kernel: Any, *arguments: Any, **options: Any) -> None:
        name = kernel.fn.__name__
        seen.launches.append({"name": name, "read": set(), "write": set(), "flop": 0})
        make(kernel, *arguments, **options)

    with (
        patch.object(builder, "create_masked_load", masked_load),
        patch.object(builder, "create_masked_store", masked_store),
        patch.object(builder, "create_dot", multiplied),
        patch.object(launch, "_launch", launched),
    ):
        yield seen


def kernels(passes: list[Pass]) -> list[Pass]:
    return [each for each in passes if not each.name.startswith("torch.")]


@INTERPRETED
@FORMS
def test_counts_are_what_the_interpreter_sees_read_written_and_multiplied(causal):
    call = call_of(causal)
    shape = call.batch, call.length, call.heads, call.width
    inputs = [torch.randn(shape) for _ in range(4)]
    with watched() as seen:
        found = gpu_traffic.record(lambda: gpu_traffic.run_both(call, inputs), launching=True)
    assert kernels(found) == seen.passes()
    assert kernels(gpu_traffic.both_passes(call)) == seen.passes()


@INTERPRETED
@pytest.mark.parametrize("decays", [False, True], ids=["plain", "decays"])
def test_counts_of_linear_attention_are_what_the_interpreter_sees(decays):
    call = call_of(True)
    shape = call.batch, call.length, call.heads, call.width
    inputs = [torch.randn(shape) for _ in range(4)]
    if decays:
        inputs.append(-torch.rand(shape[:3]))
    with watched() as seen:
        gpu_traffic.run_linear(inputs)
    assert kernels(gpu_traffic.linear_passes(call, decays=decays)) == seen.passes()


@INTERPRETED
def test_count_of_a_step_is_what_the_interpreter_sees():
    call = call_of(True, width=16)
    query, key, value = torch.randn(3, call.batch, 1, call.heads, call.width)
    state = FlowState.initial(call.batch, call.heads, call.width, call.width, query.device)
    options: dict[str, Any] = {"features": 0, "eps": 1e-6, "clamp": 1.0, "allocates": True}
    with watched() as seen:
        launch.step(query, key, value, state, **options)
    assert kernels(gpu_traffic.step_passes(call)) == seen.passes()


@FORMS
def test_work_grows_with_the_length_and_no_faster(causal):
    short, long = (call_of(causal, length=2**n, width=64) for n in (14, 16))
    for passes in (gpu_traffic.forward_passes, gpu_traffic.both_passes):
        fewer, more = passes(short), passes(long)
        assert sum(p.moved for p in more) <= 4 * sum(p.moved for p in fewer)
        assert sum(p.flop for p in more) == 4 * sum(p.flop for p in fewer)


def test_smaller_chunks_are_counted_as_such():
    call = call_of(True, dtype=torch.bfloat16, width=64)
    moved = [
        sum(p.moved for p in gpu_traffic.forward_passes(call, Settings(size=size)))
        for size in (16, 64)
    ]
    assert moved[0] > moved[1]  # four times as many matrices before chunks


def test_flash_attention_has_two_products_and_five_more_in_its_backward():
    call = call_of(False, length=64, heads=1, width=16)
    assert gpu_traffic.flash_flop(call, backward=False) == 2 * 2 * 64 * 64 * 16
    assert gpu_traffic.flash_flop(call, backward=True) == 7 * 2 * 64 * 64 * 16
    assert gpu_traffic.flash_flop(call_of(True, length=64, heads=1, width=16), backward=False) == (
        2 * 64 * 64 * 16
    )


def test_bidirectional_forward_moves_eight_tensors_and_little_else():
    call = call_of(False, batch=8, length=8192, heads=16, width=128, dtype=torch.bfloat16)
    moved = sum(each.moved for each in gpu_traffic.forward_passes(call))
    assert 1 <= moved / gpu_traffic.eight_passes(call) <= 1.25


def test_a_pass_takes_the_longer_of_its_two_times():
    card = Card(bandwidth=10.0, flop=100.0)
    passes = [Pass(name="a", moved=20, flop=100), Pass(name="b", moved=10, flop=500)]
    assert gpu_roofline.at_least(passes, card, torch.bfloat16) == 2 + 5
    assert gpu_roofline.at_least(passes, card, torch.float16) == 2 + 10  # as TensorFloat-32


def test_estimate_is_of_ours_and_of_flash_attention():
    call = call_of(True, batch=2, length=32_768, heads=16, width=128, dtype=torch.bfloat16)
    found = gpu_roofline.estimate(call, FORWARD)
    assert found.seconds["H100"] < found.flash_seconds["H100"]
    assert found.seconds["H100"] >= found.moved / H100.bandwidth
    assert found.flash_flop == 2 * call.length * call.numbers
