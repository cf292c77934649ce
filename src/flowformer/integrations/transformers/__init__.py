"""Flowformer in transformers: its models, its recurrent state as a cache, its attention by name.

Importing this package registers the models with transformers' Auto classes and "flow" as an
attention implementation.
"""

try:
    import transformers as _transformers  # noqa: F401 - what the modules below are made of
except ImportError as error:
    raise ImportError(
        "transformers is needed for these models: pip install 'flowformer[transformers]'"
    ) from error

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.models.auto import modeling_auto as _tables

from flowformer.integrations.transformers.attention import register_attention, register_mixers
from flowformer.integrations.transformers.cache import FlowformerCache
from flowformer.integrations.transformers.configuration import FlowformerConfig
from flowformer.integrations.transformers.heads import (
    FlowformerForCausalLM,
    FlowformerForSequenceClassification,
)
from flowformer.integrations.transformers.linearizing import (
    Linearized,
    LinearizeSettings,
    linearize,
)
from flowformer.integrations.transformers.modeling import (
    FlowformerModel,
    FlowformerPreTrainedModel,
)

AutoConfig.register(FlowformerConfig.model_type, FlowformerConfig)
for _auto, _kind, _names in (
    (AutoModel, FlowformerModel, _tables.MODEL_MAPPING_NAMES),
    (AutoModelForCausalLM, FlowformerForCausalLM, _tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (
        AutoModelForSequenceClassification,
        FlowformerForSequenceClassification,
        _tables.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
):
    _auto.register(FlowformerConfig, _kind)
    # What transformers decides by a class's name, it looks up here: the Trainer shifts the labels
    # of its smoothed loss for the models of the second table alone.
    _names[FlowformerConfig.model_type] = _kind.__name__
register_attention()
register_mixers()

__all__ = [
    "FlowformerCache",
    "FlowformerConfig",
    "FlowformerForCausalLM",
    "FlowformerForSequenceClassification",
    "FlowformerModel",
    "FlowformerPreTrainedModel",
    "LinearizeSettings",
    "Linearized",
    "linearize",
    "register_attention",
]
