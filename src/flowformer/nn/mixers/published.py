"""The published attention modules as mixers: their state dicts give the numbers they gave there."""

from collections.abc import Mapping

from torch import Tensor

from flowformer.nn.mixers.building import build_mixer
from flowformer.nn.mixers.projected import ProjectedMixer

# Published class: the mixer that it is. The causal one is the same module called with causal=True.
PUBLISHED = {
    "Flow_Attention": "flow",
    "Flow_Attention_Causal": "flow",
    "Mobile_Attention": "mobile",
}

_PROJECTIONS = ("query_projection", "key_projection", "value_projection", "out_projection")


def published_mixer(
    state_dict: Mapping[str, Tensor],
    num_heads: int,
    *,
    name: str = "Flow_Attention",
    dropout: float = 0.05,
) -> ProjectedMixer:
    """Build the mixer that computes what a published attention module computes.

    The modules are `Flow_Attention` and `Flow_Attention_Causal` (thuml/Flowformer,
    Flow_Attention.py) and `Mobile_Attention` (thuml/MobileAttention). `module(x, x, x)` there is
    `mixer(x)` here, with causal=True for the causal one; `module(x, c, c)` is `mixer(x, c)`.

    Args:
        state_dict: the module's parameters; its widths are read from them.
        num_heads: the module's `n_heads`, which no parameter tells.
        name: the class of the module, a key of PUBLISHED.
        dropout: of the output; 0.05 there.

    Raises:
        ValueError: another name, or parameters missing, left over, or of shapes that do not fit.
    """
    if name not in PUBLISHED:
        raise ValueError(f"unknown published module {name!r}: expected {', '.join(PUBLISHED)}")
    expected = {f"{part}.{kind}" for part in _PROJECTIONS for kind in ("weight", "bias")}
    if state_dict.keys() != expected:
        missing, unknown = expected - state_dict.keys(), state_dict.keys() - expected
        raise ValueError(
            f"not the parameters of a published {name}: missing {sorted(missing)}, "
            f"not known {sorted(unknown)}"
        )
    query = state_dict["query_projection.weight"]
    inner, dim = query.shape
    if num_heads < 1 or inner % num_heads:
        raise ValueError(f"num_heads must divide the inner width {inner}, got {num_heads}")
    mixer = build_mixer(
        PUBLISHED[name],
        dim,
        num_heads,
        head_dim=inner // num_heads,
        context_dim=state_dict["key_projection.weight"].shape[1],
        out_dim=state_dict["out_projection.weight"].shape[0],
        dropout=dropout,
    ).to(query)
    for parameter_name, parameter in mixer.named_parameters():
        if state_dict[parameter_name].shape != parameter.shape:
            raise ValueError(
                f"{parameter_name}: expected {list(parameter.shape)}, "
                f"got {list(state_dict[parameter_name].shape)}"
            )
    mixer.load_state_dict(state_dict)
    return mixer
