"""A sequence sharded over ranks: what one process gets for the whole."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from flowformer.ops.parallel import sequence_parallel_flow_attention
from tests.distributed_run import alone, failures
from tests.ops.parallel.parallel_cases import cases


def test_every_shard_gets_the_output_state_and_gradients_of_one_process():
    assert failures(cases, ranks=4, halves=True) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_state": True}, "only a causal call has a state"),
        ({"causal": True, "competition": "heads"}, "has no causal form"),
        ({"causal": True, "head_groups": 3}, "head_groups must be 1 to 2"),
        ({"cu_seqlens": torch.tensor([0, 4])}, "the number of tokens, 5"),
        (
            {"cu_seqlens": torch.tensor([0, 5]), "cu_seqlens_k": torch.tensor([0, 2, 5])},
            "as many sequences, got 1 and 2",
        ),
    ],
    ids=["state", "heads", "head-groups", "offsets", "offsets-of-keys"],
)
def test_what_does_not_fit_is_refused(options, message):
    q = k = v = torch.randn(1, 5, 2, 4)
    with alone() as group, pytest.raises(ValueError, match=message):
        sequence_parallel_flow_attention(q, k, v, mesh=group, **options)


def test_packed_sequences_are_not_read_in_reverse():
    q = k = v = torch.randn(1, 5, 2, 4)
    options = {"causal": True, "reverse": True, "cu_seqlens": torch.tensor([0, 5])}
    with alone() as group, pytest.raises(NotImplementedError, match="give a mask"):
        sequence_parallel_flow_attention(q, k, v, mesh=group, **options)


def test_a_mesh_of_two_dimensions_is_refused_and_its_dimensions_are_named():
    q = k = v = torch.randn(1, 5, 2, 4)
    with alone():
        mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "sequence"))
        with pytest.raises(ValueError, match="one of \\('data', 'sequence'\\)"):
            sequence_parallel_flow_attention(q, k, v, mesh=mesh)
