"""Models whose sequences are sharded over ranks: what one process gets for the whole."""

import pytest
import torch
from torch import nn

from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import SequenceClassifier
from flowformer.nn import FlowMixer, build_mixer, set_sequence_parallel
from tests.distributed_run import alone, failures
from tests.models.parallel_cases import cases, on_a_mesh


def test_models_have_the_loss_and_gradients_of_one_process():
    assert failures(cases, ranks=4, halves=True) == []


def test_data_parallel_and_fully_sharded_beside_it_have_those_of_one_process():
    assert failures(on_a_mesh, ranks=4, halves=False) == []


def test_another_mixer_than_flow_attention_is_refused_and_left_as_it_is():
    config = LanguageModelConfig(mixer="softmax", dim=8, num_heads=2, num_layers=1, feedforward=8)
    model = LanguageModel(config, vocab_size=5)
    with alone() as group, pytest.raises(NotImplementedError, match="got SoftmaxAttention"):
        model.set_sequence_parallel(group)
    assert model.shards is None


def test_flow_maps_of_a_part_are_refused():
    mixer = FlowMixer(8, 2)
    with alone() as group:
        set_sequence_parallel(mixer, group)
        with pytest.raises(NotImplementedError, match="a flow map is of whole sequences"):
            mixer.flow_map(torch.randn(1, 9, 8))


@pytest.mark.parametrize("name", ["gated", "flow-gated"])
def test_of_one_rank_gated_attention_is_what_it_is_and_packs_are_refused(name):
    mixer, x = build_mixer(name, 8, 4), torch.randn(1, 9, 8)
    expected = [mixer(x, causal=causal)[0] for causal in (True, False)]
    with alone() as group:
        set_sequence_parallel(mixer, group)
        for causal, out in zip((True, False), expected, strict=True):
            torch.testing.assert_close(mixer(x, causal=causal)[0], out)
        with pytest.raises(NotImplementedError, match="one in each row"):
            mixer(x, causal=True, cu_seqlens=torch.tensor([0, 4, 9]))


def test_published_padding_is_refused():
    config = SequenceModelConfig(dim=8, num_heads=2, feedforward=8, padding="published")
    model = SequenceClassifier(config, vocab_size=5, num_classes=2, max_length=9)
    with alone() as group, pytest.raises(ValueError, match="need padding='masked'"):
        model.set_sequence_parallel(group)


def test_a_module_without_flow_attention_is_refused():
    with alone() as group, pytest.raises(ValueError, match="Flow-Attention inside, got Linear"):
        set_sequence_parallel(nn.Linear(2, 2), group)
