"""Any model of transformers, so small that all of them can be built: its default settings, shrunk.

Names of settings are alike enough across the library: a list of them says what is a width, a number
of layers, a number of heads.
"""

import re
from typing import Any

# The first pattern that is found in the name of a number says what becomes of it.
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size|codebook_size|n_positions_vocab|num_embeddings$", 48),
    (r"(pad|bos|eos)_token_id|decoder_start_token_id|sep_token_id", -1),  # see TOKENS
    (r"token_(id|index)$|_token$", 47),
    (r"num_key_value_heads|kv_heads|num_kv|multi_query_group|n_kv", 2),
    (r"num_global_key_value", 2),
    (r"heads|n_head$|num_head$", 4),
    (r"qk_rope_head_dim", 4),
    (r"qk_nope_head_dim", 4),
    (r"head_dim|d_kv|d_head|head_size|kv_channels|attention_key_size|v_head", 8),
    (r"lora_rank|kv_rank|q_rank|time_step_rank|dt_rank", 8),
    (r"num_experts_per_tok|top_k$|topk$|num_selected|experts_top", 2),
    (r"topk_group|n_group$", 1),
    (r"n_routed_experts|num_.*experts$|num_local_experts|moe_num_experts$", 4),
    (r"first_k_dense|num_nextn|mtp|num_kv_shared_layers|nextn", 0),
    (r"max_position|n_positions|n_ctx|max_source|max_target|max_seq|seq_len$|context_length", 64),
    (r"layers$|n_layer$|num_blocks|depth$|num_layers|n_layers", 2),
    (r"ffn|intermediate|d_ff|n_inner|mlp_dim|mlp_hidden|ff_dim|feedforward|inner_dim", 64),
    (r"d_model|hidden_size|n_embd|^dim$|embed_dim|embedding_size|d_embed|hidden_dim|width$", 32),
    (r"hidden_per_layer|cross_attention_hidden|projection_dim|output_dim|lm_dim|word_embed", 32),
    (r"image_size|img_size", 32),
    (r"patch_size", 8),
    (r"num_mel|n_mels|input_feat_per|mel_bins", 16),
    (r"num_latents|num_queries|num_query_tokens|n_latents", 4),
)
TOKENS = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "sep": 3}


def shrink(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration, those of its parts too, with small sizes."""
    return {name: _small(name, value) for name, value in settings.items()}


def _small(name: str, value: Any) -> Any:
    if isinstance(value, dict) and name not in ("id2label", "label2id", "rope_parameters"):
        return shrink(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None if name in ("layer_types", "layers_block_type", "mlp_layer_types") else value
    for pattern, size in SIZES:
        if re.search(pattern, name):
            token = next((at for kind, at in TOKENS.items() if name.startswith(kind)), 1)
            return token if size == -1 else min(size, value) if size > 4 else (size if value else value)
    return value
