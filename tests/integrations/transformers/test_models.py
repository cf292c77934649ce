"""The models under transformers' interface compute what our language model computes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithFlattening,
    DynamicCache,
)

from flowformer.integrations.transformers import (
    FlowformerCache,
    FlowformerConfig,
    FlowformerForCausalLM,
    FlowformerForSequenceClassification,
    FlowformerModel,
)
from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.nn.replace.transformers_owner import CACHE_NAMES
from tests.integrations.transformers.small import LEFT, PAD, RIGHT, TOKENS, cache_of, small

# One for each way in which the models differ: what is tied, drawn, placed and normalised.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "untied": {"tie_word_embeddings": False},
    "gpt": {"positions": "learned", "activation": "gelu-tanh", "tie_word_embeddings": False},
    "llama-like": {
        "positions": "rotary",
        "normalization": "rms",
        "activation": "swiglu",
        "bias": False,
    },
    "fairseq": {
        "positions": "sinusoidal-fairseq",
        "activation": "relu",
        "scale_embeddings": True,
        "initialization": "fairseq",
        "mixer_options": {"clamp": 5.0},
    },
    "none": {"positions": "none"},
    "softmax": {"mixer": "softmax"},
    "gla": {"mixer": "gla"},
    "gated": {"mixer": "gated"},
    "performer": {"mixer": "performer"},
    "synthesizer": {"mixer": "synthesizer"},
}

variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def causal(**changes: Any) -> FlowformerForCausalLM:
    return FlowformerForCausalLM(small(**changes)).double().eval()


@variants
def test_logits_and_loss_are_those_of_our_model(changes: dict[str, Any]) -> None:
    config = small(**changes)
    ours = LanguageModel(config.language_model_config(), vocab_size=config.vocab_size)
    ours = ours.double().eval()
    theirs = FlowformerForCausalLM.from_language_model(ours)
    out, expected = theirs(TOKENS, labels=TOKENS), ours(TOKENS, labels=TOKENS)
    torch.testing.assert_close(out.logits, expected.logits, rtol=0, atol=0)
    # transformers computes the loss in float32.
    torch.testing.assert_close(out.loss.double(), expected.loss, rtol=1e-6, atol=1e-6)
    for mask in (LEFT, RIGHT):
        out = theirs(TOKENS, attention_mask=mask)
        expected = ours(TOKENS, attention_mask=mask.bool())
        torch.testing.assert_close(out.logits, expected.logits, rtol=0, atol=0)
    again = theirs.to_language_model()(TOKENS).logits
    torch.testing.assert_close(again, ours(TOKENS).logits, rtol=0, atol=0)


@variants
def test_parameters_are_drawn_as_ours(changes: dict[str, Any]) -> None:
    config = small(**changes)
    layers = replace(config.language_model_config(), tie_embeddings=True)
    torch.manual_seed(1)
    ours = LanguageModel(layers, vocab_size=config.vocab_size)
    torch.manual_seed(1)
    theirs = FlowformerModel(config).backbone
    drawn = dict(ours.named_parameters()) | dict(ours.named_buffers())
    for name, tensor in (*theirs.named_parameters(), *theirs.named_buffers()):
        assert tensor.equal(drawn[name]), name


@variants
def test_saved_in_shards_and_loaded_through_the_auto_class(
    changes: dict[str, Any], tmp_path: Any
) -> None:
    model = causal(**changes)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(loaded, FlowformerForCausalLM)
    assert loaded.config.language_model_config() == model.config.language_model_config()
    # Buffers that no file holds are computed again.
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(loaded.get_buffer(name), buffer, rtol=0, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(loaded.get_parameter(name), parameter, rtol=0, atol=0)
    # A file's numbers begin at other addresses, and products may then be added in another order.
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
def test_one_file_of_safetensors_holds_each_matrix_once(
    changes: dict[str, Any], tmp_path: Any
) -> None:
    model = causal(**changes)
    model.save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert numbers * 8 < size < numbers * 8 + 8192
    loaded = FlowformerForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    tied = loaded.lm_head.weight is loaded.model.backbone.embedding.weight
    assert tied == model.config.tie_word_embeddings


@pytest.mark.parametrize("mixer", ["flow", "performer", "gla"])
def test_what_a_file_lacks_is_drawn_as_the_constructor_draws_it(mixer: str, tmp_path: Any) -> None:
    """A base model without its second block: on loading, that block is drawn, the rest is kept."""
    model = FlowformerModel(small(mixer=mixer, initialization="fairseq"))
    kept = {name: tensor for name, tensor in model.state_dict().items() if "blocks.1." not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded = FlowformerModel.from_pretrained(tmp_path)
    own = loaded.state_dict()
    for name, tensor in kept.items():
        assert own[name].equal(tensor), name
    projection = "backbone.blocks.1.mixer.query_projection.weight"
    # Uniform after Xavier, gain √½: bounded by √(6 / 32) · √½. A normal draw of 0.02 is not.
    bound = (6 / 32) ** 0.5 * 0.5**0.5
    assert 0.5 * bound < own[projection].abs().max() <= bound
    assert own["backbone.blocks.1.norm1.weight"].eq(1).all()
    assert loaded(TOKENS).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("mask", [LEFT, RIGHT], ids=["left", "right"])
def test_padding_changes_nothing(mask: Tensor) -> None:
    model = causal()
    real = mask.bool()
    out = model(TOKENS.masked_fill(~real, PAD), attention_mask=mask).logits
    for row in range(len(TOKENS)):
        alone = model(TOKENS[row : row + 1, real[row]]).logits[0]
        torch.testing.assert_close(out[row, real[row]], alone, rtol=1e-12, atol=1e-12)
    # Whatever stands there, even what is no token.
    again = model(TOKENS.masked_fill(~real, -100), attention_mask=mask).logits
    assert again.equal(out)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_masks_of_any_type(kind: torch.dtype) -> None:
    model = causal()
    expected = model(TOKENS, attention_mask=LEFT).logits
    assert model(TOKENS, attention_mask=LEFT.to(kind)).logits.equal(expected)


@pytest.mark.parametrize("mixer", ["flow", "softmax", "gla"])
@pytest.mark.parametrize("whole_mask", [True, False], ids=["mask-of-all", "mask-of-new"])
def test_pieces_with_a_cache_are_the_whole(mixer: str, whole_mask: bool) -> None:
    model = causal(mixer=mixer)
    whole = model(TOKENS, attention_mask=LEFT).logits
    cache, start, pieces = FlowformerCache(), 0, []
    for length in (3, 1, 1, 2):
        end = start + length
        mask = LEFT[:, :end] if whole_mask else LEFT[:, start:end]
        out = model(TOKENS[:, start:end], attention_mask=mask, cache=cache)
        assert cache_of(out) is cache
        assert cache.get_seq_length() == end
        pieces.append(out.logits)
        start = end
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize(
    "kind", [FlowformerModel, FlowformerForCausalLM, FlowformerForSequenceClassification]
)
def test_a_cache_by_either_name_carries_the_state(kind: Any, name: str) -> None:
    model = kind(small()).double().eval()
    cache = FlowformerCache()
    model(TOKENS[:, :4], **{name: cache})
    out = model(TOKENS[:, 4:], **{name: cache})
    assert cache_of(out) is cache
    whole = model(TOKENS)[0]
    expected = whole if whole.ndim == 2 else whole[:, 4:]  # of classes, or of tokens
    torch.testing.assert_close(out[0], expected, rtol=1e-12, atol=1e-12)


def test_training_returns_no_cache_unless_asked() -> None:
    model = causal()
    assert cache_of(model(TOKENS)).get_seq_length() == 7
    assert cache_of(model(TOKENS, use_cache=False)) is None
    assert cache_of(model.train()(TOKENS)) is None
    assert isinstance(cache_of(model(TOKENS, use_cache=True)), FlowformerCache)


def test_hidden_states_and_tuples() -> None:
    model = causal()
    out = model(TOKENS, output_hidden_states=True)
    base = model.model(TOKENS, output_hidden_states=True)
    assert len(out.hidden_states) == 3  # the embeddings, and one for each block
    torch.testing.assert_close(out.hidden_states[-1], base.last_hidden_state, rtol=0, atol=0)
    logits = model.lm_head(out.hidden_states[-1])
    torch.testing.assert_close(out.logits, logits, rtol=0, atol=0)
    as_tuple = model(TOKENS, labels=TOKENS, return_dict=False)
    assert as_tuple[0].ndim == 0
    assert as_tuple[1].equal(out.logits)


DOCUMENTS = [TOKENS[0, :4], TOKENS[1], TOKENS[0, :2]]


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("told", ["cu_seq_lens_q", "position_ids", "seq_idx"])
def test_packed_documents_do_not_see_one_another(positions: str, told: str) -> None:
    model = causal(positions=positions)
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch: Any = collate([{"input_ids": document.tolist()} for document in DOCUMENTS])
    out = model(batch["input_ids"], labels=batch["input_ids"], **{told: batch[told]})
    expected = torch.cat([model(document[None]).logits for document in DOCUMENTS], 1)
    torch.testing.assert_close(out.logits, expected, rtol=1e-12, atol=1e-12)
    assert cache_of(out) is None
    # No document's end is to predict the next one's first token.
    shown = batch["labels"][:, 1:] != -100
    loss = F.cross_entropy(out.logits[:, :-1][shown], batch["input_ids"][:, 1:][shown])
    torch.testing.assert_close(out.loss, loss)


def test_documents_packed_into_several_rows() -> None:
    model = causal()
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])
    logits = model(TOKENS, position_ids=places).logits
    first = torch.cat([model(part).logits for part in (TOKENS[:1, :3], TOKENS[:1, 3:])], 1)
    expected = torch.cat((first, model(TOKENS[1:]).logits))
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", [None, LEFT, RIGHT], ids=["whole", "left", "right"])
def test_positions_that_it_counts_itself_change_nothing(mask: Tensor | None) -> None:
    model = causal()
    places = (
        torch.arange(7)[None] if mask is None else (mask.cumsum(1) - 1).masked_fill(~mask.bool(), 1)
    )
    out = model(TOKENS, attention_mask=mask, position_ids=places, use_cache=True)
    assert out.logits.equal(model(TOKENS, attention_mask=mask).logits)
    longer = None if mask is None else torch.cat((mask, mask.new_ones(2, 1)), 1)
    following = places[:, -1:] + 1 if mask is None else mask.sum(1, keepdim=True)
    cache = cache_of(out)
    model(TOKENS[:, :1], attention_mask=longer, cache=cache, position_ids=following)


def test_exports_without_a_cache_unless_it_is_asked_for() -> None:
    model = causal()
    program = torch.export.export(model, (TOKENS,), strict=False)
    assert cache_of(program.module()(TOKENS)) is None
    torch.testing.assert_close(program.module()(TOKENS).logits, model(TOKENS).logits)
    assert cache_of(model(TOKENS)) is not None


def test_embeddings_in_place_of_tokens() -> None:
    model = causal()
    embedded = model.get_input_embeddings()(TOKENS)
    out = model(inputs_embeds=embedded, attention_mask=LEFT).logits
    assert out.equal(model(TOKENS, attention_mask=LEFT).logits)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4])], ids=["last", "three", "places"])
def test_logits_of_some_places(keep: int | Tensor) -> None:
    model = causal()
    whole = model(TOKENS).logits
    expected = whole[:, -keep:] if isinstance(keep, int) else whole[:, keep]
    torch.testing.assert_close(model(TOKENS, logits_to_keep=keep).logits, expected)


def test_checkpointing_gives_the_same_gradients() -> None:
    model: Any = causal(dropout=0.0).train()
    # transformers 5.23 has a new name, and warns of the old one.
    new = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    gradients = []
    for enabled in (False, True):
        if enabled:
            getattr(model, f"{name}_enable")()
            assert model.model.backbone.gradient_checkpointing
        model.zero_grad()
        model(TOKENS, attention_mask=LEFT, labels=TOKENS).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, rtol=0, atol=0)
    getattr(model, f"{name}_disable")()
    assert not model.model.backbone.gradient_checkpointing


def test_training_without_logits_has_the_same_loss_and_gradients() -> None:
    labels = TOKENS.masked_fill(~RIGHT.bool(), -100)
    results = []
    for logits in (True, False):
        torch.manual_seed(1)
        model = causal(logits_in_training=logits, dropout=0.0).float().train()
        out = model(TOKENS, attention_mask=RIGHT, labels=labels, num_items_in_batch=20)
        assert (out.logits is not None) == logits
        out.loss.backward()
        results.append((out.loss, [parameter.grad for parameter in model.parameters()]))
        assert model.eval()(TOKENS, labels=labels).logits is not None
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "chunked"])
def test_labels_that_are_shifted_already(logits: bool) -> None:
    model = causal(logits_in_training=logits, dropout=0.0).train()
    shifted = torch.cat((TOKENS[:, 1:], TOKENS.new_full((2, 1), -100)), 1)
    expected = model(TOKENS, labels=TOKENS).loss
    nothing = torch.zeros_like(TOKENS)
    loss = model(TOKENS, labels=nothing, shift_labels=shifted).loss
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
def test_vocabulary_resized(changes: dict[str, Any]) -> None:
    model = causal(**changes)
    before = model(TOKENS).logits
    model.resize_token_embeddings(40, mean_resizing=False)
    assert model.config.vocab_size == model.model.backbone.vocab_size == 40
    after = model(TOKENS.masked_fill(TOKENS == 9, 39)).logits
    assert after.shape == (2, 7, 40)
    torch.testing.assert_close(model(TOKENS).logits[:, :, :31], before)
    tied = model.lm_head.weight is model.model.backbone.embedding.weight
    assert tied == model.config.tie_word_embeddings


class TestClassification:
    @pytest.fixture
    def model(self) -> FlowformerForSequenceClassification:
        return FlowformerForSequenceClassification(small(num_labels=3)).double().eval()

    @pytest.mark.parametrize("mask", [LEFT, RIGHT], ids=["left", "right"])
    def test_the_last_real_token_decides(
        self, model: FlowformerForSequenceClassification, mask: Tensor
    ) -> None:
        logits = model(TOKENS, attention_mask=mask).logits
        for row in range(len(TOKENS)):
            real = TOKENS[row : row + 1, mask[row].bool()]
            hidden = model.model(real).last_hidden_state
            expected = model.score(hidden[:, -1])[0]
            torch.testing.assert_close(logits[row], expected, rtol=1e-12, atol=1e-12)

    def test_padding_is_seen_by_its_token_where_there_is_no_mask(
        self, model: FlowformerForSequenceClassification
    ) -> None:
        model.config.pad_token_id = PAD
        padded = TOKENS.masked_fill(~RIGHT.bool(), PAD)
        expected = model(padded, attention_mask=RIGHT).logits
        torch.testing.assert_close(model(padded).logits, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(
        ("problem", "classes", "labels"),
        [
            ("single_label_classification", 3, torch.tensor([2, 0])),
            ("multi_label_classification", 3, torch.tensor([[1.0, 0, 1], [0, 1, 1]])),
            ("regression", 1, torch.tensor([0.5, -1.0])),
        ],
    )
    def test_problem_types(self, problem: Any, classes: int, labels: Tensor) -> None:
        config = small(num_labels=classes, problem_type=problem)
        model = FlowformerForSequenceClassification(config).eval()
        out = model(TOKENS, labels=labels)
        expected = {
            "single_label_classification": torch.nn.functional.cross_entropy,
            "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
            "regression": torch.nn.functional.mse_loss,
        }[problem](out.logits.squeeze(-1), labels)
        torch.testing.assert_close(out.loss, expected)

    def test_a_causal_model_is_the_start(self, tmp_path: Any) -> None:
        causal().save_pretrained(tmp_path)
        loaded = AutoModelForSequenceClassification.from_pretrained(
            tmp_path, num_labels=4, dtype=torch.float64
        )
        assert isinstance(loaded, FlowformerForSequenceClassification)
        base = AutoModel.from_pretrained(tmp_path, dtype=torch.float64)
        assert isinstance(base, FlowformerModel)
        hidden = base(TOKENS).last_hidden_state
        torch.testing.assert_close(loaded.score(hidden[:, -1]), loaded(TOKENS).logits)


class TestConfiguration:
    def test_settings_of_ours_and_back(self) -> None:
        ours = LanguageModelConfig(
            mixer="performer",
            mixer_options={"num_features": 8},
            dim=24,
            num_heads=3,
            num_layers=5,
            feedforward=48,
            max_length=77,
            dropout=0.25,
            positions="rotary",
            normalization="rms",
            activation="swiglu",
            bias=False,
            tie_embeddings=False,
            scale_embeddings=True,
            initialization="fairseq",
        )
        config = FlowformerConfig.from_language_model_config(ours, vocab_size=99)
        assert config.language_model_config() == ours
        assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (99, 24, 5)
        assert (config.dim, config.num_heads) == (24, 3)  # our names work too

    def test_file_and_auto_class(self, tmp_path: Any) -> None:
        config = small(mixer="linear", dropout=0)
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert isinstance(loaded, FlowformerConfig)
        assert loaded.language_model_config() == config.language_model_config()

    def test_a_mixer_without_a_state_has_no_cache(self) -> None:
        assert small(mixer="synthesizer").use_cache is False
        with pytest.raises(ValueError, match=r"'synthesizer' has no state.*flow"):
            small(mixer="synthesizer", use_cache=True)

    def test_an_unknown_mixer(self) -> None:
        with pytest.raises(
            ValueError, match=r"unknown mixer 'flaw': did you mean flow\? expected one of flow, "
        ):
            small(mixer="flaw")

    def test_a_setting_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
            small(num_hidden_layers=0)


class TestRefusals:
    def test_two_caches(self) -> None:
        cache = FlowformerCache()
        causal()(TOKENS, cache=cache, past_key_values=cache)
        with pytest.raises(ValueError, match="cache and past_key_values are two caches: give one"):
            causal()(TOKENS, cache=cache, past_key_values=FlowformerCache())

    @pytest.mark.parametrize("name", ["cache_params", "past_key_value", "state", "mems", "memory"])
    def test_a_cache_by_a_name_that_nobody_reads(self, name: str) -> None:
        with pytest.raises(TypeError, match=f"unexpected keyword {name}=FlowformerCache"):
            causal()(TOKENS, **{name: FlowformerCache()})

    def test_what_is_like_a_cache_by_its_name(self) -> None:
        with pytest.raises(TypeError, match=r"unexpected keyword past_states=tuple.*is given as"):
            causal()(TOKENS, past_states=())
        causal()(TOKENS, cache_params=None, cache_position=torch.arange(7))

    def test_keys_and_values_as_a_cache(self) -> None:
        with pytest.raises(TypeError, match="must be a FlowformerCache, got DynamicCache"):
            causal()(TOKENS, past_key_values=DynamicCache())

    @pytest.mark.parametrize(
        "places", [torch.arange(7)[None] + 1, torch.tensor([[0, 2, 4, 6, 8, 9, 9]])]
    )
    def test_positions_that_it_does_not_count(self, places: Tensor) -> None:
        with pytest.raises(ValueError, match=r"counts off attention_mask.*cu_seq_lens_q"):
            causal()(TOKENS, position_ids=places)
        with pytest.raises(ValueError, match=r"counts off attention_mask.*cu_seq_lens_q"):
            causal()(TOKENS, position_ids=places, attention_mask=LEFT)

    def test_packed_documents_with_a_cache(self) -> None:
        places = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
        with pytest.raises(ValueError, match=r"neither padding nor a cache"):
            causal()(TOKENS, position_ids=places, use_cache=True)

    def test_offsets_without_values(self) -> None:
        offsets = torch.tensor([0, 7], device="meta")
        with pytest.raises(ValueError, match=r"cu_seqlens must hold values"):
            causal()(TOKENS[:1], cu_seq_lens_q=offsets)

    def test_attention_weights(self) -> None:
        with pytest.raises(ValueError, match="no matrix of attention weights"):
            causal()(TOKENS, output_attentions=True)

    def test_tokens_and_embeddings(self) -> None:
        model = causal()
        with pytest.raises(ValueError, match="got both or neither"):
            model(TOKENS, inputs_embeds=model.get_input_embeddings()(TOKENS))
        with pytest.raises(ValueError, match="got both or neither"):
            model()

    @pytest.mark.parametrize("shape", [(2, 5), (1, 7), (2, 1, 7, 7)])
    def test_a_mask_of_another_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"attention_mask must be \[b, 7\], got"):
            causal()(TOKENS, attention_mask=torch.ones(shape))

    def test_a_cache_of_a_mixer_without_state(self) -> None:
        with pytest.raises(NotImplementedError, match="no state form"):
            causal(mixer="synthesizer")(TOKENS, use_cache=True)
