"""The language model with its output layer."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from flowformer.integrations.transformers.configuration import FlowformerConfig
from flowformer.integrations.transformers.modeling import (
    FlowformerModel,
    FlowformerPreTrainedModel,
)
from flowformer.models.cross_entropy import IGNORED
from flowformer.models.inputs import check_range
from flowformer.models.language import LanguageModel
from flowformer.models.output_layer import chunked_loss


class FlowformerForCausalLM(FlowformerPreTrainedModel, GenerationMixin):
    """The model with a linear layer to the vocabulary, which predicts the next token.

    Args:
        config: the configuration.

    Attributes:
        model: the `FlowformerModel`.
        lm_head: the output layer; its matrix is that of the embedding where they are tied.
    """

    _tied_weights_keys = {  # noqa: RUF012 - as transformers declares it
        "lm_head.weight": "model.backbone.embedding.weight"
    }

    def __init__(self, config: FlowformerConfig) -> None:
        """Create and draw the layers."""
        super().__init__(config)
        self.model = FlowformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.lm_head and self.config.initialization == "fairseq":
            initialization.normal_(self.lm_head.weight, std=self.config.hidden_size**-0.5)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # generate leaves the cache to the model, which makes a FlowformerCache

    @classmethod
    def from_language_model(
        cls, model: LanguageModel, tokenizer: Any = None
    ) -> "FlowformerForCausalLM":
        """A copy of one of our models, such as that of a trained run, to save or to push.

        Args:
            model: the model.
            tokenizer: of transformers; the model then knows its special tokens.
        """
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        config = FlowformerConfig.from_language_model_config(
            model.config,
            vocab_size=model.vocab_size,
            **{name: getattr(tokenizer, name, None) for name in names},
        )
        copied, output = cls(config), model.output_weight
        for part in (copied.model.backbone, copied.lm_head):
            part.to(device=output.device, dtype=output.dtype)
        weights = {
            name: value for name, value in model.state_dict().items() if name != "head.weight"
        }
        copied.model.backbone.load_state_dict(weights)
        with torch.no_grad():
            copied.lm_head.weight.copy_(output)
        return copied.eval()

    def to_language_model(self) -> LanguageModel:
        """The way back: a copy as one of our models."""
        config = self.config.language_model_config()
        model = LanguageModel(config, vocab_size=self.config.vocab_size)
        output, weights = self.lm_head.weight, self.model.backbone.state_dict()
        if not config.tie_embeddings:
            weights["head.weight"] = output
        model.to(device=output.device, dtype=output.dtype)
        model.load_state_dict(weights)
        return model.train(self.training)

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "b t dim"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the token after each token.

        Args:
            input_ids: see `FlowformerModel.forward`, here and for the next three.
            attention_mask: likewise.
            past_key_values: likewise.
            inputs_embeds: likewise.
            labels: the tokens again, shifted here; -100 counts for nothing.
            use_cache: see `FlowformerModel.forward`.
            logits_to_keep: return the logits of the last so many places (0 for all of them), or of
                the places in this tensor.
            others: output_hidden_states, return_dict, and what the loss takes (num_items_in_batch,
                shift_labels).

        Raises:
            ValueError: as `FlowformerModel.forward`.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **others,
        )
        hidden, logits, loss = out.last_hidden_state, None, None
        if labels is not None:
            check_range("label", labels, self.config.vocab_size, of="vocabulary", also=IGNORED)
        if labels is not None and self.training and not self.config.logits_in_training:
            loss = self._chunked_loss(hidden, labels, **others)
        else:
            keep = (
                slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            )
            logits = self.lm_head(hidden[:, keep])
            if labels is not None:
                loss = self.loss_function(
                    logits=logits, labels=labels, vocab_size=self.config.vocab_size, **others
                )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
        )

    def _chunked_loss(
        self,
        hidden: Float[Tensor, "b t dim"],
        labels: Int[Tensor, "b t"],
        *,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Int[Tensor, "b t"] | None = None,
        **_others: Any,
    ) -> Float[Tensor, ""]:
        """What loss_function computes, with its keywords, from the hidden states."""
        targets = shift_labels
        if targets is None:
            targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        loss = chunked_loss(hidden, self.lm_head, targets)
        if num_items_in_batch is None:
            return loss
        # The Trainer divides by the tokens of all the batches that it accumulates.
        return loss * (targets != IGNORED).sum() / num_items_in_batch
