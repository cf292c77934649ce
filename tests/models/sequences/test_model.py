"""The Long Range Arena's models: as published, and exact under padding."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.config_json import from_plain, to_plain
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import PairClassifier, SequenceClassifier
from flowformer.nn import MIXERS, build_mixer
from tests.models.sequences.cases import (
    BIDIRECTIONAL,
    SMALL,
    build,
    build_pair,
    features,
    gradients,
    loss_of,
    padded,
    tokens,
)

IMAGE = SequenceModelConfig(
    mixer="flow-heads",
    dim=128,
    num_heads=4,
    feedforward=128,
    qkv_dim=64,
    dropout=0.3,
    positions="learned",
)
WINDOWED = {
    "local": {"window": 4},
    "longformer": {"window": 4},
    "sparse": {"stride": 4, "summary": 1},
    "bigbird": {"block": 4},
    "sinkhorn": {"block": 4},
    "reformer": {"num_buckets": 4, "chunk": 4},
}


def published_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The equations of the published long-range-arena code, of heads [b, t, h, d]."""
    q, k, eps, sources = q.relu() + 1e-6, k.relu() + 1e-6, 1e-6, k.shape[1]
    incoming = 1 / torch.einsum("nlhd,nhd->nlh", q + eps, k.sum(1) + eps)
    outgoing = 1 / torch.einsum("nshd,nhd->nsh", k + eps, q.sum(1) + eps)
    sink = torch.einsum("nlhd,nhd->nlh", q + eps, (k * outgoing[..., None]).sum(1) + eps)
    source = torch.einsum("nshd,nhd->nsh", k + eps, (q * incoming[..., None]).sum(1) + eps)
    competition = source.softmax(-1) * sources
    key_value = torch.einsum("nshd,nshm->nhdm", k, v * competition[..., None])
    out = torch.einsum("nlhd,nhdm->nlhm", q, key_value)
    return out * (incoming * (sink * q.shape[1] / sources).sigmoid())[..., None]


