"""The language model as a model of transformers, without an output layer."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.jit._trace import is_tracing  # torch.jit does not export it
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.output_capturing import capture_outputs

from flowformer.integrations.transformers.attention import ATTENTIONS
from flowformer.integrations.transformers.cache import (
    CACHE,
    FlowformerCache,
    cache_keyword,
    given_cache,
)
from flowformer.integrations.transformers.configuration import FlowformerConfig
from flowformer.models.inputs import check_range, check_tokens
from flowformer.models.language.model import LanguageModel, LanguageState
from flowformer.nn import PositionalEmbedding, TransformerBlock
from flowformer.nn.replace.transformers_owner import check_values, document_offsets, documents_of


class FlowformerPreTrainedModel(PreTrainedModel):
    """The base of the models: their configuration, and how parameters are drawn."""

    config: FlowformerConfig
    config_class = FlowformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]  # noqa: RUF012 - as transformers declares it
    _can_record_outputs = {"hidden_states": TransformerBlock}  # noqa: RUF012
    _is_stateful = True  # tokens cannot be taken back, which assisted generation would do

    def get_correct_attn_implementation(
        self, requested_attention: str | None, is_init_check: bool = False
    ) -> str:
        """Refuse our attention by name: these models have one already.

        Raises:
            ValueError: it was asked for.
        """
        if requested_attention in ATTENTIONS:
            raise ValueError(
                f"attn_implementation={requested_attention!r} is for other models: "
                f"{type(self).__name__} takes its attention from its configuration "
                f"(mixer={self.config.mixer!r}, mixer_options)"
            )
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    def initialize_weights(self) -> None:
        """Draw the parameters that were neither drawn nor loaded so far."""
        for module in self.modules():
            if isinstance(module, LanguageModel):
                _draw_missing(module)
        super().initialize_weights()  # the output layers


def _draw_missing(model: LanguageModel) -> None:
    """Draw the parameters that no file gave, as the constructor does: mixers have their rules."""
    if _is_drawn(model):
        return
    for module in model.modules():
        if isinstance(module, PositionalEmbedding) and module.kind != "learned":
            module.reset_parameters()  # computed, and in no file: no reason to draw the rest
            setattr(module.weight, _DRAWN, True)
    missing = {name: own for name, own in _tensors(model).items() if not _is_drawn(own)}
    if missing:
        drawn = _tensors(LanguageModel(model.config, vocab_size=model.vocab_size))
        with torch.no_grad():
            for name, own in missing.items():
                own.copy_(drawn[name])
    _mark_as_drawn(model)


def _tensors(model: LanguageModel) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


# transformers marks in this attribute what need not be drawn: tensors when they are loaded.
_DRAWN = "_is_hf_initialized"


def _is_drawn(drawn: Tensor | nn.Module) -> bool:
    return getattr(drawn, _DRAWN, False)


def _mark_as_drawn(model: LanguageModel) -> None:
    """Keep transformers from drawing these parameters its own way."""
    for module in model.modules():
        setattr(module, _DRAWN, True)


class FlowformerModel(FlowformerPreTrainedModel):
    """The model up to its last block: hidden states, without an output layer.

    Args:
        config: the configuration.

    Attributes:
        backbone: the language model, without an output layer of its own.
    """

    def __init__(self, config: FlowformerConfig) -> None:
        super().__init__(config)
        # Tied, and so without an output layer: that is the part of FlowformerForCausalLM.
        layers = replace(config.language_model_config(), tie_embeddings=True)
        self.backbone = LanguageModel(layers, vocab_size=config.vocab_size)
        self.gradient_checkpointing = False  # transformers sets it, and that of the backbone
        if not self.backbone.embedding.weight.is_meta:
            _mark_as_drawn(self.backbone)  # it has drawn its parameters itself
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding of the tokens."""
        return self.backbone.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Exchange the embedding of the tokens."""
        if not isinstance(value, nn.Embedding):
            raise TypeError(f"expected an nn.Embedding, got {type(value).__name__}")
        self.backbone.embedding = value

    @capture_outputs
    def forward(  # noqa: PLR0913 - the names that transformers has for them
        self,
        input_ids: Int[Tensor, "b t"] | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "b t dim"] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        position_ids: Tensor | None = None,
        cu_seq_lens_q: Int[Tensor, " n"] | None = None,
        seq_idx: Int[Tensor, "b t"] | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Return the hidden states of the tokens, zero at padded places.

        Args:
            input_ids: the tokens.
            attention_mask: real tokens (1 or True), [b, t] or, with a cache, of all places so far.
                Padding on either side changes nothing.
            cache: the cache of an earlier call, whose sequences these tokens continue. It is
                changed in place. The keyword `past_key_values` is another name of it, as
                transformers had it before 5.24; outputs have the name of the release.
            inputs_embeds: rows of the embedding in place of tokens.
            use_cache: return a cache; None for the configuration's use_cache, in evaluation.
            output_attentions: refused: there is no matrix of weights.
            position_ids: places counted off the mask, as the model counts them itself; or, without
                a mask, those of documents packed into rows: one starts wherever it is 0.
            cu_seq_lens_q: where the documents start in the one row that they are packed into, and
                its length, as `DataCollatorWithFlattening(return_flash_attn_kwargs=True)` gives
                them: no document sees another one.
            seq_idx: the number of the document of each token, another way to say the same.
            others: past_key_values; output_hidden_states and return_dict, which capture_outputs
                reads; what belongs to the loss. A cache by any other name is refused.

        Raises:
            ValueError: neither or both of input_ids and inputs_embeds, a mask of another shape,
                attention weights are asked for, other positions than those counted off the mask,
                or packed documents beside a mask or a cache.
            TypeError: the cache is not ours, or comes by a name that nobody reads.
            NotImplementedError: a cache is asked for and the mixer has no state.
        """
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("output_attentions: these mixers make no matrix of attention weights")
        given = given_cache({"cache": cache, **others})
        past = 0 if given is None else given.get_seq_length()
        embedded, mask = self._embed(input_ids, inputs_embeds, attention_mask, past=past)
        offsets = cu_seq_lens_q
        if offsets is None:
            state = None if given is None else given.state
            offsets = packed_offsets(embedded, position_ids, seq_idx, mask, state)
        if use_cache is None:
            exporting = torch.compiler.is_exporting() or is_tracing()
            use_cache = self.config.use_cache and not (self.training or exporting)
            use_cache = use_cache and offsets is None
        held = FlowformerCache() if use_cache and given is None else given
        if offsets is not None and (mask is not None or held is not None):
            raise ValueError(
                "packed documents (cu_seq_lens_q, seq_idx, position_ids that start anew) have "
                f"neither padding nor a cache: leave out attention_mask, {CACHE} and use_cache=True"
            )
        hidden, state = self.backbone.encode(
            embedded if offsets is None else embedded.flatten(0, 1)[None],
            mask,
            past_states=None if held is None else held.state,
            use_cache=held is not None,
            cu_seqlens=offsets,
        )
        if held is not None:
            held.advance(state, embedded.shape[1])
        hidden = hidden.view_as(embedded)
        return BaseModelOutputWithPast(last_hidden_state=hidden, **cache_keyword(held))

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        *,
        past: int,
    ) -> tuple[Float[Tensor, "b t dim"], Bool[Tensor, "b t"] | None]:
        """Return the embedded tokens, and which of them are real."""
        if input_ids is not None and inputs_embeds is None:
            check_tokens(input_ids, "input_ids")
            rows, length = input_ids.shape
            mask = new_tokens(attention_mask, length, past=past, rows=rows)
            tokens = input_ids if mask is None else input_ids.masked_fill(~mask, 0)
            check_range("token", tokens, self.config.vocab_size, of="vocabulary")
            return self.backbone.embedding(tokens), mask
        if inputs_embeds is not None and input_ids is None:
            rows, length = inputs_embeds.shape[:2]
            return inputs_embeds, new_tokens(attention_mask, length, past=past, rows=rows)
        raise ValueError("expected one of input_ids and inputs_embeds, got both or neither")


