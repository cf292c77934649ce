"""The image models: the published Flowformer exactly, DeiT exactly, and any mixer in both."""

import argparse
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from flowformer.models.images.config import VISION_PRESETS, VisionModelConfig
from flowformer.models.images.model import (
    VisionClassifier,
    load_published_vision_model,
    resize_positions,
)
from flowformer.nn import MIXERS
from flowformer.nn.mixers.flow import FlowAttention
from flowformer.nn.mixers.mixer import ProjectedMixer

GOLDEN = VisionModelConfig(dims=(12, 24, 36, 48), depths=(1, 2, 1, 1))
TWO = VisionModelConfig(
    patch_size=2, dims=(8, 16), depths=(1, 2), num_heads=(2, 2), layer_scale=0.5, drop_path=0.0
)
DEIT = VisionModelConfig(
    patch_size=4,
    dims=(16,),
    depths=(3,),
    num_heads=(4,),
    layer_scale=None,
    pooling="cls",
    drop_path=0.0,
)
ABLE = [name for name, mixer in MIXERS.items() if mixer.capabilities.bidirectional]


def build(config: VisionModelConfig = TWO, *, image_size: Any = 16, **sizes: Any):
    torch.manual_seed(1)
    model = VisionClassifier(config, image_size=image_size, num_classes=7, **sizes)
    return model.double().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def parameters_of(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("param."): value
        for name, value in values.items()
        if name.startswith("param.")
    }


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


class PublishedAttention(FlowAttention):
    """The published equations, which add ε once more outside each of the four inner products."""

    def forward(self, query, key, value, **_):
        eps, q, k = 1e-6, query.sigmoid(), key.sigmoid()

        def flow(x: Tensor, total: Tensor) -> Tensor:
            return ((x + eps) * (total.sum(1, keepdim=True) + eps)).sum(-1, keepdim=True) + eps

        incoming, outgoing = flow(q, k), flow(k, q)
        allocation = flow(q, k / outgoing).sigmoid()
        competition = flow(k, q / incoming).clamp(-1, 1).softmax(1) * k.shape[1]
        key_value = torch.einsum("bshd,bshm->bhdm", k, value * competition)
        out = torch.einsum("blhd,bhdm->blhm", q, key_value)
        return out / incoming * allocation, None


class TestGolden:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-5)], ids=["f64", "f32"]
    )
    def test_published_parameters_give_the_published_logits(
        self, golden, dtype: torch.dtype, tolerance: float
    ) -> None:
        values = golden("models/vision")
        model = build(GOLDEN, image_size=64).to(dtype)
        model.load_published_state_dict(parameters_of(values))
        logits, _ = model(values["input"].to(dtype))
        assert relative_error(logits, values["logits"]) <= tolerance

    def test_with_the_published_epsilon_outside_nothing_else_differs(self, golden) -> None:
        values = golden("models/vision")
        model = build(GOLDEN, image_size=64)
        model.load_published_state_dict(parameters_of(values))
        for module in model.modules():
            if isinstance(module, ProjectedMixer):
                module.attention = PublishedAttention()
        logits, _ = model(values["input"])
        assert relative_error(logits, values["logits"]) <= 1e-9


