"""What the benchmark of sharded sequences counts, and what it calculates of it."""

import pytest
import torch
import torch.distributed as dist

from benchmarks.parallel.sequence_parallel import (
    FORMS,
    HEADS,
    PLAN_HEADS,
    PLAN_WIDTH,
    WIDTH,
    counted,
    plan,
)
from flowformer.ops.parallel import sequence_parallel_flow_attention
from tests.distributed_run import alone


@pytest.mark.parametrize("form", FORMS)
def test_bytes_of_collectives_do_not_depend_on_the_length(form):
    found = []
    with alone() as group:
        for length in (1, 63, 500):
            tensors = [torch.randn(1, length, 2, 4, requires_grad=True) for _ in range(3)]
            with counted() as counts:
                sequence_parallel_flow_attention(
                    *tensors, mesh=group, **FORMS[form]
                ).sum().backward()
            found.append(counts)
    assert found[0]["bytes"] > 0
    assert found == found[:1] * 3
    assert dist.is_initialized() is False


def test_the_plan_grows_with_the_state_of_a_layer():
    sent = {"sent": 1000, "collectives": 8}
    row = {"form": "causal", "ranks": 2, "length": 4096, "forward": sent, "backward": sent}
    found = plan([row])
    state, wider = HEADS * WIDTH**2, PLAN_HEADS * PLAN_WIDTH**2
    ratio = found["bytes_a_layer"]["forward"] / 1000
    assert ratio == pytest.approx(2 * wider / state, rel=0.1)  # twice: all but one of many ranks
    assert found["collectives_a_layer"] == 16
