"""timm's own model tests, on our models. `scripts/timm_tests.py` runs them.

pytest does not collect this file by itself: the tests that it calls stand in timm's source
distribution, in tests/, which that script fetches and puts on the path as the package `timm_tests`.
Of the tests that it runs for every model those of TorchScript and of FX graphs are left out: the
attention chooses its kernel when it is called, which neither can trace (torch.compile and
torch.export can, and are tested here). There is nothing pretrained to compare with.
"""

# pyright: reportMissingImports=false
import pytest
from timm_tests import test_models as theirs
from timm_tests.test_models import cfg_device  # noqa: F401 - a fixture

import flowformer.integrations.timm  # noqa: F401 - registers the models

DEIT = ["flowformer_deit_tiny", "flowformer_deit_small", "flowformer_gated_deit_tiny"]
MODELS = ["flowformer_hierarchical", *DEIT]


@pytest.mark.parametrize("name", MODELS)
class TestModel:
    def test_forward(self, name: str) -> None:
        theirs.test_model_forward(name, 1)

    def test_backward(self, name: str) -> None:
        theirs.test_model_backward(name, 2)

    def test_forward_features(self, name: str) -> None:
        theirs.test_model_forward_features(name, 1)

    def test_forward_intermediates_features(self, name: str) -> None:
        theirs.test_model_forward_intermediates_features(name, 1)

    def test_forward_intermediates(self, name: str) -> None:
        theirs.test_model_forward_intermediates(name, 1)

    def test_prune_intermediate_layers_contract(self, name: str) -> None:
        theirs.test_prune_intermediate_layers_contract(name)


def test_default_configuration(cfg_device: str) -> None:  # noqa: F811
    theirs.test_model_default_cfgs("flowformer_hierarchical", 1, cfg_device)


@pytest.mark.parametrize("name", DEIT)
def test_default_configuration_of_tokens(name: str, cfg_device: str) -> None:  # noqa: F811
    theirs.test_model_default_cfgs_non_std(name, 1, cfg_device)
