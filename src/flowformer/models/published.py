"""Published parameters under the names here: read safely, renamed, and checked all at once.

A model's `load_published_state_dict` takes them from here. Of each parameter the name that it had
is kept, so that a message names the file's own.
"""

import argparse
import pickle
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flowformer.nn.mixers.gated import GatedAttention

Renamed = dict[str, tuple[str, Tensor]]  # by the name here: the name that it had, and the value


def read_checkpoint(
    path: Path | str, *, what: str, entry: str | None = "model"
) -> dict[str, Tensor]:
    """Read the parameters in one entry of a checkpoint, without running what is in it.

    Tensors, plain values and `argparse.Namespace` (the settings of a run) are read; a file with
    anything else pickled in it is refused.

    Args:
        path: the checkpoint.
        what: the writer of the checkpoint, for the message.
        entry: where the parameters are; None where they are all that the file holds.

    Raises:
        ValueError: the file holds pickled objects, is damaged, or has no parameters there.
        FileNotFoundError: there is no such file.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except FileNotFoundError:
        raise
    except Exception as error:  # of a damaged file torch raises whatever its parts do
        raise ValueError(f"{path} is no checkpoint that torch can read: {error}") from error
    state = checkpoint.get(entry) if entry and isinstance(checkpoint, dict) else checkpoint
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        where = "and nothing else" if entry is None else f"in entry {entry!r}"
        raise ValueError(f"{path} is no {what} checkpoint: expected parameters {where}")
    return state


def rename(state_dict: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> Renamed:
    """Return the parameters under their new names, each with its old name.

    Args:
        state_dict: the parameters.
        names: (old, new) parts of names, replaced in this order.
    """
    renamed = {}
    pairs = tuple(names)
    for old_name, value in state_dict.items():
        name = old_name
        for old, new in pairs:
            name = name.replace(old, new)
        renamed[name] = (old_name, value)
    return renamed


def matched(model: nn.Module, given: Renamed, *, what: str) -> dict[str, Tensor]:
    """Return the given parameters in the shapes of a model's own, ready for its `load_state_dict`.

    Args:
        model: the model.
        given: see `fitted`, as for the next.
        what: the model whose parameters are expected, for the message.

    Raises:
        ValueError: parameters are missing, left over, or of another shape; all are listed.
    """
    return fitted(expected_parameters(model, given), given, what=what)


def expected_parameters(model: nn.Module, given: Container[str]) -> dict[str, Tensor]:
    """Return a model's state dict, without what it goes on without.

    Those are the parts of a gated attention that are given none of them: it goes on from a plain
    one (see `GatedAttention`).
    """
    own = model.state_dict()
    for prefix, module in model.named_modules():
        parts = []
        if isinstance(module, GatedAttention):
            parts = [f"{prefix}.{name}" for name in module.state_dict()]
        if not any(name in given for name in parts):
            own = {name: value for name, value in own.items() if name not in parts}
    return own


def fitted(own: Mapping[str, Tensor], given: Renamed, *, what: str) -> dict[str, Tensor]:
    """Return the given parameters in the shapes of the expected ones.

    Shapes agree but for sizes of one (a convolution of width 1 is a linear layer).

    Args:
        own: the expected parameters.
        given: the parameters under the model's names, each with the name that it had (`rename`).
        what: the model whose parameters are expected, for the message.

    Raises:
        ValueError: parameters are missing, left over, or of another shape; all are listed.
    """
    problems = [f"missing: {name}" for name in own if name not in given]
    problems += [f"not known: {old}" for name, (old, _) in given.items() if name not in own]
    problems += [
        f"{old}: expected {tuple(own[name].shape)}, got {tuple(value.shape)}"
        for name, (old, value) in given.items()
        if name in own and not _fits(value, own[name])
    ]
    if problems:
        raise ValueError(f"not the parameters of {what}:\n  " + "\n  ".join(problems))
    return {name: value.reshape(own[name].shape) for name, (_, value) in given.items()}


def _fits(value: Tensor, own: Tensor) -> bool:
    return [n for n in value.shape if n != 1] == [n for n in own.shape if n != 1]


def _refusal(path: Path | str, error: str) -> str:
    found = re.search(r"GLOBAL (\S+)", error)
    what = found[1] if found else "something that is neither a tensor nor a plain value"
    return (
        f"{path} refused: it holds {what}, and reading pickled objects can run any code. If you "
        "trust who wrote it, load it with torch.load(..., weights_only=False) yourself and save "
        "its parameters alone: torch.save({'model': checkpoint['model']}, ...)"
    )


# --- Series: the Flowformer's classifier (thuml/Flowformer, Flowformer_TimeSeries)

_SERIES = (
    ("project_inp.", "embedding."),
    ("pos_enc.pe", "positions.weight"),
    ("encoder.norm.", "norm."),
    ("encoder.attn_layers.", "blocks."),
    (".attention.", ".mixer."),
    (".conv1.", ".linear1."),
    (".conv2.", ".linear2."),
    ("output_layer.", "head."),
)


def rename_series(state_dict: Mapping[str, Tensor]) -> Renamed:
    """Return the parameters of a `FlowformerClassiregressor` as those of `TimeSeriesClassifier`."""
    return rename(state_dict, _SERIES)


# --- Language: the GPT module (thuml/Flowformer), and fairseq's transformer_lm

_GPT = (
    ("transformer.wte.", "embedding."),
    ("transformer.wpe.", "positions."),
    ("transformer.h.", "blocks."),
    ("transformer.ln_f.", "norm."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".attn.", ".mixer."),
    (".mlp.c_fc.", ".linear1."),
    (".mlp.c_proj.", ".linear2."),
    ("lm_head.", "head."),
)

_FAIRSEQ = (
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

FAIRSEQ_EMBEDDING = "decoder.embed_tokens.weight"
_FAIRSEQ_OUTPUT = "decoder.output_projection.weight"


def rename_gpt(state_dict: Mapping[str, Tensor]) -> Renamed:
    """Return the parameters of a published `FlowFormer_GPT` as those of `LanguageModel`."""
    return rename(state_dict, _GPT)


def rename_fairseq(state_dict: Mapping[str, Tensor]) -> Renamed:
    """Return the parameters of fairseq's `transformer_lm` as those of `LanguageModel`.

    Row i of the embedding stays the token i of fairseq's dictionary: 0 to 3 are <s>, <pad>, </s>
    and <unk>. An output layer equal to the embedding is left out (a tied model has none of its
    own). The model is a preset "wikitext-103" with the sizes of the checkpoint.

    Args:
        state_dict: the entry "model" of a checkpoint (`read_fairseq_checkpoint`).
    """
    output, embedding = state_dict.get(_FAIRSEQ_OUTPUT), state_dict.get(FAIRSEQ_EMBEDDING)
    tied = output is not None and embedding is not None and output.equal(embedding)
    left_out = {*_NO_PARAMETERS, *((_FAIRSEQ_OUTPUT,) if tied else ())}
    used = {name: value for name, value in state_dict.items() if name not in left_out}
    return rename(used, _FAIRSEQ)


def convert_fairseq_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters as `rename_fairseq` does, without the names in the file."""
    return {name: value for name, (_, value) in rename_fairseq(state_dict).items()}


