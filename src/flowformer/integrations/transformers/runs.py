"""A trained run of ours as a model and a tokenizer of transformers."""

import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from flowformer.data.language.tokenizers import SymbolTokenizer, Tokenizer
from flowformer.integrations.transformers.gpt2 import to_gpt2
from flowformer.integrations.transformers.heads import FlowformerForCausalLM
from flowformer.train.language.study import Language


def convert_run(
    run_dir: str | Path,
) -> tuple[FlowformerForCausalLM, PreTrainedTokenizerFast | None]:
    """Return the model and the tokenizer of a run of `flowformer train`; no code in it runs.

    `save_pretrained(folder)` of both, into one folder, serves `from_pretrained` and `pipeline`, and
    `push_to_hub` publishes it.

    Returns:
        The model, in evaluation mode, and the tokenizer; None of a model of sums.

    Raises:
        FileNotFoundError: there is no run, or it has not ended.
        ValueError: it is that of a classifier, or a file is damaged.
    """
    run = Language.load(run_dir)
    tokenizer = None if run.tokenizer is None else convert_tokenizer(run.tokenizer)
    model = FlowformerForCausalLM.from_language_model(run.model, tokenizer)
    _stop(model, run)
    return model, tokenizer


def _stop(model: Any, run: Any) -> None:
    """Let a model end its text where the run's would."""
    # A line's end is a token of words, but no reason to stop.
    model.config.eos_token_id = next(iter(run.stop_ids), None)
    model.generation_config.eos_token_id = model.config.eos_token_id


def convert_to_gpt2(
    run_dir: str | Path, *, at_least: int = 0
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Return the model of a run with softmax attention as transformers' GPT-2, and the tokenizer.

    Args:
        run_dir: the folder that `flowformer train` left.
        at_least: places that GPT-2's table has at least, where those of the model go on.

    Raises:
        FileNotFoundError: there is no run, or it has not ended.
        ValueError: it is that of a classifier or has no text, GPT-2 has no such parts, or a file is
            damaged.
    """
    run = Language.load(run_dir)
    if run.tokenizer is None:
        raise ValueError(f"{run_dir} was trained on {run.config.data.corpus}, which is no text")
    tokenizer = convert_tokenizer(run.tokenizer)
    places = run.config.model.max_length
    if run.config.model.positions != "learned":
        places = max(places, at_least)
    model = to_gpt2(run.model, positions=places)
    config: Any = model.config
    config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    _stop(model, run)
    return model, tokenizer


def convert_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return one of our tokenizers for transformers: the same tokens of a text.

    Text that ends is padded by the token with which it ends (or by the first token, where there is
    none): as with GPT-2, the attention mask says what is padding.
    """
    fast = _BUILD.get(tokenizer.kind, _subwords)(tokenizer)
    names = {
        "unk_token": tokenizer.unknown_id,
        "eos_token": tokenizer.end_id,
        "pad_token": tokenizer.end_id or 0,
    }
    special = {name: fast.id_to_token(at) for name, at in names.items() if at is not None}
    # What a text spells like a special token is text here too.
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, padding_side="left", split_special_tokens=True, **special
    )


def _subwords(tokenizer: Tokenizer) -> FastTokenizer:
    return FastTokenizer.from_str(tokenizer.to_json())


def _level(tokenizer: Tokenizer) -> FastTokenizer:
    assert isinstance(tokenizer, SymbolTokenizer)
    return FastTokenizer(models.WordLevel(tokenizer.ids, tokenizer.symbols[0]))


def _words(tokenizer: Tokenizer) -> FastTokenizer:
    fast = _level(tokenizer)
    assert isinstance(tokenizer, SymbolTokenizer)
    unknown, end = tokenizer.symbols[:2]
    # Before line ends become that word: where it is written out, it is a word like others.
    written_out = normalizers.Replace(Regex(rf"(?<!\S){re.escape(end)}(?!\S)"), unknown)
    line_ends = normalizers.Replace("\n", f" {end} ")
    fast.normalizer = normalizers.Sequence([written_out, line_ends])
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast


# Every character by itself, line ends too.
_EACH = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")


def _characters(tokenizer: Tokenizer) -> FastTokenizer:
    fast = _level(tokenizer)
    fast.pre_tokenizer = _EACH
    fast.decoder = decoders.Fuse()
    return fast


def _bytes(tokenizer: Tokenizer) -> FastTokenizer:
    del tokenizer  # all of its kind are one
    letters = bytes_to_unicode()
    vocabulary = {letters[byte]: byte for byte in range(256)}
    fast = FastTokenizer(models.WordLevel(vocabulary, letters[0]))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([level, _EACH])
    fast.decoder = decoders.ByteLevel()
    return fast


_BUILD = {"char": _characters, "word": _words, "byte": _bytes}
