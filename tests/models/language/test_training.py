"""A language model before and in training: presets, initial values, gradients, settings."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowformer.config_json import from_plain, to_plain
from flowformer.models.language.config import LANGUAGE_PRESETS, LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.nn import MIXERS, TransformerBlock

SMALL = LanguageModelConfig(dim=24, num_heads=3, num_layers=2, feedforward=40, max_length=64)
WIDE = replace(SMALL, dim=192, feedforward=384, positions="learned", tie_embeddings=False)


def build(config: LanguageModelConfig = SMALL, **changes: Any) -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(replace(config, **changes), vocab_size=500).double()


def gradients(model: LanguageModel, ids: Tensor, **call: Any) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    loss = model(ids, labels=ids, **call).loss
    assert loss is not None
    loss.backward()
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


def ids_of(*shape: int) -> Tensor:
    return torch.randint(500, shape, generator=torch.Generator().manual_seed(2))


class TestPresets:
    @pytest.mark.parametrize(
        ("name", "vocabulary", "length", "millions"),
        [
            # As published without the output layer (Radford et al. 2019; minGPT's table).
            ("openai-gpt", 40_478, 512, 116.536),
            ("gpt2", 50_257, 1024, 124.440),
            ("gpt2-medium", 50_257, 1024, 354.823),
            ("gpt2-large", 50_257, 1024, 774.030),
            ("gpt2-xl", 50_257, 1024, 1557.611),
        ],
    )
    def test_sizes_are_those_of_the_published_models(
        self, name: str, vocabulary: int, length: int, millions: float
    ) -> None:
        config = replace(LANGUAGE_PRESETS[name], max_length=length)
        with torch.device("meta"):
            model = LanguageModel(config, vocab_size=vocabulary)
        count = sum(p.numel() for name, p in model.named_parameters() if name != "head.weight")
        assert round(count / 1e6, 3) == millions

    def test_gpt2_has_to_the_last_parameter_what_it_had(self) -> None:
        config = replace(LANGUAGE_PRESETS["gpt2"], tie_embeddings=True)
        with torch.device("meta"):
            model = LanguageModel(config, vocab_size=50_257)
        assert sum(each.numel() for each in model.parameters()) == 124_439_808

    def test_the_model_of_the_paper_on_wikitext(self) -> None:
        # Six layers of 3,152,384 and one embedding of 267,744 tokens (a multiple of 8).
        with torch.device("meta"):
            model = LanguageModel(LANGUAGE_PRESETS["wikitext-103"], vocab_size=267_744)
        count = sum(each.numel() for each in model.parameters())
        assert count == 267_744 * 512 + 6 * 3_152_384 + 2 * 512

    @pytest.mark.parametrize("name", ["gpt-nano", "gpt-micro", "gpt-mini", "gopher-44m"])
    def test_small_presets_run(self, name: str) -> None:
        model = LanguageModel(LANGUAGE_PRESETS[name], vocab_size=31)
        logits = model(torch.randint(31, (1, 5))).logits
        assert logits is not None
        assert logits.shape == (1, 5, 31)

    @pytest.mark.parametrize("name", LANGUAGE_PRESETS)
    def test_presets_go_through_json(self, name: str) -> None:
        config = LANGUAGE_PRESETS[name]
        assert from_plain(LanguageModelConfig, to_plain(config)) == config


class TestInitialization:
    def test_gpt2_draws_with_two_hundredths_and_less_onto_the_residual_stream(self) -> None:
        model = build(WIDE, initialization="gpt2")
        for name, parameter in model.named_parameters():
            if "norm" in name:
                assert parameter.eq(0.0 if name.endswith("bias") else 1.0).all(), name
            elif name.endswith("bias"):
                assert not parameter.any(), name
            else:
                residual = name.endswith(("out_projection.weight", "linear2.weight"))
                std = 0.02 / 4**0.5 if residual else 0.02
                assert parameter.std().item() == pytest.approx(std, rel=0.05), name
                assert abs(parameter.mean().item()) < 5 * std / parameter.numel() ** 0.5, name

    def test_fairseq_draws_embeddings_by_width_and_projections_after_xavier(self) -> None:
        model = build(WIDE, initialization="fairseq")
        xavier = (2 / (192 + 192)) ** 0.5
        expected = {
            "embedding.weight": 192**-0.5,
            "head.weight": 192**-0.5,
            "blocks.1.mixer.query_projection.weight": xavier / 2**0.5,
            "blocks.1.mixer.key_projection.weight": xavier / 2**0.5,
            "blocks.1.mixer.value_projection.weight": xavier / 2**0.5,
            "blocks.1.mixer.out_projection.weight": xavier,
            "blocks.1.linear1.weight": (1 / (3 * 192)) ** 0.5,
            "blocks.1.linear2.weight": (1 / (3 * 384)) ** 0.5,
        }
        for name, std in expected.items():
            assert model.get_parameter(name).std().item() == pytest.approx(std, rel=0.05), name
        assert not model.get_parameter("blocks.1.mixer.out_projection.bias").any()

    @pytest.mark.parametrize("kind", ["gpt2", "fairseq"])
    def test_a_seed_fixes_the_parameters_and_they_can_be_drawn_anew(self, kind: str) -> None:
        model, same = build(initialization=kind), build(initialization=kind)
        for one, other in zip(model.parameters(), same.parameters(), strict=True):
            assert one.equal(other)
        model.reset_parameters()
        assert not model.embedding.weight.equal(same.embedding.weight)

    @pytest.mark.parametrize("kind", ["gpt2", "fairseq"])
    def test_an_untrained_model_is_about_as_good_as_guessing(self, kind: str) -> None:
        ids = ids_of(4, 60)
        with torch.no_grad():
            loss = build(WIDE, initialization=kind).eval()(ids, labels=ids).loss
        guessing = torch.tensor(500.0).log().item()
        assert loss is not None
        # Logits of 1/√dim rows have deviation 1, which adds 1/2.
        assert loss.item() == pytest.approx(guessing + (0.5 if kind == "fairseq" else 0), abs=0.2)


class TestGradients:
    @pytest.mark.parametrize("mixer", ["flow", "softmax", "linear"])
    @pytest.mark.parametrize("return_logits", [True, False], ids=["logits", "chunked"])
    def test_checkpointing_changes_no_gradient(self, mixer: str, return_logits: bool) -> None:
        model = build(mixer=mixer, activation="swiglu", positions="rotary").train()
        ids = ids_of(2, 30)
        expected = gradients(model, ids)
        model.set_gradient_checkpointing(True)
        for one, other in zip(
            gradients(model, ids, return_logits=return_logits), expected, strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("enabled", "calls"), [(True, 2), (False, 1)])
    def test_checkpointing_computes_each_block_again(self, enabled: bool, calls: int) -> None:
        model, seen = build().train(), []
        model.set_gradient_checkpointing(enabled)
        model.get_submodule("blocks.0.linear1").register_forward_hook(lambda *_: seen.append(1))
        gradients(model, ids_of(2, 30))
        assert len(seen) == calls

    def test_checkpointing_leaves_evaluation_alone(self) -> None:
        model, seen = build().eval(), []
        model.set_gradient_checkpointing(True)
        model.get_submodule("blocks.0.linear1").register_forward_hook(lambda *_: seen.append(1))
        gradients(model, ids_of(2, 30))
        assert len(seen) == 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"positions": "learned"},
            {"normalization": "rms"},
            {"bias": False},
            {"tie_embeddings": False},
            {"scale_embeddings": True},
            {"dropout": 0.0},
            {"mixer": "gla"},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_gradients_reach_every_parameter(self, changes: dict[str, Any]) -> None:
        gradients(build(**changes).train(), ids_of(2, 64))

    def test_dropout_acts_in_training_only(self) -> None:
        model, ids = build(), ids_of(2, 30)
        assert not model.train()(ids)[0].equal(model(ids)[0])
        assert model.eval()(ids)[0].equal(model(ids)[0])


def test_tied_embeddings_are_one_parameter() -> None:
    tied, untied = build(), build(tie_embeddings=False)
    assert tied.output_weight is tied.embedding.weight
    assert untied.output_weight is not untied.embedding.weight
    assert set(untied.state_dict()) - set(tied.state_dict()) == {"head.weight"}
    assert sum(p.numel() for p in untied.parameters()) == 500 * 24 + sum(
        p.numel() for p in tied.parameters()
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_only_matrices_of_linear_layers_decay(tied: bool) -> None:
    model = build(tie_embeddings=tied, positions="learned", mixer="synthesizer")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, others = model.parameter_groups(0.1)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert len(decaying["params"]) + len(others["params"]) == len(names)
    decays = {names[id(parameter)] for parameter in decaying["params"]}
    assert "blocks.0.mixer.out_projection.weight" in decays
    assert "blocks.1.linear2.weight" in decays
    assert ("head.weight" in decays) is not tied
    for name in decays:
        assert isinstance(model.get_submodule(name.removesuffix(".weight")), nn.Linear)
    torch.optim.AdamW([decaying, others], lr=1e-3)


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize(
    ("positions", "masked", "backend"),
    [("learned", True, "aot_eager"), ("sinusoidal", False, "eager"), ("rotary", True, "eager")],
)
def test_the_model_compiles_without_a_graph_break(
    positions: str, masked: bool, backend: str
) -> None:
    torch.compiler.reset()
    model, ids = build(positions=positions).float().eval(), ids_of(2, 33)
    mask = torch.arange(33).expand(2, 33) >= torch.tensor([[0], [7]])
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    arguments = (ids, mask) if masked else (ids,)
    output, expected = compiled(*arguments, labels=ids), model(*arguments, labels=ids)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"positions": "alibi"}, "positions must be one of learned, .*none, got 'alibi'"),
        ({"normalization": "batch"}, "normalization must be one of layer, rms, got 'batch'"),
        ({"activation": "tanh"}, "activation must be one of gelu, .*swiglu, got 'tanh'"),
        ({"initialization": "zero"}, "initialization must be one of gpt2, fairseq, got 'zero'"),
        ({"mixer": "flows"}, "unknown mixer 'flows': did you mean flow"),
        ({"mixer": "softmax", "mixer_options": {"clamp": 1.0}}, "'softmax' has no option clamp"),
        ({"mixer": "gla", "positions": "rotary"}, "need an attention of query, key and value"),
        ({"dim": 9, "positions": "rotary"}, "head_dim must be even, got 3"),
        ({"dim": 25}, "dim must be divisible by num_heads"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_vocabulary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        LanguageModel(SMALL, vocab_size=0)


@pytest.mark.parametrize(
    "mixer", [name for name, kind in MIXERS.items() if not kind.capabilities.causal]
)
def test_a_mixer_without_a_causal_form_is_refused_at_once(mixer: str) -> None:
    with pytest.raises(NotImplementedError, match=r"no causal form.*Mixers that can: flow"):
        build(mixer=mixer)


def test_options_reach_the_mixer() -> None:
    model = build(mixer_options={"clamp": 5.0, "num_kv_heads": 1})
    block = model.blocks[0]
    assert isinstance(block, TransformerBlock)
    assert "clamp=5.0" in repr(block.mixer)
    assert model.get_parameter("blocks.0.mixer.key_projection.weight").shape == (8, 24)