def read_fairseq_checkpoint(path: Path | str) -> dict[str, Tensor]:
    """Read the parameters in a checkpoint that fairseq wrote; see `read_checkpoint`."""
    return read_checkpoint(path, what="fairseq")


# --- Images: the Flowformer (thuml/Flowformer, Flowformer_CV), DeiT and timm's VisionTransformer
# name theirs alike: query, key and value are one layer. The Flowformer alone has lists of stages.

_IMAGES = (
    ("patch_embed.", "downsamples."),
    ("blocks.", "stages."),
    ("pos_embed", "positions"),
    ("cls_token", "cls"),
    (".gamma", ".layer_scale"),
    (".attn.proj.", ".mixer.out_projection."),
    (".proj.", "."),
    (".mlp.fc1.", ".linear1."),
    (".mlp.fc2.", ".linear2."),
)
_ONE_STAGE = (("patch_embed.", "patch_embed.0."), ("blocks.", "blocks.0."))

_COUNTERS = ("total_ops", "total_params")  # what a counter of FLOPs left in published checkpoints


def rename_images(state_dict: Mapping[str, Tensor], *, stages: int) -> Renamed:
    """Return the parameters of a published image model as those of `VisionClassifier`.

    Args:
        state_dict: the parameters; entries that a counter of FLOPs left there are passed over.
        stages: the model's stages; with one, `patch_embed` and `blocks` are no lists of stages.
    """
    given = {
        # The first two are the same for all images of a batch.
        name: value[0] if name in ("pos_embed", "cls_token") else value
        for name, value in state_dict.items()
        if not name.endswith(_COUNTERS)
    }
    names = _IMAGES if stages > 1 else (*_ONE_STAGE, *_IMAGES)
    return _split_projections(rename(given, names), ".attn.qkv.")


# --- Trajectories: the Decision Flowformer (thuml/Flowformer, Flowformer_RL) and the Decision
# Transformer (kzl/decision-transformer, gym) name theirs alike, but for the attention: four linear
# layers `attn.att` there, and GPT-2's `attn.c_attn` with query, key and value in one matrix here.
# GPT-2's matrices are stored as [inputs, outputs], those of linear layers as [outputs, inputs].

_TRAJECTORIES = (
    ("embed_timestep.", "timestep_embedding."),
    ("embed_return.", "return_embedding."),
    ("embed_state.", "observation_embedding."),
    ("embed_action.", "action_embedding."),
    ("embed_ln.", "embedding_norm."),
    ("predict_action.0.", "head."),
    ("transformer.h.", "blocks."),
    ("transformer.ln_f.", "norm."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".attn.att.", ".mixer."),
    (".attn.c_proj.", ".mixer.out_projection."),
    (".mlp.c_fc.", ".linear1."),
    (".mlp.c_proj.", ".linear2."),
)

# Heads that no loss ever reached, and an embedding that no token ever used.
_UNUSED = ("predict_state.", "predict_return.", "transformer.wte.")
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, and the value outside of it
_TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")


def published_mixer_of(state_dict: Mapping[str, Tensor]) -> str:
    """Return the mixer of a published decision model: "flow", or "softmax" with GPT-2's layers."""
    return "softmax" if any(".attn.c_attn." in name for name in state_dict) else "flow"


def rename_trajectories(state_dict: Mapping[str, Tensor]) -> Renamed:
    """Return the parameters of a published decision model as those of `DecisionTransformer`.

    Args:
        state_dict: the parameters; those without a use are passed over.
    """
    used = {
        name: value.t() if name.endswith(_TRANSPOSED) else value
        for name, value in state_dict.items()
        if not name.startswith(_UNUSED) and not name.endswith(_BUFFERS)
    }
    return _split_projections(rename(used, _TRAJECTORIES), ".attn.c_attn.")


def _split_projections(renamed: Renamed, joint: str) -> Renamed:
    """Return the parameters with query, key and value, one layer of that name, as three."""
    split: Renamed = {}
    for name, (old, value) in renamed.items():
        if joint not in name:
            split[name] = old, value
            continue
        for part, third in zip(("query", "key", "value"), value.chunk(3), strict=False):
            split[name.replace(joint, f".mixer.{part}_projection.")] = old, third
    return split