def packed_offsets(
    embedded: Float[Tensor, "b t dim"],
    position_ids: Int[Tensor, "rows t"] | None,
    seq_idx: Int[Tensor, "b t"] | None,
    mask: Bool[Tensor, "b t"] | None,
    past: LanguageState | None,
) -> Int[Tensor, " n"] | None:
    """Return the starts of packed documents, all rows joined; None where nothing is packed.

    Raises:
        ValueError: the positions are other ones than the model counts.
    """
    documents = documents_of(position_ids) if seq_idx is None else seq_idx
    if documents is None:
        return None
    rows, length = embedded.shape[:2]
    whole = mask is None and past is None
    if seq_idx is None:
        if whole:
            starts = F.pad(documents.diff(dim=1), (1, 0), value=1) != 0
            right = (position_ids == 0) | ~starts
        else:
            token = torch.arange(length, device=embedded.device)[None]
            token = token if mask is None else mask.cumsum(1) - 1
            right = position_ids == (token if past is None else token + past.position[:, None])
            right = right if mask is None else right | ~mask
        check_values(
            right.all(),
            "position_ids must be the places that this model counts off attention_mask itself, "
            "with 0 at the first token of each row, or of each document packed into a row: leave "
            "them out, or give cu_seq_lens_q",
        )
        if not whole:
            return None
    return document_offsets(documents.expand(rows, length))


def new_tokens(
    attention_mask: Tensor | None, length: int, *, past: int, rows: int | None = None
) -> Bool[Tensor, "b t"] | None:
    """Return the mask of the real ones among the new tokens.

    Args:
        attention_mask: the mask of the new tokens, or of all tokens so far.
        length: number of new tokens.
        past: number of tokens before them.
        rows: number of sequences, where it is to be checked.
    """
    if attention_mask is None:
        return None
    shape = tuple(attention_mask.shape)
    fits = len(shape) == 2 and shape[1] in (length, past + length) and rows in (None, shape[0])
    if not fits:
        expected = f"[b, {length}]" + (f" or [b, {past + length}]" if past else "")
        raise ValueError(
            f"attention_mask must be {expected}, got {shape}"
            f"{'' if rows is None else f' for {rows} rows'}: masks of pairs of tokens have no "
            "meaning here"
        )
    return attention_mask[:, shape[1] - length :].to(torch.bool)
