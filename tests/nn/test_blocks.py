"""The transformer block and the positional embeddings."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowformer.nn import FlowMixer, PositionalEmbedding, TransformerBlock, build_mixer
from flowformer.nn.blocks import DropPath
from flowformer.nn.positions import Positions


def block(**options) -> TransformerBlock:
    return TransformerBlock(FlowMixer(8, 2), 8, 16, **options).eval()


def test_post_norm_block_is_the_published_layer() -> None:
    layer, x = block(), torch.randn(2, 9, 8)
    y = layer.norm1(x + layer.mixer(x)[0])
    expected = layer.norm2(y + layer.linear2(F.gelu(layer.linear1(y))))
    torch.testing.assert_close(layer(x), expected)


def test_pre_norm_block_adds_to_its_input() -> None:
    layer, x = block(norm="pre", activation="relu"), torch.randn(2, 9, 8)
    y = x + layer.mixer(layer.norm1(x))[0]
    expected = y + layer.linear2(F.relu(layer.linear1(layer.norm2(y))))
    torch.testing.assert_close(layer(x), expected)


def test_a_block_returns_a_tensor_to_hooks_and_a_state_where_one_is_asked_for() -> None:
    layer, x, seen = block(), torch.randn(2, 9, 8), []
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    out, (again, state) = layer(x, causal=True), layer(x, causal=True, return_state=True)
    assert isinstance(out, torch.Tensor)  # what tools that look at layers (Grad-CAM) can read
    assert seen[0] is out
    assert out.equal(again)
    assert state is not None


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_streams_with_the_state_of_its_mixer(norm: str) -> None:
    layer, x = block(norm=norm).double(), torch.randn(2, 9, 8).double()
    whole = layer(x, causal=True)
    first, state = layer(x[:, :4], causal=True, return_state=True)
    second = layer(x[:, 4:], causal=True, state=state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_leaves_the_real_places_of_a_block_alone(norm: str) -> None:
    layer, x = block(norm=norm), torch.randn(1, 9, 8)
    mask = torch.arange(9)[None] < 6
    torch.testing.assert_close(layer(x, mask=mask)[:, :6], layer(x[:, :6]))


def test_dropout_acts_after_the_mixer_and_after_the_feed_forward() -> None:
    layer, x = block(norm="pre", dropout=1.0).train(), torch.randn(2, 9, 8)
    torch.testing.assert_close(layer(x), x)


def test_dropout_acts_inside_the_feed_forward() -> None:
    layer, hidden = block(dropout=0.5).train(), []
    layer.linear2.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    layer(torch.randn(2, 50, 8))
    assert 0.4 < (hidden[0] == 0).double().mean() < 0.6


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "sandwich"}, "'pre' or 'post'"),
        ({"activation": "tanh"}, "gelu, gelu-tanh, relu, swiglu"),
    ],
)
def test_unknown_names_list_the_choices(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block(**options)


def test_learned_places_start_uniform_within_two_hundredths() -> None:
    weight = PositionalEmbedding("learned", dim=64, max_length=100).weight
    assert isinstance(weight, nn.Parameter)
    assert 0.0199 < weight.abs().max() <= 0.02
    assert weight.std().item() == pytest.approx(0.04 / 12**0.5, rel=0.02)


@pytest.mark.parametrize("dim", [6, 7])
def test_sinusoidal_places_follow_the_formula(dim: int) -> None:
    embedding = PositionalEmbedding("sinusoidal", dim=dim, max_length=50)
    added = embedding(torch.zeros(1, 50, dim))[0]
    for place, feature in [(0, 0), (1, 1), (17, 2), (49, 5), (49, dim - 1)]:
        angle = torch.tensor(place / 10_000 ** (feature // 2 * 2 / dim))
        expected = angle.sin() if feature % 2 == 0 else angle.cos()
        torch.testing.assert_close(added[place, feature], expected)
    assert list(embedding.parameters()) == []
    assert embedding.state_dict() == {}


def test_a_sequence_longer_than_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="50 places, got a sequence of 51"):
        PositionalEmbedding("learned", dim=4, max_length=50)(torch.zeros(1, 51, 4))


@pytest.mark.usefixtures("shape_checks_off")
def test_unknown_kind_of_places_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="'sinusoidal' or 'sinusoidal-fairseq', got 'fixed'"):
        PositionalEmbedding("fixed", dim=4, max_length=50)  # type: ignore[arg-type] - the wrong name is what is tested


def test_swiglu_multiplies_by_a_gate() -> None:
    layer, x = block(norm="pre", activation="swiglu"), torch.randn(2, 9, 8)
    assert layer.gate is not None
    y = x + layer.mixer(layer.norm1(x))[0]
    z = layer.norm2(y)
    expected = y + layer.linear2(F.silu(layer.gate(z)) * layer.linear1(z))
    torch.testing.assert_close(layer(x), expected)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    layer, x = block(norm="pre", normalization="rms"), 3 * torch.randn(2, 9, 8) + 1
    assert isinstance(layer.norm1, nn.RMSNorm)
    expected = x / x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(layer.norm1(x), expected)


def test_a_block_without_biases_has_none() -> None:
    layer = TransformerBlock(FlowMixer(8, 2, bias=False), 8, 16, bias=False)
    assert [name for name, _ in layer.named_parameters() if "bias" in name] == []


def test_dropout_inside_the_feed_forward_can_be_another() -> None:
    layer, hidden = block(dropout=0.5, inner_dropout=0.0).train(), []
    layer.linear2.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    layer(torch.randn(2, 50, 8))
    assert hidden[0].all()


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "sinusoidal-fairseq"])
def test_given_places_choose_the_vectors(kind: Positions) -> None:
    embedding = PositionalEmbedding(kind, dim=6, max_length=50)
    table = embedding(torch.zeros(1, 50, 6))[0]
    places = torch.tensor([[3, 4, 5], [0, 0, 49]])
    torch.testing.assert_close(embedding(torch.zeros(2, 3, 6), places), table[places])


@pytest.mark.parametrize("kind", ["sinusoidal", "sinusoidal-fairseq"])
def test_sinusoidal_places_go_on_past_the_table(kind: Positions) -> None:
    short = PositionalEmbedding(kind, dim=6, max_length=5)
    long = PositionalEmbedding(kind, dim=6, max_length=50)
    x, places = torch.zeros(1, 50, 6), torch.tensor([[3, 49]])
    assert short(x).equal(long(x))
    assert short(x[:, :2], places).equal(long(x[:, :2], places))


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "sinusoidal-fairseq"])
@pytest.mark.parametrize("assign", [False, True], ids=["to-empty", "assign"])
def test_a_model_made_on_meta_has_its_places_when_its_state_dict_is_loaded(
    kind: Positions, assign: bool
) -> None:
    embedding = PositionalEmbedding(kind, dim=6, max_length=50)
    x = torch.zeros(1, 50, 6)
    with torch.device("meta"):
        other = nn.Sequential(PositionalEmbedding(kind, dim=6, max_length=50))
    if not assign:
        other.to_empty(device="cpu")
        other._apply(lambda tensor: torch.full_like(tensor, torch.nan))  # what memory may hold
    state = {f"0.{name}": each for name, each in embedding.state_dict().items()}
    other.load_state_dict(state, assign=assign)
    assert other(x).equal(embedding(x))
    assert other.to(torch.float64)(x.double()).equal(embedding(x).double())


@pytest.mark.parametrize("kind", ["sinusoidal", "sinusoidal-fairseq"])
def test_a_sinusoidal_table_left_on_another_device_is_computed_anew(kind: Positions) -> None:
    embedding = PositionalEmbedding(kind, dim=6, max_length=50)
    x, places = torch.zeros(2, 3, 6), torch.tensor([[3, 4, 5], [0, 0, 49]])
    expected = embedding(x), embedding(x, places)
    embedding.to("meta")
    assert embedding(x).equal(expected[0])
    assert embedding(x, places).equal(expected[1])


@pytest.mark.parametrize("kind", ["sinusoidal", "sinusoidal-fairseq"])
def test_a_sinusoidal_table_takes_the_precision_of_x_but_under_autocast(kind: Positions) -> None:
    """As a learned one is cast by mixed precision of FSDP, which casts no buffers."""
    embedding = PositionalEmbedding(kind, dim=6, max_length=5)
    x = torch.zeros(1, 9, 6, dtype=torch.bfloat16)
    for length in (5, 9):
        out = embedding(x[:, :length])
        assert out.dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            exact = embedding(x[:, :length])
        assert exact.dtype == torch.float32
        assert out.equal(exact.bfloat16())


def test_learned_places_outside_the_table_are_refused() -> None:
    embedding = PositionalEmbedding("learned", dim=4, max_length=50)
    with pytest.raises(ValueError, match="50 places, got a sequence of 51"):
        embedding(torch.zeros(1, 2, 4), torch.tensor([[3, 50]]))


@pytest.mark.parametrize("dim", [6, 7])
def test_fairseq_places_are_sines_then_cosines_from_place_two(dim: int) -> None:
    added = PositionalEmbedding("sinusoidal-fairseq", dim=dim, max_length=50)(
        torch.zeros(1, 50, dim)
    )[0]
    for place in (0, 17, 49):
        angles = (place + 2) / torch.tensor([1.0, 100.0, 10_000.0])
        expected = torch.cat((angles.sin(), angles.cos(), torch.zeros(dim - 6)))
        torch.testing.assert_close(added[place], expected)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("mixer", ["flow", "softmax", "linear", "performer"])
def test_a_block_can_be_checkpointed(mixer: str, causal: bool) -> None:
    layer = TransformerBlock(build_mixer(mixer, 8, 2), 8, 16)
    x = torch.randn(2, 9, 8)

    def gradients(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        loss = call(x, causal=causal).square().sum()
        return torch.autograd.grad(loss, list(layer.parameters()))

    again = gradients(partial(checkpoint, layer, use_reentrant=False))
    for one, other in zip(again, gradients(layer), strict=True):
        torch.testing.assert_close(one, other)


def test_layer_scale_is_a_factor_of_the_feed_forward_alone() -> None:
    layer, x = block(norm="pre", layer_scale=0.25), torch.randn(2, 9, 8)
    y = x + layer.mixer(layer.norm1(x))[0]
    expected = y + 0.25 * layer.linear2(F.gelu(layer.linear1(layer.norm2(y))))
    torch.testing.assert_close(layer(x), expected)


def test_dropped_paths_leave_whole_samples_out_and_keep_the_mean() -> None:
    x = torch.ones(4000, 3, 2)
    dropped = DropPath(0.25).train()(x)
    assert set(dropped.flatten(1).std(1).tolist()) == {0.0}  # a sample stays or goes as a whole
    stays = dropped[:, 0, 0] > 0
    torch.testing.assert_close(dropped[stays][0], torch.full((3, 2), 4 / 3))
    assert 0.73 < stays.double().mean() < 0.77


def test_paths_are_dropped_after_the_mixer_and_after_the_feed_forward() -> None:
    layer, x = block(norm="pre", drop_path=0.5).train(), torch.randn(64, 3, 8)
    after_mixer, after_both = x + 2 * layer.mixer(layer.norm1(x))[0], layer(x)
    feedforward = 2 * layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
    unchanged = (after_both == x).all(2).all(1).double().mean()
    mixed = torch.isclose(after_both, after_mixer, atol=1e-6).all(2).all(1).double().mean()
    fed = torch.isclose(after_both, x + feedforward, atol=1e-6).all(2).all(1).double().mean()
    assert min(unchanged, mixed, fed) > 0.1
    torch.testing.assert_close(layer.eval()(x), block_without_drops(layer)(x))


def block_without_drops(layer: TransformerBlock) -> TransformerBlock:
    plain = block(norm="pre")
    plain.load_state_dict(layer.state_dict())
    return plain


def test_norm_eps_is_that_of_both_norms() -> None:
    layer = block(norm_eps=1e-3)
    assert layer.norm1.eps == layer.norm2.eps == 1e-3


def test_a_probability_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"drop_path must be in \[0, 1\), got 1.0"):
        block(drop_path=1.0)
