"""The language model with its output layer."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import initialization
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from flowformer.integrations.transformers.cache import (
    CACHE,
    FlowformerCache,
    cache_keyword,
    given_cache,
)
from flowformer.integrations.transformers.configuration import FlowformerConfig
from flowformer.integrations.transformers.modeling import (
    FlowformerModel,
    FlowformerPreTrainedModel,
    new_tokens,
)
from flowformer.models.cross_entropy import token_cross_entropy
from flowformer.models.inputs import IGNORED, check_range
from flowformer.models.language.model import LanguageModel
from flowformer.models.language.output import chunked_loss, shifted
from flowformer.nn.replace.transformers_owner import CACHE_NAMES, document_offsets, documents_of


class FlowformerForCausalLM(FlowformerPreTrainedModel, GenerationMixin):
    """The model with a linear layer to the vocabulary, which predicts the next token.

    Args:
        config: the configuration.

    Attributes:
        model: the `FlowformerModel`.
        lm_head: the output layer; its matrix is that of the embedding where they are tied.

    Examples:
        >>> import torch
        >>> from flowformer.integrations.transformers import FlowformerConfig, FlowformerForCausalLM
        >>> config = FlowformerConfig(vocab_size=100, dim=16, num_heads=2, num_layers=1)
        >>> model = FlowformerForCausalLM(config).eval()
        >>> model.generate(torch.randint(100, (1, 8)), max_new_tokens=5, do_sample=False).shape
        torch.Size([1, 13])
    """

    _tied_weights_keys = {  # noqa: RUF012 - as transformers declares it
        "lm_head.weight": "model.backbone.embedding.weight"
    }

    def __init__(self, config: FlowformerConfig) -> None:
        super().__init__(config)
        self.model = FlowformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_function = _next_token_loss
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.lm_head and self.config.initialization == "fairseq":
            initialization.normal_(self.lm_head.weight, std=self.config.hidden_size**-0.5)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # a DynamicCache holds keys and values

    def _prepare_cache_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, generation_config: Any, model_kwargs: dict[str, Any], *others: Any, **named: Any
    ) -> None:
        """Give generate a cache of ours to fill.

        Raises:
            ValueError: it was asked for another kind of cache, or given two.
            TypeError: it was given one of another kind.
            NotImplementedError: the model is to be the assistant of another one.
        """
        if generation_config.is_assistant:
            raise NotImplementedError(
                f"{type(self).__name__} cannot be the assistant model of another one, which takes "
                "guessed tokens back: its state is a sum over all of them"
            )
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} is a cache of "
                "keys and values: leave it out, for this model has its own (FlowformerCache), of "
                "constant size for flow and its linear kin"
            )
        cache = given_cache({name: model_kwargs.pop(name, None) for name in CACHE_NAMES})
        if cache is not None:
            model_kwargs.update(cache_keyword(cache))
        prepare: Any = super()._prepare_cache_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        prepare(generation_config, model_kwargs, *others, **named)
        if generation_config.use_cache and cache is None:
            model_kwargs.update(cache_keyword(FlowformerCache()))

    @classmethod
    def from_language_model(
        cls, model: LanguageModel, tokenizer: Any = None
    ) -> "FlowformerForCausalLM":
        """Return a copy of one of our models, such as that of a trained run, to save or to push.

        Args:
            model: the model.
            tokenizer: a tokenizer of transformers; the model then knows its special tokens.
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
        """Return a copy as one of our models, which is the way back."""
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
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "b t dim"] | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the token after each token.

        Args:
            input_ids: see `FlowformerModel.forward`, here and for the next three.
            attention_mask: see there too.
            cache: see there too.
            inputs_embeds: see there too.
            labels: the tokens again [b, t], shifted here; -100 counts for nothing, nor does what a
                padded place would predict, or a document's end of the next one's first token.
            use_cache: see `FlowformerModel.forward`.
            logits_to_keep: return the logits of the last so many places (0 for all of them), or of
                the places in this tensor; the loss is that of these places.
            others: past_key_values, output_hidden_states, return_dict, cu_seq_lens_q, and what the
                loss takes (num_items_in_batch, shift_labels).

        Raises:
            ValueError: as `FlowformerModel.forward`, and for labels of another shape.
        """
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **others,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden, logits, loss = out.last_hidden_state[:, keep], None, None
        targets = others.pop("shift_labels", None)
        if labels is not None or targets is not None:
            targets = _targets(out.last_hidden_state, labels, targets, attention_mask, **others)
            check_range("label", targets, self.config.vocab_size, of="vocabulary", also=IGNORED)
            targets = targets[:, keep]
        if targets is not None and self.training and not self.config.logits_in_training:
            count = others.get("num_items_in_batch")
            loss = chunked_loss(hidden, self.lm_head, targets, count=count)
        else:
            logits = self.lm_head(hidden)
            if targets is not None:
                loss = self.loss_function(
                    logits=logits,
                    labels=labels,
                    vocab_size=self.config.vocab_size,
                    shift_labels=targets,
                    **others,
                )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
            **cache_keyword(getattr(out, CACHE)),
        )


def _targets(
    hidden: Float[Tensor, "b t dim"],
    labels: Tensor | None,
    targets: Tensor | None,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Int[Tensor, " n"] | None = None,
    position_ids: Int[Tensor, "rows t"] | None = None,
    seq_idx: Int[Tensor, "b t"] | None = None,
    **_others: Any,
) -> Int[Tensor, "b t"]:
    """Return the target of each place, as `LanguageModel` has it."""
    given = labels if targets is None else targets
    assert given is not None
    b, t = hidden.shape[:2]
    if given.shape != (b, t):
        name = "labels" if targets is None else "shift_labels"
        raise ValueError(f"{name} must be [batch, time] = [{b}, {t}], got {list(given.shape)}")
    given = given.to(hidden.device)
    mask = None
    if attention_mask is not None:  # of its shape, the model has judged already
        mask = new_tokens(attention_mask, t, past=attention_mask.shape[1] - t)
        mask = mask.to(hidden.device) if mask is not None else None
    if targets is None:
        offsets = cu_seq_lens_q
        documents = documents_of(position_ids) if seq_idx is None else seq_idx
        if offsets is None and mask is None and documents is not None:
            offsets = document_offsets(documents.expand(b, t))
        packed = given if offsets is None else given.reshape(1, -1)
        given = shifted(packed, mask, offsets, None).view(b, t)
    return given if mask is None else given.masked_fill(~mask, IGNORED)


def _next_token_loss(
    logits: Float[Tensor, "b t vocab"],
    shift_labels: Int[Tensor, "b t"],
    num_items_in_batch: Tensor | int | None = None,
    **_others: Any,
) -> Float[Tensor, ""]:
    """In place of transformers' own, which is nan where nothing is to be predicted.

    The Trainer gives the number of targets of all batches that it accumulates.
    """
    return token_cross_entropy(logits, shift_labels, count=num_items_in_batch)
