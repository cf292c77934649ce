"""Models whose sequences are sharded over ranks: what one process gets for the whole."""

from tests.distributed_run import failures
from tests.models.parallel_cases import cases, on_a_mesh


def test_models_have_the_loss_and_gradients_of_one_process():
    assert failures(cases, ranks=4, halves=True) == []


def test_data_parallel_and_fully_sharded_beside_it_have_those_of_one_process():
    assert failures(on_a_mesh, ranks=4, halves=False) == []
