"""The models that timm makes leave PyTorch with any number of images."""

import pytest
import torch
from torch.export import Dim

from tests.integrations.timm.test_models import NAMES, create
from tests.tracing import trace

pytestmark = pytest.mark.usefixtures("shape_checks_off")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_traced_or_exported_at_few_images_serves_many(name: str) -> None:
    model = create(name, num_classes=3)
    images = torch.randn(5, 3, 16, 16)
    expected = model(images)
    traced = trace(model, (images[:1],))
    torch.testing.assert_close(traced(images), expected)
    shapes = ({0: Dim("images", max=64)},)
    exported = torch.export.export(model, (images[:2],), dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(images), expected)