class TestLoadingPublishedParameters:
    def test_every_problem_is_listed(self, golden) -> None:
        state = parameters_of(golden("models/vision"))
        del state["head.bias"], state["blocks.1.0.attn.qkv.weight"]
        state["norm.scale"] = torch.ones(6)
        state["pos_embed"] = torch.zeros(1, 25, 12)
        with pytest.raises(ValueError, match="not the parameters of a published") as caught:
            build(GOLDEN, image_size=64).load_published_state_dict(state)
        for line in (
            "missing: head.bias",
            "missing: stages.1.0.mixer.query_projection.weight",
            "not known: norm.scale",
            "pos_embed: expected (256, 12), got (25, 12)",
        ):
            assert line in str(caught.value)

    def test_a_checkpoint_of_the_published_training_is_a_model(self, golden, tmp_path) -> None:
        values = golden("models/vision")
        state = parameters_of(values) | {"blocks.0.0.attn.total_ops": torch.zeros(1)}
        settings = argparse.Namespace(lr=5e-4, input_size=64)
        torch.save({"model": state, "epoch": 3, "args": settings}, tmp_path / "best.pth")
        model = load_published_vision_model(tmp_path / "best.pth", GOLDEN).double().eval()
        assert model.grid == (16, 16)
        torch.testing.assert_close(
            model(values["input"]).logits, values["logits"], rtol=1e-5, atol=1e-6
        )

    def test_another_checkpoint_is_refused(self, tmp_path) -> None:
        torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=r"no published image model: no head\.weight"):
            load_published_vision_model(tmp_path / "other.pth")

    @pytest.mark.parametrize("shape", [(1, 197, 8), (1, 25, 8), (25,)])
    def test_positions_of_another_architecture_are_told(self, tmp_path, shape) -> None:
        state = {"head.weight": torch.zeros(7, 8), "pos_embed": torch.zeros(shape)}
        torch.save({"model": state}, tmp_path / "deit.pth")
        message = rf"deit\.pth is not of this architecture: .* got {re.escape(str(shape))}"
        with pytest.raises(ValueError, match=message):
            load_published_vision_model(tmp_path / "deit.pth", TWO)


@pytest.mark.parametrize("size", [(32, 32), (48, 24)], ids=["as-built", "interpolated"])
def test_a_deit_is_the_vision_transformer_of_timm(size: tuple[int, int]) -> None:
    theirs = VisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=16,
        depth=3,
        num_heads=4,
        num_classes=7,
        dynamic_img_size=True,
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    theirs = theirs.double().eval()
    ours = build(replace(DEIT, mixer="softmax"), image_size=32)
    ours.load_published_state_dict(theirs.state_dict())
    x = images(2, 3, *size)
    torch.testing.assert_close(ours(x).logits, theirs(x), rtol=1e-5, atol=1e-5)
    if size == (32, 32):
        torch.testing.assert_close(ours(x).logits, theirs(x))


