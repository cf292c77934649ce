"""A sequence sharded over ranks: what one process gets for the whole."""

from tests.distributed_run import failures
from tests.ops.parallel_cases import cases


def test_every_shard_gets_the_output_state_and_gradients_of_one_process():
    assert failures(cases, ranks=4, halves=True) == []
