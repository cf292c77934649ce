"""Parameters of published decision models under our names.

The Decision Flowformer (thuml/Flowformer, Flowformer_RL) and the Decision Transformer
(kzl/decision-transformer, gym) name theirs alike, but for the attention: four linear layers
`attn.att` there, and GPT-2's `attn.c_attn` with query, key and value in one matrix here. GPT-2's
matrices are stored as [inputs, outputs], those of linear layers as [outputs, inputs].
"""

from collections.abc import Mapping

from torch import Tensor

from flowformer.models.loading import rename

_NAMES = (
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

# Heads that no loss ever reached, and an embedding of tokens of which there are none.
_UNUSED = ("predict_state.", "predict_return.", "transformer.wte.")
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, and what stands outside of it
_TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")


def published_mixer_of(state_dict: Mapping[str, Tensor]) -> str:
    """The mixer of a published model: "flow", or "softmax" if it has GPT-2's attention."""
    return "softmax" if any(".attn.c_attn." in name for name in state_dict) else "flow"


def rename_published(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """The parameters under the names of `DecisionTransformer`, each with the name that it had.

    Args:
        state_dict: the parameters; those without a use are passed over.
    """
    used = {
        name: value.t() if name.endswith(_TRANSPOSED) else value
        for name, value in state_dict.items()
        if not name.startswith(_UNUSED) and not name.endswith(_BUFFERS)
    }
    renamed = {}
    for name, (old_name, value) in rename(used, _NAMES).items():
        if ".attn.c_attn." not in name:
            renamed[name] = (old_name, value)
            continue
        for part, third in zip(("query", "key", "value"), value.chunk(3), strict=False):
            own = name.replace(".attn.c_attn.", f".mixer.{part}_projection.")
            renamed[own] = (old_name, third)
    return renamed
