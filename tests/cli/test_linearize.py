"""`flowformer linearize`, as the page has it."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from flowformer.cli.linearize import require_model
from flowformer.integrations.linearize_settings import LinearizeSettings

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "linearize.md"
TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
SMALL = "--length 16 --batch-size 4 --transfer-tokens 256 --tune-tokens 256 --contexts 8 32"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Llama and a text."""
    monkeypatch.chdir(tmp_path)
    letters = sorted(set(TEXT))
    fast = Tokenizer(models.WordLevel({letter: at for at, letter in enumerate(letters)}, "."))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast).save_pretrained("my-llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=80,
    )
    transformers.LlamaForCausalLM(config).save_pretrained("my-llama")
    Path("my.txt").write_text(TEXT)
    return tmp_path


def test_the_command_of_the_page(own: Path, flowformer: Callable[..., Any]) -> None:
    (command,) = re.findall(r"^    flowformer (linearize .*)$", PAGE.read_text(), re.MULTILINE)
    outcome = flowformer(*shlex.split(command), *SMALL.split())
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "before, softmax",
        "exchanged, nothing trained",
        "after (a), attention transfer",
        "after (b), fine-tuning",
        "a token after 8 others",
        "a token after 32 others",
        "model",
        "report",
    ]
    folder = own / "linearized"
    result = json.loads((folder / "linearize.json").read_text())
    assert (result["exchanged"], result["kept"]) == ([0], [1])
    assert [stage["tokens"] for stage in result["stages"]] == [0, 0, 256, 512]
    page = (folder / "report" / "index.html").read_text()
    title = "my-llama, linearized by flow-gated"
    for words in (title, "Held-out text", "untuned", "What a token costs"):
        assert words in page
    again: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("the quick", return_tensors="pt")["input_ids"]
    assert again.generate(prompt, max_new_tokens=4, pad_token_id=0).shape == (1, 13)


def test_a_name_that_is_nowhere_is_told_at_once(
    own: Path, flowformer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder and a model that was kept are found without the hub, which is asked once."""
    asked: list[str] = []

    def answer(_api: Any, name: str, *, timeout: float) -> None:
        asked.append(name)
        raise ConnectionError(f"no answer within {timeout:g} s")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", answer)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda name, _file: str(own) if name == "kept/model" else None,
    )
    for name in ("my-llama", "kept/model"):
        require_model(name)
    assert asked == []
    refused = flowformer("linearize", "my-lama", "--text", "my.txt")
    assert refused.code == 2
    assert "my-lama: no such folder here, nor kept from the hub: asking the hub" in refused.err
    words = "my-lama: no such folder of a model here, and not to be had from the hub: no answer"
    assert words in refused.err
    assert asked == ["my-lama"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("my-llama", "give the text to learn from: --text FILE"),
        ("my-llama --text no.txt", "no.txt: no such file of text"),
        ("./no-llama --text my.txt", "./no-llama: no such folder of a model"),
        ("my-llama --text my.txt --output my-llama", "my-llama is not empty"),
        ("my-llama --text my.txt --keep 3-", "expected layers such as 0-11 or 3,7, got '3-'"),
        ("my-llama --text my.txt --tune-rate 0", "tune_rate must be positive, got 0.0"),
    ],
)
@pytest.mark.usefixtures("own")
def test_mistakes_are_told_at_once(
    words: str, message: str, flowformer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowformer.cli.linearize._load", None)
    outcome = flowformer("linearize", *words.split())
    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.usefixtures("own")
def test_an_infinite_perplexity_is_reported(
    flowformer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "flowformer.integrations.transformers.linearizing.measures._sum_of_nats"
    monkeypatch.setattr(where, lambda _, ids, *__: 1e3 * ids.numel())
    outcome = flowformer("linearize", "my-llama", "--text", "my.txt", *SMALL.split())
    assert outcome.code == 0, outcome.err
    assert "before, softmax: perplexity inf" in outcome.out
    result = json.loads(Path("linearized/linearize.json").read_text())
    assert [stage["perplexity"] for stage in result["stages"]] == [None] * 4
    assert ">inf</td>" in Path("linearized/report/index.html").read_text()


def test_a_run_of_ours_becomes_a_gpt2(own: Path, flowformer: Callable[..., Any]) -> None:
    words = "train char-shakespeare --data.corpus text --data.folder my.txt --model.mixer softmax"
    sizes = "--model.dim 16 --model.num-heads 2 --model.num-layers 1 --model.feedforward 32"
    short = "--training.steps 2 --training.evaluate-every 1 --data.length 16 --data.batch-size 2"
    folder = ["--run-dir", "run", "--training.accelerator", "cpu", "--model.max-length", "32"]
    done = flowformer(*words.split(), *sizes.split(), *short.split(), *folder)
    assert done.code == 0, done.err
    # Sinusoidal places go on: 32 in the run, 64 wanted.
    wanted = ["--length", "64", "--contexts", "8"]
    outcome = flowformer("linearize", "run", "--text", "my.txt", *SMALL.split()[2:-3], *wanted)
    assert outcome.code == 0, outcome.err
    config = json.loads((own / "linearized" / "config.json").read_text())
    assert (config["model_type"], config["n_positions"]) == ("gpt2", 64)


def test_layers_are_told_in_python_as_on_the_command_line() -> None:
    for layers, keep in (("0-2,5", "1"), ([0, 1, 2, 5], [1])):
        assert LinearizeSettings(layers=layers, keep=keep).chosen(6) == [0, 2, 5]
    with pytest.raises(ValueError, match=r"the layers are 0 to 3, got 5 in layers or keep"):
        LinearizeSettings(keep="1,5").chosen(4)
