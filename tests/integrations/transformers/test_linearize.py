"""`linearize`: from softmax to a mixer with a state, on models of a few thousand parameters."""

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.integrations.linearize_settings import LinearizeSettings
from flowformer.integrations.transformers import linearize
from flowformer.integrations.transformers.gpt2 import to_gpt2
from flowformer.integrations.transformers.linearizing import texts
from flowformer.integrations.transformers.linearizing.measures import (
    Stage,
    bits_per_character,
    cross_entropy,
)
from flowformer.integrations.transformers.linearizing.schedule import factor
from flowformer.integrations.transformers.linearizing.texts import (
    Text,
    begun,
    first_token,
    sequences,
    split,
    tokenise,
)
from flowformer.integrations.transformers.linearizing.transfer import (
    begin,
    copy_softmax,
    transfer,
)
from flowformer.models import LanguageModel, LanguageModelConfig
from flowformer.nn.mixers.gated import GatedAttention
from flowformer.nn.replace import replace_attention
from flowformer.nn.replace.transformers import CHILD, child_of, supported
from tests.integrations.transformers.test_states import MODELS, build

linearizing: Any = sys.modules[linearize.__module__]  # its name is that of its function
LETTERS = "abcdefghijklmnopqrstuvwxyz .,\n?"
BEGIN = LETTERS.index(",")  # for tokenizers that begin each text
TEXT = "the quick brown fox jumps over the lazy dog.\n" * 60
SMALL: dict[str, Any] = {"length": 16, "batch_size": 4, "contexts": (8, 32), "held_out_tokens": 200}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Of letters."""
    fast = Tokenizer(models.WordLevel({letter: at for at, letter in enumerate(LETTERS)}, "?"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="?")


def beginning(tokenizer: Any) -> Any:
    """The same with a token that begins each text."""
    other = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), unk_token="?"
    )
    other.add_special_tokens({"bos_token": ","})
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=", $A", special_tokens=[(",", BEGIN)]
    )
    return other


def small(name: str) -> Any:
    return build(name).float()


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(name: str, tokenizer: Any, tmp_path: Path) -> None:
    model = small(name)
    done = linearize(
        model, tokenizer, TEXT, transfer_tokens=512, tune_tokens=512, keep=[1], **SMALL
    )
    assert [stage.name for stage in done.stages] == [*("before", "exchanged", "transfer", "tuning")]
    assert [stage.tokens for stage in done.stages] == [0, 0, 512, 1024]
    assert (done.exchanged, done.kept) == ([0], [1])
    assert all(math.isfinite(stage.nats) for stage in done.stages)
    assert [cost.context for cost in done.cost_after] == [8, 32]
    (errors,) = done.transfer_losses.values()
    assert len(errors) == len(done.tune_losses) == 8
    prompt = tokenizer("the quick", return_tensors="pt")["input_ids"]
    out = done.model.generate(prompt, max_new_tokens=5, num_beams=2, pad_token_id=0)
    done.model.save_pretrained(tmp_path)
    again: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generate(prompt, max_new_tokens=5, num_beams=2, pad_token_id=0).equal(out)


def test_the_cache_is_of_constant_size_where_no_layer_stays_softmax(tokenizer: Any) -> None:
    model = small("llama")
    done = linearize(model, tokenizer, TEXT, transfer_tokens=0, tune_tokens=0, **SMALL)
    assert [stage.name for stage in done.stages] == ["before", "exchanged"]
    before, exchanged = done.stages
    assert before.nats != exchanged.nats
    assert done.more_bits == exchanged.nats / before.nats - 1
    assert len({cost.bytes for cost in done.cost_after}) == 1
    # Keys and values of 2 layers, 2 heads of 4, of 18 and of 42 tokens.
    assert [cost.bytes for cost in done.cost_before] == [2 * 2 * 2 * 4 * n * 4 for n in (18, 42)]


class TestTransfer:
    @pytest.fixture
    def model(self) -> Any:
        return small("llama")

    def exchanged(self, model: Any, mixer: str = "flow-gated") -> dict[str, tuple[Any, Any]]:
        names = [f"model.layers.{at}.self_attn" for at in range(2)]
        old = {name: copy_softmax(model.get_submodule(name)) for name in names}
        torch.manual_seed(1)
        replace_attention(model, mixer)
        return {name: (model.get_submodule(name), each) for name, each in old.items()}

    def test_the_model_reads_as_before(self, model: Any) -> None:
        """What a layer hands on is what softmax gave, so the layers after it see the same."""
        ids = torch.randint(31, (2, 16), generator=torch.Generator().manual_seed(1))
        expected = model(ids, output_hidden_states=True).hidden_states
        pairs = self.exchanged(model)
        seen = []
        for module, _ in pairs.values():
            module.o_proj.register_forward_pre_hook(lambda *_: None)
        handle = model.model.norm.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].clone())
        )
        transfer(model, pairs, iter([ids]), rate=1e-3, steps=1)
        handle.remove()
        last = F.rms_norm(seen[0], (16,), model.model.norm.weight, 1e-6)
        torch.testing.assert_close(last, expected[-1], rtol=1e-4, atol=1e-5)

    def test_each_layer_is_trained_and_nothing_else(self, model: Any) -> None:
        pairs = self.exchanged(model)
        inside = {
            f"{name}.{own}" for name, (module, _) in pairs.items() for own in module.state_dict()
        }
        before = {name: each.clone() for name, each in model.named_parameters()}
        ids = torch.randint(31, (2, 16))
        losses = transfer(model, pairs, iter([ids] * 3), rate=1e-2, steps=3)
        assert {name: len(each) for name, each in losses.items()} == dict.fromkeys(pairs, 3)
        changed = {name for name, each in model.named_parameters() if not each.equal(before[name])}
        assert changed
        assert changed <= inside
        assert any(CHILD in name for name in changed)
        assert all("forward" not in vars(module) for module, _ in pairs.values())

    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_nothing_is_predicted(self, name: str) -> None:
        model = small(name)
        names = [each for each, module in model.named_modules() if supported(module)]
        old = {each: copy_softmax(model.get_submodule(each)) for each in names}
        replace_attention(model, "flow-gated")
        pairs = {each: (model.get_submodule(each), old[each]) for each in names}
        model.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("logits were computed"))
        losses = transfer(model, pairs, iter([torch.randint(31, (2, 16))]), rate=1e-2, steps=1)
        assert [len(each) for each in losses.values()] == [1, 1]

    def test_the_error_falls(self, model: Any) -> None:
        pairs = self.exchanged(model)
        for module, _ in pairs.values():
            begin(module)
        ids = torch.randint(31, (4, 16), generator=torch.Generator().manual_seed(1))
        losses = transfer(model, pairs, iter([ids] * 60), rate=1e-2, steps=60)
        for errors in losses.values():
            assert errors[-1] < 0.5 * errors[0]

    def test_it_begins_without_convolution_and_gates(self, model: Any) -> None:
        (module, _), _ = self.exchanged(model).values()
        begin(module)
        attention = child_of(module)
        assert isinstance(attention, GatedAttention)
        assert attention.convolution is not None
        assert attention.convolution[..., -1].eq(1).all()
        assert attention.decay is not None
        constants = 1 / nn.functional.softplus(attention.decay.projection.bias)
        assert constants.max() < 5000  # it forgets

    def test_windows_are_those_of_the_old_attention(self, tokenizer: Any) -> None:
        model = build("mistral", sliding_window=3).float()
        done = linearize(
            model, tokenizer, TEXT, transfer_tokens=128, tune_tokens=0, keep=[1], **SMALL
        )
        assert done.stages[-1].name == "transfer"


class TestTexts:
    def test_split_by_characters(self) -> None:
        assert split(["abcd", "efgh", "ij"], 0.5) == (["abcd", "e"], ["fgh", "ij"])
        assert split(["abcd"], 0.25) == (["abc"], ["d"])

    def test_an_end_stands_between_texts(self, tokenizer: Any) -> None:
        plain = tokenise(tokenizer, ["ab", "c"])
        assert plain.tokens.tolist() == [0, 1, 2]
        assert plain.characters == 3
        tokenizer.eos_token = "\n"
        try:
            assert tokenise(tokenizer, ["ab", "c"]).tokens.tolist() == [0, 1, 29, 2]
        finally:
            tokenizer.eos_token = None

    def test_pieces_end_with_lines_and_no_more_are_read_than_enough(
        self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = ["ab\ncd\nefghi", "", "j\nk"]
        whole = tokenise(tokenizer, given)
        monkeypatch.setattr(texts, "PIECE", 4)
        assert [piece for _, piece in texts._pieces(given)] == [
            *("ab\n", "cd\n", "efgh", "i", "j\nk")
        ]
        cut = tokenise(tokenizer, given)
        assert cut.tokens.equal(whole.tokens)
        assert cut.characters == whole.characters == 14
        assert cut.tokens.dtype == torch.int32
        some = tokenise(tokenizer, given, most=4)
        assert some.tokens.equal(whole.tokens[:6])
        assert some.characters == 6
        assert LinearizeSettings(transfer_tokens=600, tune_tokens=0).most_tokens == 600
        assert LinearizeSettings(transfer_tokens=600).most_tokens is None

    def test_the_token_that_begins_a_text_is_known(self, tokenizer: Any) -> None:
        assert first_token(tokenizer) is None
        assert first_token(beginning(tokenizer)) == BEGIN
        assert tokenise(beginning(tokenizer), ["ab", "c"]).tokens.tolist() == [0, 1, 2]
        assert begun(torch.tensor([[1, 2]]), BEGIN).tolist() == [[BEGIN, 1, 2]]

    def test_cross_entropy_after_the_token_that_begins_a_text(self) -> None:
        model = small("llama")
        ids = torch.randint(30, (20,), generator=torch.Generator().manual_seed(0))
        found = cross_entropy(model, Text(ids, 20, BEGIN), length=16, batch_size=2, most=100)
        parts = []
        for start, stop in ((0, 16), (16, 19)):
            logits = model(torch.cat([torch.tensor([BEGIN]), ids[start:stop]])[None]).logits[0, 1:]
            parts.append(F.cross_entropy(logits, ids[start + 1 : stop + 1], reduction="none"))
        assert found == pytest.approx(torch.cat(parts).mean().item(), rel=1e-5)

    def test_it_stands_before_each_row_and_its_prediction_is_left_out(self, tokenizer: Any) -> None:
        model, seen = small("llama"), []
        expected = copy.deepcopy(model)
        forward = model.forward
        model.forward = lambda **call: seen.append(call) or forward(**call)
        own = {**SMALL, "contexts": ()}
        done = linearize(
            model, beginning(tokenizer), TEXT, transfer_tokens=0, tune_tokens=64, **own
        )
        row = next(call for call in seen if "labels" in call)
        assert row["input_ids"].shape == (4, 17)
        assert all((call["input_ids"][:, 0] == BEGIN).all() for call in seen)
        assert row["labels"][:, :2].eq(-100).all()
        assert row["labels"][:, 2:].equal(row["input_ids"][:, 2:])
        assert done.stages[-1].tokens == 64
        before = cross_entropy(
            expected,
            tokenise(beginning(tokenizer), split([TEXT], 0.1)[1]),
            length=16,
            batch_size=4,
            most=200,
        )
        assert done.stages[0].nats == pytest.approx(before)

    def test_every_sequence_is_taken_before_one_is_taken_again(self) -> None:
        tokens = torch.arange(50)
        batches = list(sequences(tokens, 10, 2, 130, torch.Generator().manual_seed(0)))
        rows = [row[0].item() // 10 for batch in batches for row in batch]
        assert len(rows) == 13
        assert sorted(rows[:5]) == sorted(rows[5:10]) == [0, 1, 2, 3, 4]
        assert rows[:5] != rows[5:10]

    def test_cross_entropy_is_that_of_every_token_after_the_first(self) -> None:
        model = small("llama")
        text = Text(torch.randint(31, (40,), generator=torch.Generator().manual_seed(0)), 80)
        found = cross_entropy(model, text, length=16, batch_size=2, most=100)
        parts: list[Tensor] = []
        for start, stop in ((0, 16), (16, 32), (32, 39)):
            logits = model(text.tokens[None, start:stop]).logits[0]
            targets = text.tokens[start + 1 : stop + 1]
            parts.append(F.cross_entropy(logits, targets, reduction="none"))
        assert found == pytest.approx(torch.cat(parts).mean().item(), rel=1e-5)
        assert bits_per_character(found, text) == pytest.approx(found / math.log(2) / 2)


def test_the_rate_rises_and_falls() -> None:
    assert [factor(at, 100) for at in (0, 4, 5, 100)] == pytest.approx([0.2, 1.0, 1.0, 0.1])


@pytest.mark.parametrize("name", ["transfer", "tune"])
def test_a_loss_that_is_no_number_ends_the_training(name: str, tokenizer: Any) -> None:
    settings = {"transfer_tokens": 0, "tune_tokens": 0, f"{name}_tokens": 512, f"{name}_rate": 1e30}
    message = rf"the loss of step \d of 8 is .*a lower rate than 1e\+30 \({name}_rate\)"
    with pytest.raises(FloatingPointError, match=message):
        linearize(small("llama"), tokenizer, TEXT, **settings, **SMALL)


def test_a_perplexity_beyond_a_float_is_infinite() -> None:
    stage = Stage(name="before", tokens=0, nats=1000.0, bits_per_character=1.0, seconds=0.0)
    assert stage.perplexity == math.inf


# peft asks transformers by a name that it is to lose.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters(tokenizer: Any) -> None:
    pytest.importorskip("peft")  # an extra: linearize tunes whole models without it
    model = small("gpt2")
    names = set(model.state_dict())
    before = {name: each.clone() for name, each in model.named_parameters()}
    done = linearize(
        model, tokenizer, TEXT, transfer_tokens=0, tune_tokens=256, lora=2, keep=[1], **SMALL
    )
    after = dict(done.model.named_parameters())
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {f"transformer.h.0.attn.{name}.weight" for name in ("c_attn", "c_proj")}
    assert names < set(done.model.state_dict())
    assert all(each.requires_grad for each in after.values())


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"held_out": 1.0}, "held_out must be above 0 and below 1"),
            ({"lora": 0}, "lora must be a rank"),
            ({"tune_rate": 0.0}, "tune_rate must be positive"),
            ({"transfer_tokens": -1}, "transfer_tokens must be 0, which leaves it out, or at"),
            ({"tune_tokens": 511}, "at least a sequence of length=512 tokens, got 511"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LinearizeSettings(**settings)

    def test_layers(self, tokenizer: Any) -> None:
        with pytest.raises(ValueError, match="the layers are 0 to 1, got 5"):
            linearize(small("llama"), tokenizer, TEXT, layers=[0, 5], length=16)
        with pytest.raises(ValueError, match="all of them are in keep"):
            linearize(small("llama"), tokenizer, TEXT, keep=[0, 1], length=16)

    def test_mixers(self, tokenizer: Any) -> None:
        for mixer in ("softmax", "linformer"):
            with pytest.raises(NotImplementedError, match="a state of constant size"):
                linearize(small("llama"), tokenizer, TEXT, mixer=mixer)

    def test_models(self, tokenizer: Any) -> None:
        with pytest.raises(TypeError, match="a model of transformers, got Linear"):
            linearize(nn.Linear(1, 1), tokenizer, TEXT)
        model = small("llama")
        replace_attention(model, "flow")
        with pytest.raises(ValueError, match="is FlowAttention already"):
            linearize(model, tokenizer, TEXT, length=16)

    @pytest.mark.parametrize(
        ("name", "said"), [("flow", "'flow'"), ("flow-gated", "FlowGatedAttention")]
    )
    def test_models_that_chose_ours_by_name(self, name: str, said: str, tokenizer: Any) -> None:
        model = small("llama")
        model.set_attn_implementation(name)
        with pytest.raises(ValueError, match=f"self_attn is {said} already"):
            linearize(model, tokenizer, TEXT, length=16)

    def test_options_before_anything_is_judged(
        self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(linearizing, "cross_entropy", None)
        with pytest.raises(ValueError, match="no_such_option"):
            linearize(small("llama"), tokenizer, TEXT, options={"no_such_option": 1}, **SMALL)

    def test_adapters_without_peft_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match=r"flowformer\[linearize\]"):
            linearizing.checked_settings(lora=2)

    def test_more_tokens_than_positions(self, tokenizer: Any) -> None:
        for name in ("llama", "gpt2"):
            with pytest.raises(ValueError, match=r"length must be at most 80: .* got 81"):
                linearize(small(name), tokenizer, TEXT, length=81)
            with pytest.raises(ValueError, match=r"length must be at most 79: .* got 80"):
                linearize(small(name), beginning(tokenizer), TEXT, length=80)

    def test_half_precision_where_it_is_trained(self, tokenizer: Any) -> None:
        model = small("llama").bfloat16()
        with pytest.raises(ValueError, match=r"got model\.embed_tokens\.weight in torch\.bfloat16"):
            linearize(model, tokenizer, TEXT, **SMALL)
        message = r"got model\.layers\.1\.self_attn\.q_proj\.weight in torch\.bfloat16"
        with pytest.raises(ValueError, match=message):
            linearize(model, tokenizer, TEXT, tune_tokens=0, layers=[1], **SMALL)

    def test_a_text_that_is_too_short(self, tokenizer: Any) -> None:
        with pytest.raises(ValueError, match="at least 512 tokens"):
            linearize(small("llama"), tokenizer, "abc")


class TestGPT2:
    """Our model with softmax as transformers' GPT-2."""

    @pytest.mark.parametrize(
        "settings",
        [
            {"positions": "sinusoidal", "activation": "gelu"},
            {"positions": "learned", "activation": "gelu-tanh", "tie_embeddings": False},
            {"positions": "sinusoidal-fairseq", "activation": "relu", "bias": False},
            {"positions": "learned", "scale_embeddings": False, "initialization": "gpt2"},
        ],
    )
    def test_computes_the_same(self, settings: dict[str, Any]) -> None:
        torch.manual_seed(0)
        config = LanguageModelConfig(
            mixer="softmax",
            dim=16,
            num_heads=4,
            num_layers=2,
            feedforward=32,
            max_length=24,
            **settings,
        )
        model = LanguageModel(config, vocab_size=31).double().eval()
        tokens = torch.randint(31, (2, 20))
        expected = model(tokens).logits
        found: Any = to_gpt2(model)(tokens)
        # The sinusoids of either are kept in float32.
        torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-5)

    def test_sinusoidal_places_go_on(self) -> None:
        config = LanguageModelConfig(
            mixer="softmax", dim=16, num_heads=4, num_layers=1, feedforward=32, max_length=8
        )
        model = LanguageModel(config, vocab_size=31).eval()
        tokens = torch.randint(31, (1, 20))
        found: Any = to_gpt2(model, positions=20)(tokens)
        torch.testing.assert_close(found.logits, model(tokens).logits, rtol=1e-4, atol=1e-4)

    def test_what_it_has_not(self) -> None:
        config = LanguageModelConfig(
            dim=16, num_heads=4, num_layers=1, feedforward=32, positions="rotary", max_length=8
        )
        with pytest.raises(ValueError, match="GPT-2 has no mixer='flow', positions='rotary'"):
            to_gpt2(LanguageModel(config, vocab_size=31))