def published_logits(state: dict[str, Tensor], ids: Tensor, heads: int) -> Tensor:
    """The published classifier written out: one block, learned positions, a CLS vector."""

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = state[f"encoder.{name}.weight"], state[f"encoder.{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    def dense(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    x = state["encoder.embedding.weight"][ids]
    x = torch.cat((state["encoder.cls"].expand(len(x), 1, -1), x), dim=1)
    x = x + state["encoder.positions.weight"][: x.shape[1]]
    y = norm(x, "blocks.0.norm1")
    q, k, v = (
        dense(y, f"encoder.blocks.0.mixer.{name}_projection").unflatten(-1, (heads, -1))
        for name in ("query", "key", "value")
    )
    mixed = published_attention(q, k, v).flatten(2)
    x = x + dense(mixed, "encoder.blocks.0.mixer.out_projection")
    y = dense(norm(x, "blocks.0.norm2"), "encoder.blocks.0.linear1")
    x = x + dense(F.gelu(y, approximate="tanh"), "encoder.blocks.0.linear2")
    return dense(dense(norm(x, "norm")[:, 0], "head.0").relu(), "head.2")


class TestPublishedForm:
    def test_competing_heads_are_the_published_attention(self, golden) -> None:
        values = golden("attention/lra-b2-l40-s40-h4-d8")
        attention = build_mixer("flow-heads", 32, 4).attention
        out, _ = attention(values["q"], values["k"], values["v"])
        assert (out - values["out"]).abs().max() <= 1e-9 * values["out"].abs().max()
        written_out = published_attention(values["q"], values["k"], values["v"])
        torch.testing.assert_close(written_out, values["out"], rtol=1e-9, atol=1e-12)

    def test_the_model_is_the_published_one_written_out(self) -> None:
        model = build(num_layers=1, positions="learned", mixer="flow-heads", pooling="cls")
        for parameter in model.parameters():  # zeros and ones would hide a mistake
            nn.init.normal_(parameter, std=0.5)
        ids = tokens(3, 17)
        expected = published_logits(model.state_dict(), ids, heads=4)
        torch.testing.assert_close(model(ids).logits, expected)

    def test_a_mask_of_ones_lets_padding_take_part_as_published(self) -> None:
        model = build(num_layers=1, positions="learned", mixer="flow-heads")
        ids = padded(tokens(2, 9), 17, 0)
        expected = published_logits(model.state_dict(), ids, heads=4)
        logits, _ = model(ids, torch.ones_like(ids, dtype=torch.bool))
        torch.testing.assert_close(logits, expected)
        assert not torch.isclose(model(ids).logits, expected, rtol=1e-4).all()

    @pytest.mark.parametrize("pooling", ["cls", "mean"])
    def test_published_padding_fills_every_sequence_up_and_takes_part(self, pooling: str) -> None:
        masked = build(pooling=pooling)
        filled = build(pooling=pooling, padding="published")
        ids = tokens(2, 9)
        longest = padded(ids, 21, 0)
        expected = masked(longest, torch.ones_like(longest, dtype=torch.bool)).logits
        torch.testing.assert_close(filled(ids).logits, expected)
        torch.testing.assert_close(filled(padded(ids, 13, 0)).logits, expected)
        assert not torch.isclose(masked(ids).logits, expected, rtol=1e-4).all()

    def test_published_padding_of_features_is_zeros(self) -> None:
        masked, filled = build(None, 5), build(None, 5, padding="published")
        inputs = features(2, 9, 5)
        expected = masked(padded(inputs, 21, 0.0)).logits
        torch.testing.assert_close(filled(inputs).logits, expected)

    def test_the_size_is_that_of_the_published_image_model(self) -> None:
        model = SequenceClassifier(IMAGE, vocab_size=256, num_classes=10, max_length=1024)
        embeddings = 256 * 128 + 128 + 1025 * 128  # of tokens, of CLS, of places
        attention = 3 * 128 * 64 + 64 * 128
        feedforward = (128 * 128 + 128) * 2
        norms = 3 * 2 * 128
        head = (128 * 128 + 128) + (128 * 10 + 10)
        expected = embeddings + attention + feedforward + norms + head
        assert sum(parameter.numel() for parameter in model.parameters()) == expected

    def test_the_size_is_that_of_the_published_retrieval_model(self) -> None:
        config = SequenceModelConfig(
            dim=128, num_layers=4, feedforward=512, pooling="first", interaction="concat"
        )
        model = PairClassifier(config, vocab_size=257, max_length=4000)
        block = 4 * 128 * 128 + (128 * 512 + 512) + (512 * 128 + 128) + 2 * 2 * 128
        head = (256 * 512 + 512) + (512 * 256 + 256) + (256 * 2 + 2)
        expected = 257 * 128 + 4 * block + 2 * 128 + head
        assert sum(parameter.numel() for parameter in model.parameters()) == expected

    def test_layers_are_drawn_as_published(self) -> None:
        torch.manual_seed(3)
        model = SequenceClassifier(IMAGE, vocab_size=256, num_classes=10, max_length=1024)
        state = model.state_dict()
        for name, deviation in {
            "encoder.embedding.weight": 1.0,
            "encoder.positions.weight": 0.02,
            "encoder.blocks.0.mixer.key_projection.weight": (2 / (128 + 64)) ** 0.5,
            "encoder.blocks.0.linear1.weight": (2 / (128 + 128)) ** 0.5,
            "head.0.weight": 128**-0.5,
        }.items():
            assert state[name].std().item() == pytest.approx(deviation, rel=0.03), name
        assert not state["encoder.cls"].any()
        assert all(not value.any() for name, value in state.items() if name.endswith("bias"))
        assert "encoder.blocks.0.mixer.key_projection.bias" not in state

    def test_none_means_the_equations_of_the_paper(self) -> None:
        explicit = {"clamp": None, "competition": "sources", "feature_map": "sigmoid"}
        expected = build(mixer_options=explicit)(tokens(2, 9)).logits
        torch.testing.assert_close(build()(tokens(2, 9)).logits, expected)
        published = build(mixer="flow-heads")(tokens(2, 9)).logits
        assert not torch.isclose(published, expected, rtol=1e-3).all()


@pytest.mark.parametrize("pooling", ["cls", "mean", "first"])
@pytest.mark.parametrize("kind", ["tokens", "features"])
def test_neither_content_nor_amount_of_padding_changes_the_logits(kind: str, pooling: str) -> None:
    model = build(pooling=pooling) if kind == "tokens" else build(None, 5, pooling=pooling)
    inputs = tokens(2, 9) if kind == "tokens" else features(2, 9, 5)
    expected = model(inputs).logits
    contents = (0, -100, 10**6) if kind == "tokens" else (0.0, 1e6, float("nan"))
    for length in (9, 10, 21):
        mask = torch.arange(length).expand(2, length) < 9
        for content in contents:
            output = model(padded(inputs, length, content), mask, torch.tensor([2, 0]))
            torch.testing.assert_close(output.logits, expected)
            model.zero_grad()
            loss_of(output).backward()
            assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("mixer", BIDIRECTIONAL)
def test_with_every_mixer_padding_is_exact_and_every_parameter_learns(mixer: str) -> None:
    # The mean reads all places: of longformer's last layer CLS reads its global projections alone.
    model = build(mixer=mixer, mixer_options=WINDOWED.get(mixer, {}), pooling="mean")
    ids = tokens(2, 9)
    torch.testing.assert_close(model(padded(ids, 21, 0)).logits, model(ids).logits)
    loss_of(model(tokens(8, 21), labels=tokens(8) % 3)).backward()
    dead = [name for name, gradient in gradients(model).items() if not gradient.any()]
    assert dead == []


def test_rows_of_different_lengths_are_as_each_alone() -> None:
    model, ids = build(), tokens(3, 14)
    for row, length in enumerate((14, 6, 1)):
        ids[row, length:] = 0
    together = model(ids).logits
    for row, length in enumerate((14, 6, 1)):
        torch.testing.assert_close(together[row], model(ids[row : row + 1, :length]).logits[0])


@pytest.mark.parametrize("pooling", ["cls", "mean", "first"])
def test_a_row_of_padding_alone_is_an_empty_sequence(pooling: str) -> None:
    model = build(pooling=pooling)
    ids = torch.stack((tokens(7), torch.zeros(7, dtype=torch.long)))
    output = model(ids, labels=torch.tensor([0, 1]))
    loss_of(output).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    torch.testing.assert_close(output.logits[0], model(ids[:1]).logits[0])
    torch.testing.assert_close(output.logits[1], model(ids[1:, :2]).logits[0])


def test_poolings_read_what_they_say() -> None:
    hidden = {}

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        hidden["norm"] = output

    ids = padded(tokens(2, 9), 12, 0)
    for pooling, read in {
        "cls": lambda x: x[:, 0],
        "mean": lambda x: x[:, :9].mean(1),
        "first": lambda x: x[:, 0],
    }.items():
        encoder = build(pooling=pooling).encoder
        encoder.norm.register_forward_hook(keep)
        pooled = encoder(ids)
        torch.testing.assert_close(pooled, read(hidden["norm"]))
        assert hidden["norm"].shape[1] == (13 if pooling == "cls" else 12)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "learned"},
        {"positions": "none"},
        {"norm": "post"},
        {"pooling": "mean"},
        {"qkv_dim": None},
        {"classifier_dim": 7},
        {"mixer_options": {"bias": True}},
        {"num_layers": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_setting_changes_the_function_and_trains(changes: dict[str, Any]) -> None:
    model, ids = build(**changes), tokens(4, 21)
    output = model(ids, labels=torch.tensor([0, 1, 2, 0]))
    loss_of(output).backward()
    assert all(gradient.any() for gradient in gradients(model).values())
    assert not torch.isclose(output.logits, build()(ids).logits, rtol=1e-4).all()


def test_the_width_of_queries_keys_and_values_is_its_own() -> None:
    model = build(qkv_dim=8)
    assert model.get_parameter("encoder.blocks.0.mixer.query_projection.weight").shape == (8, 16)
    assert model.get_parameter("encoder.blocks.0.mixer.out_projection.weight").shape == (16, 8)


@pytest.mark.parametrize("length", [1, 20, 21], ids="t{}".format)
def test_any_length_up_to_the_longest_is_classified(length: int) -> None:
    assert build()(tokens(2, length)).logits.shape == (2, 3)
    logits, loss = build(None, 5)(features(2, length, 5))
    assert logits.shape == (2, 3)
    assert loss is None


def test_loss_is_the_mean_cross_entropy() -> None:
    labels = torch.tensor([0, 2, 1])
    for output in (
        build()(tokens(3, 21), labels=labels),
        build_pair()(tokens(3, 21), tokens(3, 5), labels=labels % 2),
    ):
        rows = labels if output.logits.shape[1] == 3 else labels % 2
        expected = -output.logits.log_softmax(-1)[range(3), rows].mean()
        torch.testing.assert_close(output.loss, expected)


class TestPairs:
    @pytest.mark.parametrize("interaction", ["nli", "concat"])
    @pytest.mark.parametrize("pooling", ["cls", "mean", "first"])
    def test_padding_of_either_document_changes_nothing(
        self, pooling: str, interaction: str
    ) -> None:
        model = build_pair(interaction=interaction, pooling=pooling)
        first, second = tokens(3, 9), tokens(3, 4)
        expected = model(first, second).logits
        longer = model(padded(first, 10, 0), padded(second, 21, 0)).logits
        torch.testing.assert_close(longer, expected)
        masks = (
            torch.arange(length).expand(3, length) < real for length, real in ((21, 9), (6, 4))
        )
        masked = model(padded(first, 21, -5), padded(second, 6, 99), *masks).logits
        torch.testing.assert_close(masked, expected)

    def test_swapping_documents_is_swapping_columns_of_the_classifier(self) -> None:
        model, other = build_pair(), build_pair()
        weight = other.get_parameter("head.0.weight")
        first, second, product, difference = weight.detach().clone().chunk(4, dim=1)
        with torch.no_grad():
            weight.copy_(torch.cat((second, first, product, -difference), dim=1))
        one, two = tokens(3, 9), tokens(3, 12)[:, 3:]
        torch.testing.assert_close(other(two, one).logits, model(one, two).logits)
        assert not torch.isclose(model(two, one).logits, model(one, two).logits, rtol=1e-4).all()

    def test_one_encoder_reads_both_and_every_parameter_learns(self) -> None:
        model = build_pair()
        single = build()
        single.encoder.load_state_dict(model.encoder.state_dict())
        one, two = tokens(3, 9), tokens(3, 12)[:, 3:]
        x, y = single.encoder(one), single.encoder(two)
        expected = model.head(torch.cat((x, y, x * y, x - y), dim=-1))
        output = model(one, two, labels=torch.tensor([0, 1, 1]))
        torch.testing.assert_close(output.logits, expected)
        loss_of(output).backward()
        assert all(gradient.any() for gradient in gradients(model).values())

    @pytest.mark.usefixtures("shape_checks_off")
    def test_an_unknown_interaction_is_refused(self) -> None:
        with pytest.raises(ValueError, match="interaction must be one of nli, concat, got 'sum'"):
            build_pair(interaction="sum")


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((tokens(1, 22),), r"1 to 21 places \(max_length\), got 22"),
        ((tokens(1, 0),), r"1 to 21 places \(max_length\), got 0"),
        ((torch.tensor([[1, 11]]),), "token 11 is outside the vocabulary: expected 0 to 10"),
        ((torch.tensor([[1, -1]]),), "token -1 is outside the vocabulary"),
        ((torch.tensor([[0, 1, 2]]),), "must begin at place 0.*pad at the right"),
        (
            (tokens(1, 9), torch.ones(1, 8).bool()),
            r"mask \[1, 9\] of bool.*got \[1, 8\]",
        ),
        ((tokens(1, 9), torch.ones(1, 9)), "of bool.*float32"),
        ((features(1, 9, 5),), r"expected tokens \[b, t\], integers, got \(1, 9, 5\)"),
    ],
    ids=["too-long", "empty", "high", "negative", "left", "mask-shape", "mask-dtype", "features"],
)
def test_inputs_that_mean_nothing_are_refused(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(*arguments)


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize("inputs", [tokens(1, 9), features(1, 9, 4)], ids=["tokens", "channels"])
def test_other_features_are_refused(inputs: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected features \[b, t, 5\], floating-point, got"):
        build(None, 5)(inputs)


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"qkv_dim": 0}, "qkv_dim must be at least 1, got 0"),
        ({"qkv_dim": 10}, "qkv_dim must be divisible by num_heads, got 10 and 4"),
        ({"classifier_dim": 0}, "classifier_dim must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"positions": "rotary"}, "positions must be one of learned, .*none, got 'rotary'"),
        ({"norm": "both"}, "norm must be one of pre, post, got 'both'"),
        ({"pooling": "max"}, "pooling must be one of cls, mean, first, got 'max'"),
        ({"mixer": "flows"}, "unknown mixer 'flows': did you mean flow"),
        ({"mixer_options": {"window": 3}}, "'flow' has no option window"),
        ({"dim": 18, "qkv_dim": None}, "dim must be divisible by num_heads"),
        ({"vocab_size": None}, "vocab_size .*or channels .*vocab_size=None and channels=None"),
        ({"channels": 3}, "one of them, got vocab_size=11 and channels=3"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_no_place_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        SequenceClassifier(SMALL, vocab_size=11, num_classes=3, max_length=0)


@pytest.mark.parametrize("mixer", sorted(MIXERS.keys() - set(BIDIRECTIONAL)))
def test_a_mixer_without_a_bidirectional_form_is_refused_at_once(mixer: str) -> None:
    with pytest.raises(NotImplementedError, match=r"no bidirectional form.*Mixers that can: flow"):
        build(mixer=mixer)


def test_a_configuration_survives_json() -> None:
    assert from_plain(SequenceModelConfig, to_plain(IMAGE)) == IMAGE
