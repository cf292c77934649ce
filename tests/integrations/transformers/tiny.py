"""Any model of transformers, so small that all of them can be built: its default settings, shrunk.

Names of settings are alike enough across the library: a list of them says what is a width, a number
of layers, a number of heads.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto

# The first pattern that is found in the name of a number says what becomes of it.
SIZES: tuple[tuple[str, int], ...] = (
    (r"first_k_dense|nextn|mtp|num_kv_shared_layers|dense_layers", 0),
    (r"vocab_size|codebook_size|hash_byte_group_vocab", 64),
    (r"token_(id|index)$|image_token|_token$", 63),
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
KEPT = ("id2label", "label2id", "rope_parameters", "rope_scaling", "num_feat_extract_layers")


def shrink(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration, those of its parts too, with small sizes."""
    counts = {
        value
        for name, value in settings.items()
        if isinstance(value, int) and "layer" in name and name not in KEPT
    }
    rotary = "qk_rope_head_dim" in settings  # then head_dim is that
    return {
        name: 4 if rotary and name == "head_dim" else _small(name, value)
        for name, value in settings.items()
        if not BY_LAYER.search(name) and not (isinstance(value, list) and len(value) in counts)
    }


def _small(name: str, value: Any) -> Any:
    if name in KEPT:
        return value
    if isinstance(value, dict):
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
_LOOPED = ("n_input_layers", "n_recurrent_layers", "n_output_layers")
OVERRIDES: dict[str, dict[str, Any]] = {
    "mamba2": {"head_dim": 16},
    "bamba": _HYBRID,
    "falcon_h1": {**_HYBRID, "mamba_d_ssm": 64},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_embds": False},
    "dory": {"num_hidden_layers": 3, **dict.fromkeys(_LOOPED, 1)},
    "xmod": {"default_language": "en_XX"},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "cohere_compass_text": {"layer_types": ["full_attention", "full_attention"]},
    "dots3_note_text": {"num_key_value_heads": 4},
}

# Why some classes are not built: they were looked at by hand.
UNBUILT = {
    "CohereCompassForCausalLM": "its default configuration has rotary settings by kind of layer",
    "DiaForConditionalGeneration": "its decoder reads nine channels of codes at once",
    "FunAsrNanoForConditionalGeneration": "widths of its parts are tied by a rule of its own",
    "Gemma4AssistantForCausalLM": "reads the cache of another model",
    "Gemma4UnifiedAssistantForCausalLM": "reads the cache of another model",
    "KyutaiSpeechToTextForConditionalGeneration": "a codec of sound, of fixed groups of channels",
    "MoonshineStreamingForConditionalGeneration": "its default configuration cannot be saved",
    "VibeVoiceForConditionalGeneration": "a codec of sound of 700 million parameters",
    "VibeVoiceAsrForConditionalGeneration": "a codec of sound of 700 million parameters",
    "VoxtralRealtimeForConditionalGeneration": "text and sound only together",
    "ZambaForCausalLM": "its layers share weights by a pattern that needs dozens of them",
    "Zamba2ForCausalLM": "its layers share weights by a pattern that needs dozens of them",
}


def autoregressive_names() -> Iterator[str]:
    """The names of transformers' classes that predict tokens one after the other, each once.

    Names, since a class is imported when it is asked for: all of them take seconds.
    """
    known, seen = set(dir(transformers)), {"VisionEncoderDecoderModel"}
    yield "VisionEncoderDecoderModel"
    for mapping in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    ):
        for name in mapping.values():
            if name not in seen and name in known:
                seen.add(name)
                yield name


def configuration(kind: type[Any]) -> Any:
    """Its configuration, shrunk, as that of a decoder or of an encoder and a decoder."""
    config = kind.config_class()
    settings = {**shrink(config.to_dict()), **OVERRIDES.get(config.model_type, {})}
    config = type(config).from_dict(settings)
    if kind.__name__.endswith(("ForCausalLM", "LMHeadModel", "Decoder")):
        config.is_encoder_decoder = False
    if hasattr(config, "is_decoder"):
        config.is_decoder = not config.is_encoder_decoder
    return config


def build(kind: type[Any], attn_implementation: str) -> Any:
    """The model in double precision, with weights that make a difference."""
    torch.manual_seed(0)
    model = kind._from_config(
        configuration(kind), attn_implementation=attn_implementation, experts_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model.eval().double()


# Sounds and images of the shapes that encoders take, by the name of their input.
_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "input_ids": ((2, 9),),
    "input_features": ((2, 16, 128), (2, 128, 16), (2, 16, 160)),
    "input_values": ((2, 1600),),
    "inputs": ((2, 1600),),
    "pixel_values": ((2, 3, 32, 32),),
}


def logits(model: Any, tokens: Tensor, mask: Tensor | None = None, **others: Any) -> Tensor:
    """What it predicts after each token, of a decoder's tokens beside the same source."""
    if not model.config.is_encoder_decoder:
        return model(tokens, attention_mask=mask, use_cache=False, **others).logits
    name = model.main_input_name
    failure: Exception | None = None
    for shape in _SHAPES[name]:
        source: Tensor = torch.randn(
            shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        if name == "input_ids":
            source = (source.abs() * 10).long() + 4
        try:
            return model(
                **{"input_values" if name == "inputs" else name: source},
                decoder_input_ids=tokens,
                decoder_attention_mask=mask,
                use_cache=False,
            ).logits
        except (RuntimeError, ValueError) as error:  # of a width that it does not take
            if isinstance(error, NotImplementedError) or "weight for a pair" in str(error):
                raise
            failure = failure or error
    assert failure is not None
    raise failure
