"""The benchmarks of the image models time what they say, on small models."""

from dataclasses import replace

import pytest
import torch

from benchmarks.models import vision_latency, vision_speed
from benchmarks.models.vision_speed import CASES, Case
from flowformer.models.images.config import VISION_PRESETS, VisionModelConfig

STAGES = VisionModelConfig(patch_size=2, dims=(8, 16, 16), depths=(1, 1, 1), num_heads=(2, 2, 2))
DEIT = replace(STAGES, dims=(16,), depths=(1,), num_heads=(2,), layer_scale=None, pooling="cls")


def test_a_part_of_the_model_ends_with_its_stage() -> None:
    images = torch.randn(2, 3, 16, 16)
    whole = Case(image_size=16, batch=2, stages=None, goal=1, rounds=1)
    assert vision_speed.side(STAGES, "flow", whole)(images).shape == (2, 1000)
    part = replace(whole, stages=2)
    assert vision_speed.side(STAGES, "flow", part)(images).shape == (2, 16, 16)


def test_throughput_is_told_for_each_mixer_beside_softmax() -> None:
    said: list[str] = []
    cases = {"small": Case(image_size=16, batch=2, stages=None, goal=1, rounds=3)}
    measured = vision_speed.measure(
        cases, mixers=["flow", "softmax"], config=STAGES, say=said.append
    )
    cell = measured["small"]
    assert len(said) == 2
    assert cell["over_softmax"]["softmax"] == 1
    median = sorted(cell["seconds"]["flow"])[1]
    assert cell["images_per_second"]["flow"] == pytest.approx(2 / median)


def test_the_cases_are_those_of_the_published_body() -> None:
    stride = VISION_PRESETS["hierarchical"].stride
    assert all(case.image_size % stride == 0 for case in CASES.values())
    assert [(case.stages, case.goal) for case in CASES.values()] == [(None, 1), (2, 3)]


@pytest.mark.usefixtures("shape_checks_off")
def test_latency_is_that_of_an_export_with_the_same_logits() -> None:
    measured = vision_latency.measure(
        [16],
        mixers=["mobile", "softmax"],
        repeats=3,
        shortest=0,
        config=DEIT,
        say=lambda _: None,
    )
    cell = measured["16"]
    assert max(cell["off_pytorch"].values()) < 1e-4
    assert cell["softmax_over"]["softmax"] == 1
    assert set(cell["milliseconds"]) == {"mobile", "softmax"}
