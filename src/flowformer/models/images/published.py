"""Parameters of published image models under our names: the Flowformer, DeiT, timm's ViT.

The three name them alike: `patch_embed`, `pos_embed`, `blocks`, `norm`, `head`; query, key and
value are one layer `qkv`. The Flowformer has a list of stages in `patch_embed` and in `blocks`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

_NAMES = (
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

_COUNTERS = ("total_ops", "total_params")  # what a counter of FLOPs left in published checkpoints


def rename_published(
    state_dict: Mapping[str, Tensor], *, stages: int
) -> dict[str, tuple[str, Tensor]]:
    """The parameters under the names of `VisionClassifier`, each with the name that it had.

    Args:
        state_dict: the parameters; entries that a counter of FLOPs left there are passed over.
        stages: of the model; with one, `patch_embed` and `blocks` are no lists of stages.
    """
    renamed = {}
    for old_name, value in state_dict.items():
        if old_name.endswith(_COUNTERS):
            continue
        name = old_name
        if name in ("pos_embed", "cls_token"):  # the same for all images of a batch
            value = value[0]
        if stages == 1:
            name = re.sub(r"^(patch_embed|blocks)\.", r"\1.0.", name)
        for old, new in _NAMES:
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=False):
                own = name.replace(".attn.qkv.", f".mixer.{part}_projection.")
                renamed[own] = (old_name, third)
        else:
            renamed[name] = (old_name, value)
    return renamed
