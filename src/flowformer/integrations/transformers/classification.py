"""The language model as a classifier of sequences."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils.generic import can_return_tuple

from flowformer.integrations.transformers.cache import CACHE, cache_keyword
from flowformer.integrations.transformers.configuration import FlowformerConfig
from flowformer.integrations.transformers.modeling import (
    FlowformerModel,
    FlowformerPreTrainedModel,
    new_tokens,
)
from flowformer.models.inputs import IGNORED, check_range, last_real


class FlowformerForSequenceClassification(FlowformerPreTrainedModel):
    """The model with a linear layer on the last real token of each sequence.

    Args:
        config: the configuration: num_labels, problem_type, classifier_dropout.

    Attributes:
        model: the `FlowformerModel`.
        score: the output layer.

    Examples:
        >>> import torch
        >>> from flowformer.integrations.transformers import (
        ...     FlowformerConfig,
        ...     FlowformerForSequenceClassification,
        ... )
        >>> config = FlowformerConfig(vocab_size=100, dim=16, num_heads=2, num_labels=3)
        >>> FlowformerForSequenceClassification(config)(torch.randint(100, (2, 8))).logits.shape
        torch.Size([2, 3])
    """

    accepts_loss_kwargs = False  # the loss is a batch's mean: the Trainer divides by their number

    def __init__(self, config: FlowformerConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None  # the configuration has chosen where nobody did
        self.num_labels = config.num_labels
        self.model = FlowformerModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "b t dim"] | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Classify the sequences.

        Args:
            input_ids: see `FlowformerModel.forward`, here and for the next three.
            attention_mask: real tokens. Without one, tokens after the last that is not
                pad_token_id are padding (and where there is no pad_token_id, none are).
            cache: see there too.
            inputs_embeds: see there too.
            labels: classes [b] (-100 counts for nothing), or values [b] or [b, num_labels], as
                problem_type has it (or, where it is None, as transformers guesses it).
            use_cache: see `FlowformerModel.forward`.
            others: past_key_values, output_hidden_states, return_dict.

        Raises:
            ValueError: as `FlowformerModel.forward`.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **others,
        )
        hidden = out.last_hidden_state
        real = self._real(input_ids, attention_mask, hidden)
        logits = self.score(self.dropout(last_real(hidden, real)))
        loss = None
        if labels is not None:
            self._check_labels(labels)
            # A class of -100 counts for nothing; a batch of nothing else divides by 1, not by 0.
            count = (labels != IGNORED).sum().clamp(min=1)
            loss = self.loss_function(
                labels=labels, pooled_logits=logits, config=self.config, num_items_in_batch=count
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
            **cache_keyword(getattr(out, CACHE)),
        )

    def _check_labels(self, labels: Tensor) -> None:
        """Refuse labels outside the classes, where labels are classes."""
        kind = self.config.problem_type
        if kind is None and self.num_labels > 1 and labels.dtype in (torch.int64, torch.int32):
            kind = "single_label_classification"
        if kind == "single_label_classification":
            check_range("label", labels, self.num_labels, of="classes", also=IGNORED)

    def _real(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, hidden: Tensor
    ) -> Bool[Tensor, "b t"] | None:
        """Return the mask of the real tokens; None where all are."""
        length = hidden.shape[1]
        if attention_mask is not None:
            past = attention_mask.shape[1] - length  # of its shape, the model has judged already
            real = new_tokens(attention_mask, length, past=past)
        elif input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        else:
            real = None
        return None if real is None else real.to(hidden.device)
