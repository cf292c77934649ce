"""Any model of transformers, so small that all of them can be built: its default settings, shrunk.

Names of settings are alike enough across the library: a list of them says what is a width, a number
of layers, a number of heads.
"""

import re
from typing import Any

# The first pattern that is found in the name of a number says what becomes of it.
SIZES: tuple[tuple[str, int], ...] = (
    (r"first_k_dense|nextn|mtp|num_kv_shared_layers|dense_layers", 0),
    (r"vocab_size|codebook_size|hash_byte_group_vocab", 48),
    (r"token_(id|index)$|image_token|_token$", 47),
    (r"num_key_value_heads|kv_heads|num_kv|n_kv|num_global_key_value", 2),
    (r"mamba_n_heads|mamba_num_heads|^num_heads$.*ssm", 4),
    (r"heads|n_head$|num_head$", 4),
    (r"qk_rope_head_dim|qk_nope_head_dim|rotary_dim", 4),
    (r"mamba_d_head|mamba_head_dim", 16),
    (r"head_dim|d_kv|d_head|head_size|kv_channels|v_head", 8),
    (r"lora_rank|kv_rank|q_rank|time_step_rank|dt_rank", 8),
    (r"num_experts_per_tok|top_?k$|num_selected|experts_top|moe_k$|topk_experts", 2),
    (r"topk_group|n_group$|n_groups$|num_expert_group", 1),
    (r"n_routed_experts|num_.*experts$|num_local_experts", 4),
    (r"max_position|n_positions|n_ctx|max_source|max_target|seq_len|context_length", 64),
    (r"layers$|n_layer$|num_blocks|depth$", 2),
    (r"ffn|intermediate|d_ff|n_inner|mlp_dim|mlp_hidden|ff_dim|feedforward|inner_dim", 64),
    (r"d_model|hidden_size|n_embd|^dim$|embed_dim|emb_dim|embedding_size|d_embed|hidden_dim", 32),
    (r"hidden_per_layer|projection_dim|output_dim|lm_dim|word_embed|rnn_width|lru_width", 32),
    (r"image_size|img_size", 32),
    (r"patch_size", 8),
    (r"num_mel|n_mels|input_feat_per|mel_bins", 16),
    (r"num_latents|num_queries|num_query_tokens|n_latents", 4),
)
TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 3,
    "decoder_start_token_id": 1,
}
# What some configurations leave to the one who builds the model.
MISSING = {
    "head_dim": 8,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
# Lists with an entry for each layer: the constructor makes them anew.
BY_LAYER = re.compile("layer_types|layers_block_type|per_layer_config|layers_type|mlp_layer")
KEPT = ("id2label", "label2id", "rope_parameters", "rope_scaling")


def shrink(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration, those of its parts too, with small sizes."""
    counts = {value for name, value in settings.items() if isinstance(value, int) and "layer" in name}
    rotary = "qk_rope_head_dim" in settings  # then head_dim is that
    return {
        name: 4 if rotary and name == "head_dim" else _small(name, value)
        for name, value in settings.items()
        if not BY_LAYER.search(name)
        and not (isinstance(value, list) and len(value) in counts)
    }


def _small(name: str, value: Any) -> Any:
    if isinstance(value, dict) and name not in KEPT:
        return shrink(value)
    if name in TOKENS or (value is None and name in MISSING):
        return TOKENS.get(name, MISSING.get(name))
    if isinstance(value, bool) or not isinstance(value, int) or value == 0:
        return value
    for pattern, size in SIZES:
        if re.search(pattern, name):
            return min(size, value) if size in (1, 2) and "kv" not in name else size
    return value


# What the rules above do not know, by the type of the model.
_HYBRID = {"mamba_n_heads": 4, "mamba_d_head": 16}
OVERRIDES: dict[str, dict[str, Any]] = {
    "mamba2": {"head_dim": 16},
    "bamba": _HYBRID,
    "falcon_h1": {**_HYBRID, "mamba_d_ssm": 64},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": None}},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "cohere_compass_text": {"layer_types": ["full_attention", "full_attention"]},
    "zamba": {"layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
}
