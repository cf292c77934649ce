"""Checkpoints of fairseq's `transformer_lm`, in which the paper's language models were trained."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.models.language.presets import LANGUAGE_PRESETS
from flowformer.models.loading import matched, read_checkpoint, rename

_NAMES = (
    ("decoder.embed_tokens.", "embedding."),
    ("decoder.output_projection.", "head."),
    ("decoder.layer_norm.", "norm."),
    ("decoder.layers.", "blocks."),
    (".self_attn_layer_norm.", ".norm1."),
    (".final_layer_norm.", ".norm2."),
    (".self_attn.q_proj.", ".mixer.query_projection."),
    (".self_attn.k_proj.", ".mixer.key_projection."),
    (".self_attn.v_proj.", ".mixer.value_projection."),
    (".self_attn.out_proj.", ".mixer.out_projection."),
    (".fc1.", ".linear1."),
    (".fc2.", ".linear2."),
)

# A version number, and an empty tensor that told where the sinusoidal table was: no parameters.
_NO_PARAMETERS = ("decoder.version", "decoder.embed_positions._float_tensor")

_EMBEDDING = "decoder.embed_tokens.weight"
_OUTPUT = "decoder.output_projection.weight"


def convert_fairseq_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of fairseq's `transformer_lm` under the names of `LanguageModel`.

    Row i of the embedding stays the token i of fairseq's dictionary: 0 to 3 are <s>, <pad>, </s>
    and <unk>. An output layer equal to the embedding is left out (a tied model has none of its
    own). The model is a preset "wikitext-103" with the sizes of the checkpoint.

    Args:
        state_dict: the entry "model" of a checkpoint (`read_fairseq_checkpoint`).
    """
    return {name: value for name, (_, value) in _renamed(state_dict).items()}


def load_fairseq_model(
    path: Path | str, config: LanguageModelConfig = LANGUAGE_PRESETS["wikitext-103"]
) -> LanguageModel:
    """The language model in a fairseq checkpoint, with the vocabulary that it has.

    Args:
        path: the checkpoint.
        config: its architecture, which the file does not tell reliably.

    Raises:
        ValueError: see `read_checkpoint`; or parameters are missing, left over or of
            another shape, which are all listed.
    """
    state = read_fairseq_checkpoint(path)
    if _EMBEDDING not in state:
        raise ValueError(f"{path} is no fairseq language model: it has no {_EMBEDDING}")
    model = LanguageModel(config, vocab_size=state[_EMBEDDING].shape[0])
    what = "a fairseq transformer_lm of this size"
    model.load_state_dict(matched(model.state_dict(), _renamed(state), what=what))
    return model


def read_fairseq_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """The parameters in a checkpoint that fairseq wrote; see `read_checkpoint`, which says more."""
    return read_checkpoint(path, what="fairseq")


def _renamed(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    tied = (
        _OUTPUT in state_dict
        and _EMBEDDING in state_dict
        and state_dict[_OUTPUT].equal(state_dict[_EMBEDDING])
    )
    left_out = {*_NO_PARAMETERS, *((_OUTPUT,) if tied else ())}
    kept = {name: value for name, value in state_dict.items() if name not in left_out}
    return rename(kept, _NAMES)