@pytest.mark.parametrize("config", [TWO, DEIT], ids=["stages", "deit"])
@pytest.mark.parametrize("mixer", ABLE)
def test_every_bidirectional_mixer_classifies_and_trains(
    mixer: str, config: VisionModelConfig
) -> None:
    model = build(replace(config, mixer=mixer)).train()
    logits, loss = model(images(2, 3, 16, 16), torch.tensor([0, 6]))
    loss.backward()
    assert logits.shape == (2, 7)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (TWO, [(2, 8, 12, 8), (2, 16, 6, 4)]),
        (DEIT, [(2, 16, 6, 4)] * 3),
    ],
    ids=["one-a-stage", "one-a-block"],
)
def test_feature_maps_have_the_sizes_that_are_told(
    config: VisionModelConfig, shapes: list[tuple[int, ...]]
) -> None:
    model, x = build(config), images(2, 3, 24, 16)
    maps = model.feature_maps(x)
    assert [tuple(each.shape) for each in maps] == shapes
    for each, (channels, stride) in zip(maps, model.feature_sizes, strict=True):
        assert each.shape[1:] == (channels, 24 // stride, 16 // stride)
    (last,) = model.feature_maps(x, [len(maps) - 1])
    torch.testing.assert_close(last, maps[-1])


def test_the_last_feature_map_becomes_the_logits() -> None:
    model, x = build(), images(2, 3, 16, 16)
    pooled = model.norm(model.feature_maps(x)[-1].flatten(2).mT).mean(1)
    torch.testing.assert_close(model.head(pooled), model(x).logits)


def test_feature_maps_lie_over_the_image() -> None:
    """A patch that changes moves its own place of a map most: rows and columns are not mixed up."""
    model, x = build(), images(1, 3, 16, 24)
    changed = x.clone()
    changed[:, :, 4:6, 18:20] += 1  # the patch in row 2 and column 9
    difference = (model.feature_maps(changed)[0] - model.feature_maps(x)[0]).abs().sum(1)[0]
    assert divmod(int(difference.argmax()), 12) == (2, 9)


@pytest.mark.parametrize("config", [TWO, DEIT], ids=["stages", "deit"])
def test_a_resized_model_gives_what_interpolation_on_the_fly_gives(
    config: VisionModelConfig,
) -> None:
    model, x = build(config), images(2, 3, 24, 32)
    expected = model(x).logits
    model.resize((24, 32))
    assert model.grid == (24 // config.patch_size, 32 // config.patch_size)
    torch.testing.assert_close(model(x).logits, expected)


def test_positions_keep_their_place_when_the_grid_grows() -> None:
    rows = torch.arange(4.0).repeat_interleave(6)
    columns = torch.arange(6.0).repeat(4)
    table = torch.cat((torch.tensor([[7.0, 9.0]]), torch.stack((rows, columns), 1)))
    grown = resize_positions(table, (4, 6), (8, 12))
    assert grown.shape == (97, 2)
    assert grown[0].tolist() == [7.0, 9.0]
    grid = grown[1:].unflatten(0, (8, 12))
    inner = grid[3:5, 4:8]  # away from the edge, where bicubic interpolation bends
    torch.testing.assert_close(inner[..., 0], torch.tensor([1.25, 1.75])[:, None].expand(2, 4))
    torch.testing.assert_close(
        inner[..., 1], torch.tensor([1.75, 2.25, 2.75, 3.25])[None].expand(2, 4)
    )


def test_checkpointing_changes_no_gradient() -> None:
    x, gradients = images(2, 3, 16, 16), []
    for checkpointing in (False, True):
        model = build(replace(TWO, drop_path=0.5)).train()
        model.checkpointing = checkpointing
        torch.manual_seed(2)
        model(x).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_distribution_over_the_classes_is_a_label() -> None:
    model, x = build(), images(2, 3, 16, 16)
    labels = torch.tensor([3, 5])
    exact = model(x, labels).loss
    torch.testing.assert_close(model(x, nn.functional.one_hot(labels, 7).double()).loss, exact)


def test_blocks_are_dropped_more_the_later_they_come() -> None:
    model = build(replace(TWO, drop_path=0.2))
    rates = [m.probability for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_without_a_head_the_pooled_features_come_out() -> None:
    model = build()
    model.reset_head(0)
    assert model(images(1, 3, 16, 16)).logits.shape == (1, 16)
    model.reset_head(3)
    assert model(images(1, 3, 16, 16)).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(image_size=18), r"image_size must be a multiple of 4 .*got 18"),
        (lambda: build()(images(1, 1, 16, 16)), r"images \[b, 3, height, width\], got \(1, 1"),
        (lambda: build()(images(1, 3, 18, 16)), "multiples of 4, got 18 × 16"),
        (lambda: build()(images(1, 3, 0, 16)), "multiples of 4, got 0 × 16"),
        (lambda: build().feature_maps(images(1, 3, 16, 16), [2]), r"from 0 to 1, got \[2\]"),
        (lambda: build(channels=0), "channels of at least 1"),
        (lambda: replace(TWO, depths=(1,)), "one entry for each stage"),
        (lambda: replace(TWO, depths=(1, 0)), r"depths must be at least 1, got \(1, 0\)"),
        (lambda: replace(TWO, drop_path=1.0), r"drop_path must be in \[0, 1\), got 1.0"),
        (lambda: replace(TWO, pooling="cls"), "one stage, got 2"),
        (lambda: replace(TWO, pooling="max"), "one of mean, cls, got 'max'"),
        (lambda: build(replace(TWO, mixer="flo")), "unknown mixer 'flo'"),
    ],
)
@pytest.mark.usefixtures("shape_checks_off")
def test_what_means_nothing_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_published_sequence_lengths() -> None:
    with torch.device("meta"):
        model = VisionClassifier(VISION_PRESETS["hierarchical"], num_classes=1000)
    maps = [224 // size.stride for size in model.feature_sizes]
    assert [side * side for side in maps] == [3136, 784, 196, 49]
