"""Image models leave PyTorch: torch.compile, torch.export, and ONNX run by onnxruntime."""

from dataclasses import replace

import onnxruntime
import pytest
import torch
from torch.export import Dim

from flowformer.models.images.config import VisionModelConfig
from flowformer.models.images.model import VisionClassifier

# Beside the pairs that differ in both, the others go through the same code again.
SLOW = pytest.mark.slow
STAGES = VisionModelConfig(patch_size=2, dims=(8, 16), depths=(1, 1), num_heads=(2, 2))
DEIT = replace(STAGES, dims=(16,), depths=(2,), num_heads=(2,), layer_scale=None, pooling="cls")

pytestmark = pytest.mark.usefixtures("shape_checks_off")


def build(config: VisionModelConfig, mixer: str) -> VisionClassifier:
    config = replace(config, mixer=mixer, layer_scale=config.layer_scale and 0.5)
    return VisionClassifier(config, image_size=16, num_classes=7).eval()


@pytest.mark.parametrize(
    ("mixer", "config"),
    [
        pytest.param("flow", STAGES, id="flow-stages"),
        pytest.param("mobile", DEIT, id="mobile-deit"),
        pytest.param("softmax", STAGES, id="softmax-stages"),
        pytest.param("flow", DEIT, id="flow-deit", marks=SLOW),
        pytest.param("mobile", STAGES, id="mobile-stages", marks=SLOW),
        pytest.param("softmax", DEIT, id="softmax-deit", marks=SLOW),
    ],
)
def test_an_exported_program_takes_any_number_of_images(
    mixer: str, config: VisionModelConfig
) -> None:
    model = build(config, mixer)
    shapes = {"images": {0: Dim("batch")}}
    program = torch.export.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=shapes)
    images = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(program.module()(images).logits, model(images).logits)


@pytest.mark.parametrize(
    ("mixer", "config"),
    [
        pytest.param("flow", STAGES, id="flow-stages"),
        pytest.param("mobile", DEIT, id="mobile-deit"),
        pytest.param("flow", DEIT, id="flow-deit", marks=SLOW),
        pytest.param("mobile", STAGES, id="mobile-stages", marks=SLOW),
    ],
)
def test_onnxruntime_gives_the_same_logits(mixer: str, config: VisionModelConfig, tmp_path) -> None:
    model, file = build(config, mixer), tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        (torch.randn(2, 3, 16, 16),),
        file,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, 16, 16)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images).logits)


@pytest.mark.parametrize("mixer", ["flow", pytest.param("mobile", marks=SLOW)])
def test_a_compiled_model_is_one_graph(mixer: str) -> None:
    model, images = build(STAGES, mixer), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images).logits, model(images).logits)
    (compiled_map, *_), (expected, *_) = (
        torch.compile(model.feature_maps, backend="eager", fullgraph=True)(images),
        model.feature_maps(images),
    )
    torch.testing.assert_close(compiled_map, expected)
