"""`timm.create_model` makes the image models; what timm's own tests leave open is shown here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import group_parameters
from torch import Tensor

import flowformer.integrations.timm  # noqa: F401 - registers the models
from flowformer.data.images.transforms import ImagePreprocessing
from flowformer.models.images.config import VisionModelConfig
from flowformer.models.images.model import VisionClassifier
from flowformer.train.folder import RunFolder
from flowformer.train.images.config import ImagesRecord
from tests.train.small_images import tiny_vision

STAGES = VisionModelConfig(
    patch_size=2, dims=(8, 16), depths=(1, 2), num_heads=(2, 2), layer_scale=0.5, drop_path=0.0
)
DEIT = VisionModelConfig(
    patch_size=4, dims=(16,), depths=(3,), num_heads=(4,), layer_scale=None, pooling="cls"
)
NAMES = {"flowformer_hierarchical": STAGES, "flowformer_deit_tiny": DEIT}


def create(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(1)
    settings = {"config": NAMES[name.replace("gated_", "")], "img_size": 16, "num_classes": 7}
    return timm.create_model(name, **(settings | kwargs)).eval()


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


def test_all_models_are_listed() -> None:
    expected = {"hierarchical", "deit_tiny", "deit_small", "deit_base"}
    expected |= {f"gated_{name}" for name in expected}
    assert set(timm.list_models("flowformer_*")) == {f"flowformer_{name}" for name in expected}


@pytest.mark.parametrize("name", list(NAMES))
def test_gated_models_differ_in_their_mixer_alone(name: str) -> None:
    gated = name.replace("flowformer_", "flowformer_gated_")
    model = create(gated)
    assert model.model.config == replace(NAMES[name], mixer="gated")
    images = torch.randn(2, 3, 16, 16)
    plain = create(name, mixer="gated")
    assert model(images).equal(plain(images))
    model(images).sum().backward()
    assert all(each.grad is not None for each in model.parameters())
    assert create(gated, mixer="flow").model.config.mixer == "flow"


def test_the_data_are_described() -> None:
    model = create("flowformer_hierarchical")
    data = resolve_model_data_config(model)
    assert data["input_size"] == (3, 224, 224)
    assert (data["interpolation"], data["crop_pct"]) == ("bicubic", 224 / 256)


def test_evaluation_is_as_that_of_a_run() -> None:
    transform = create_transform(**resolve_model_data_config(create("flowformer_hierarchical")))
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (260, 300, 3), dtype=np.uint8)
    )
    expected = ImagePreprocessing.for_photographs(224).apply(image)
    torch.testing.assert_close(transform(image), expected)  # pyright: ignore[reportCallIssue]


def test_the_logits_are_those_of_the_model(name: str) -> None:
    model, images = create(name), torch.randn(2, 3, 16, 16)
    expected = model.model(images).logits
    torch.testing.assert_close(model(images), expected)
    features = model.forward_features(images)
    torch.testing.assert_close(model.forward_head(features), expected)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(model.get_classifier()(pooled), expected)


def test_features_only_gives_the_maps_that_are_told(name: str) -> None:
    images = torch.randn(2, 3, 24, 16)
    backbone = create(name, features_only=True)
    maps = backbone(images)
    assert len(maps) == {"flowformer_hierarchical": 2, "flowformer_deit_tiny": 3}[name]
    for each, channels, stride in zip(
        maps, backbone.feature_info.channels(), backbone.feature_info.reduction(), strict=True
    ):
        assert each.shape == (2, channels, 24 // stride, 16 // stride)
    torch.testing.assert_close(maps, create(name).model.feature_maps(images))


def test_chosen_features_need_nothing_after_them(name: str) -> None:
    images = torch.randn(2, 3, 16, 16)
    backbone, whole = create(name, features_only=True, out_indices=[0]), create(name)
    (first,) = backbone(images)
    torch.testing.assert_close(first, whole.model.feature_maps(images, [0])[0])
    backbone(images)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_normalised_intermediates_end_in_the_features(name: str) -> None:
    model, images = create(name), torch.randn(2, 3, 16, 16)
    features, maps = model.forward_intermediates(images, norm=True)
    tokens = features if features.ndim == 3 else features.flatten(2).mT
    patches = tokens[:, -maps[-1][0, 0].numel() :]
    torch.testing.assert_close(maps[-1].flatten(2).mT, patches)


def test_any_mixer_goes_in(name: str) -> None:
    model = create(name, mixer="mobile", mixer_options={"clamp": None})
    assert model.model.config.mixer == "mobile"
    assert model.model.config.mixer_options == {"clamp": None}
    assert create(name, drop_path_rate=0.3).model.config.drop_path == 0.3


def test_dropout_is_that_of_the_configuration_unless_told(name: str) -> None:
    config = replace(NAMES[name], dropout=0.25)
    assert create(name, config=config).model.config.dropout == 0.25
    assert create(name, config=config, drop_rate=0.5).model.config.dropout == 0.5


def test_layers_are_ordered_for_a_falling_learning_rate() -> None:
    model = create("flowformer_hierarchical")
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    order = [
        "model.positions",
        "model.stages.0.0.norm1.weight",
        "model.downsamples.1.weight",
        "model.stages.1.0.norm1.weight",
        "model.stages.1.1.norm1.weight",
    ]
    numbers = [groups[name] for name in order]
    assert numbers == sorted(set(numbers))
    assert groups["model.downsamples.0.weight"] == groups["model.positions"]


@pytest.mark.parametrize("size", [64, 96], ids=["same-size", "larger"])
def test_published_parameters_are_read(golden, tmp_path, size: int) -> None:
    values: dict[str, Tensor] = golden("models/vision")
    state = {n.removeprefix("param."): v for n, v in values.items() if n.startswith("param.")}
    torch.save({"model": state}, tmp_path / "best.pth")
    config = VisionModelConfig(dims=(12, 24, 36, 48), depths=(1, 2, 1, 1))
    model = timm.create_model(
        "flowformer_hierarchical",
        config=config,
        img_size=size,
        num_classes=7,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "best.pth"), "num_classes": 7},
    ).eval()
    expected = VisionClassifier(config, image_size=64, num_classes=7).eval()
    expected.load_published_state_dict(state)
    expected.resize(size)
    images = torch.randn(1, 3, size, size)
    torch.testing.assert_close(model(images), expected(images).logits)


def body(name: str, *, size: int | tuple[int, int] = 16, **kwargs: int) -> VisionClassifier:
    torch.manual_seed(2)
    return VisionClassifier(NAMES[name], image_size=size, **({"num_classes": 7} | kwargs)).eval()


@pytest.fixture(params=["a run", "a model of timm's", "a checkpoint of timm's training"])
def saved(request, tmp_path: Path):
    """Saves a model as one of these does, and returns what names the file."""

    def save(model: VisionClassifier) -> dict[str, Any]:
        state, path = model.state_dict(), tmp_path / "weights.safetensors"
        if request.param != "a run":
            state = {f"model.{name}": value for name, value in state.items()}
        if request.param == "a checkpoint of timm's training":
            path = tmp_path / "checkpoint.pth"
            torch.save({"state_dict": state, "epoch": 3}, path)
        else:
            save_file(state, path)
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}

    return save


@pytest.mark.parametrize("size", [16, 24])
def test_our_own_parameters_are_read_at_any_size(name: str, saved: Any, size: int) -> None:
    expected = body(name)
    model = create(name, img_size=size, **saved(expected))
    images = torch.randn(2, 3, size, size)
    expected.resize(size)
    torch.testing.assert_close(model(images), expected(images).logits)


def test_a_head_of_other_classes_and_other_channels_are_adapted_by_timm(saved: Any) -> None:
    trained = body("flowformer_deit_tiny", channels=1, num_classes=3)
    model = create("flowformer_deit_tiny", in_chans=3, **saved(trained))
    assert model.get_classifier().weight.shape == (7, 16)
    stem = trained.state_dict()["downsamples.0.weight"]
    expected = stem.expand(-1, 3, -1, -1) / 3
    torch.testing.assert_close(model.state_dict()["model.downsamples.0.weight"], expected)
    torch.testing.assert_close(model.model.stages.state_dict(), trained.stages.state_dict())


def test_an_oblong_model_reads_what_it_saved(tmp_path: Path) -> None:
    first = create("flowformer_hierarchical", img_size=(8, 32))
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors")}
    settings = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    again = create("flowformer_hierarchical", img_size=(8, 32), **settings)
    torch.testing.assert_close(again.state_dict(), first.state_dict())
    first.set_input_size((8, 16))
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="expected positions of a square image"):
        create("flowformer_hierarchical", img_size=(8, 32), **settings)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: {f"net.{name}": value for name, value in state.items()},
        lambda state: state | {"more": torch.zeros(1)},
        lambda state: {n: value for n, value in state.items() if not n.endswith("linear1.bias")},
        lambda state: {n: value for n, value in state.items() if not n.startswith("downs")},
        lambda state: state | {"norm.weight": torch.zeros(3)},
    ],
    ids=["all-others", "one-more", "some-less", "no-first-layer", "another-shape"],
)
@pytest.mark.parametrize("num_classes", [3, 7])
def test_parameters_of_another_model_are_refused(
    name: str, tmp_path: Path, num_classes: int, spoil: Any
) -> None:
    torch.save(spoil(body(name).state_dict()), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not the parameters of an image model of this"):
        create(
            name,
            num_classes=num_classes,
            pretrained=True,
            pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")},
        )


def test_weights_of_a_run_with_another_mixer_are_refused(tmp_path: Path) -> None:
    name, run = "flowformer_deit_tiny", RunFolder(tmp_path)
    trained = replace(tiny_vision(tmp_path), model=replace(NAMES[name], mixer="softmax"))
    ImagesRecord(
        recipe="tiny", config=trained, versions={}, classes=tuple("abcdefg"), channels=3, sizes={}
    ).write(run)
    save_file(
        VisionClassifier(trained.model, image_size=16, num_classes=7).state_dict(), run.weights
    )
    settings = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(run.weights)}}
    with pytest.raises(ValueError, match="mixer is 'softmax' there and 'flow' here"):
        create(name, **settings)
    assert create(name, config=trained.model, **settings).model.config.mixer == "softmax"


PLAIN = {"gain": None, "norm": False, "directions": 0.0}


def test_a_gated_model_goes_on_from_weights_of_flow_attention(name: str, saved: Any) -> None:
    """Without gain, norm and directions it computes what the trained one does."""
    trained = body(name)
    gated = name.replace("flowformer_", "flowformer_gated_")
    settings = {"mixer": "flow-gated", **saved(trained)}
    with pytest.warns(UserWarning, match="none of the parts of 'flow-gated'"):
        model = create(gated, mixer_options=PLAIN, **settings)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images), trained(images).logits)
    settings["mixer"] = "gated"
    with pytest.warns(UserWarning, match="none of the parts of 'gated'"):
        model = create(gated, **settings)
    own = {n: value for n, value in model.model.state_dict().items() if ".attention." not in n}
    torch.testing.assert_close(own, dict(trained.state_dict()))
    model(images).sum().backward()
    assert all(each.grad is not None for each in model.parameters())


def test_a_gated_model_goes_on_from_a_run_and_from_the_published_weights(golden, tmp_path) -> None:
    name, run = "flowformer_deit_tiny", RunFolder(tmp_path)
    trained = replace(tiny_vision(tmp_path), model=NAMES[name])
    ImagesRecord(
        recipe="tiny", config=trained, versions={}, classes=tuple("abcdefg"), channels=3, sizes={}
    ).write(run)
    model: Any = VisionClassifier(trained.model, image_size=16, num_classes=7)
    save_file(model.state_dict(), run.weights)
    settings = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(run.weights)}}
    with pytest.warns(UserWarning, match="none of the parts of 'gated'"):
        found = create("flowformer_gated_deit_tiny", **settings)
    assert found.model.head.weight.equal(model.head.weight)
    with pytest.raises(ValueError, match=r"num_heads is \(4,\) there and \(2,\) here"):
        create(
            "flowformer_gated_deit_tiny", config=replace(NAMES[name], num_heads=(2,)), **settings
        )

    values: dict[str, Tensor] = golden("models/vision")
    state = {n.removeprefix("param."): v for n, v in values.items() if n.startswith("param.")}
    config = VisionModelConfig(dims=(12, 24, 36, 48), depths=(1, 2, 1, 1), mixer="gated")
    published: Any = VisionClassifier(config, image_size=64, num_classes=7)
    published.load_published_state_dict(state)
    assert published.head.weight.equal(state["head.weight"])


def test_parameters_without_a_head_are_read_and_the_new_head_is_told(tmp_path: Path) -> None:
    state = body("flowformer_deit_tiny", num_classes=0).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    settings = {"file": str(tmp_path / "weights.pth")}
    with pytest.warns(UserWarning, match="has no head: that of the model, for 7 classes, is new"):
        create("flowformer_deit_tiny", pretrained=True, pretrained_cfg_overlay=settings)
    bare = {"num_classes": 0, "pretrained": True, "pretrained_cfg_overlay": settings}
    torch.testing.assert_close(create("flowformer_deit_tiny", **bare).model.state_dict(), state)


def test_unknown_poolings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"global_pool must be .* got 'max'"):
        create(name, global_pool="max")
