"""The language model: causal blocks around any mixer, with a state in place of a growing cache."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from flowformer.models.cross_entropy import token_cross_entropy
from flowformer.models.inputs import (
    SequenceShards,
    check_integers,
    check_mask,
    check_range,
    check_tokens,
)
from flowformer.models.language.config import LANGUAGE_PRESETS, LanguageModelConfig
from flowformer.models.language.output import (
    LanguageState,
    OutputLayer,
    chunked_loss,
    last_hidden,
    logits_of,
    shifted,
    tied_matrix,
    token_places,
)
from flowformer.models.published import (
    FAIRSEQ_EMBEDDING,
    matched,
    read_fairseq_checkpoint,
    rename_fairseq,
    rename_gpt,
)
from flowformer.names import IGNORED, require_positive
from flowformer.nn import (
    MIXERS,
    Capabilities,
    PositionalEmbedding,
    ProjectedMixer,
    Rotation,
    TransformerBlock,
    build_mixer,
    build_norm,
    rotation,
    set_sequence_parallel,
)
from flowformer.nn.mixers.building import mixer_options
from flowformer.nn.mixers.head_attention import State

GPT2_STD = 0.02


class LanguageOutput(NamedTuple):
    """The output of a language model.

    Attributes:
        logits: the logits of the next token, at each token; zero at padded places. None if they
            were not asked for.
        loss: mean cross-entropy over the targets that count. None if no targets were given.
        states: the states that continue the sequence. None if they were not asked for.
    """

    logits: Float[Tensor, "b t vocab"] | None
    loss: Float[Tensor, ""] | None
    states: LanguageState | None


class LanguageModel(nn.Module):
    """Token embeddings and positions, pre-norm blocks, a norm, a linear layer to the vocabulary.

    The logits at a token depend on it and on earlier ones. With `use_cache` the model returns a
    state, and a call with that state as `past_states` continues the sequence: prefill the prompt
    once, then one token a call, at constant cost where the mixer's state has a constant size.

    Args:
        config: the architecture.
        vocab_size: number of tokens.

    Attributes:
        gradient_checkpointing: compute each block's activations again in the backward pass
            instead of keeping them (in training only).
        shards: the ranks that share sequences; see `set_sequence_parallel`.

    Examples:
        >>> import torch
        >>> from flowformer.models import LanguageModel, LanguageModelConfig
        >>> config = LanguageModelConfig(dim=16, num_heads=2, num_layers=1, feedforward=32)
        >>> model = LanguageModel(config, vocab_size=100).eval()
        >>> tokens = torch.randint(100, (1, 20))
        >>> model(tokens, labels=tokens).logits.shape
        torch.Size([1, 20, 100])
        >>> states = model(tokens[:, :19], use_cache=True).states  # the prompt, then token by token
        >>> model(tokens[:, 19:], past_states=states, use_cache=True).logits.shape
        torch.Size([1, 1, 100])
    """

    def __init__(self, config: LanguageModelConfig, *, vocab_size: int) -> None:
        """Create and initialise the layers.

        Raises:
            ValueError: no token, an unknown mixer or option, or rotary positions for a mixer that
                has no query and key to turn.
            NotImplementedError: the mixer has no causal form.
        """
        super().__init__()
        require_positive(vocab_size=vocab_size)
        self.config = config
        self._vocab_size = vocab_size
        self.gradient_checkpointing = False
        self.shards: SequenceShards | None = None
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.positions = (
            None
            if config.positions in ("rotary", "none")
            else PositionalEmbedding(config.positions, dim=config.dim, max_length=config.max_length)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_build_block(config) for _ in range(config.num_layers))
        self.norm = build_norm(config.normalization, config.dim, bias=config.bias)
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, vocab_size, bias=False)
        self.reset_parameters()

    @property
    def vocab_size(self) -> int:
        """Number of tokens: the embedding tells it; an adapter around that may not."""
        return getattr(self.embedding, "num_embeddings", self._vocab_size)

    @property
    def has_state(self) -> bool:
        """Whether `use_cache` can be asked for: the mixer has a state."""
        return self._capabilities.state

    @property
    def state_grows(self) -> bool:
        """Whether that state grows with the sequence, and the cost of a token with it."""
        return self._capabilities.growing_state

    @property
    def max_positions(self) -> int | None:
        """The longest sequence, if positions or the mixer bound it."""
        bounded = self.config.positions == "learned" or not self._capabilities.variable_length
        return self.config.max_length if bounded else None

    @property
    def _capabilities(self) -> Capabilities:
        return MIXERS[self.config.mixer].capabilities

    @property
    def output_weight(self) -> Float[Tensor, "vocab dim"]:
        """The matrix of the output layer: that of the embedding where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as the configuration's `initialization` says.

        "gpt2" (Radford et al. 2019, section 2.3): normal with deviation 0.02, biases zero, and the
        two layers of a block that add to the residual stream smaller by √(2 · num_layers). The
        published GPT module forgot the output projection of its attention there.

        "fairseq": embeddings normal with deviation 1/√dim, projections of the attention uniform
        after Xavier (query, key and value smaller by √2), the feed-forward layers as torch draws
        them.

        Norms start as the identity, and sinusoidal tables are computed. What a mixer has beside its
        projections keeps the values that the mixer drew.
        """
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm | PositionalEmbedding):
                module.reset_parameters()
        fairseq = self.config.initialization == "fairseq"
        std = self.config.dim**-0.5 if fairseq else GPT2_STD
        nn.init.normal_(self.embedding.weight, std=std)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=std)
        if self.positions is not None and self.positions.kind == "learned":
            nn.init.normal_(self.positions.weight, std=std)
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            for name, linear in block.linears():
                if fairseq:
                    _draw_as_fairseq(name, linear)
                else:
                    residual = name in ("out_projection", "linear2")
                    scale = (2 * len(self.blocks)) ** -0.5 if residual else 1.0
                    _draw_as_gpt2(linear, GPT2_STD * scale)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Compute activations again in the backward pass, or keep them: less memory, more time."""
        self.gradient_checkpointing = enabled

    def set_sequence_parallel(self, mesh: DeviceMesh | ProcessGroup | None) -> None:
        """Take each rank's tokens as its part of longer sequences, in the order of the ranks.

        Every rank of that dimension of a mesh (or of the group) calls the model with its part:
        tokens, mask and labels; `cu_seqlens` and `past_states` are those of whole sequences. The
        loss and the states are those of whole sequences on every rank, and the gradient of the loss
        is the mean of the ranks' gradients, as DDP and FSDP take it. None ends it.

        Raises:
            NotImplementedError: another mixer than Flow-Attention.
        """
        set_sequence_parallel(self, mesh)
        self.shards = None if mesh is None else SequenceShards(mesh)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return two groups for an optimiser: matrices of linear layers decay, all else does not.

        Biases, norms and embeddings do not decay, nor does the output layer where it is tied to the
        embedding, nor what a mixer learns beside its linear layers.
        """
        matrices = {
            id(parameter)  # the weight, or what a parametrization computes it from
            for module in self.modules()
            if isinstance(module, nn.Linear)
            for parameter in module.parameters()
            if parameter.ndim > 1
        }
        parameters = list(self.parameters())
        return [
            {
                "params": [each for each in parameters if id(each) in matrices],
                "weight_decay": weight_decay,
            },
            {
                "params": [each for each in parameters if id(each) not in matrices],
                "weight_decay": 0.0,
            },
        ]

    def forward(  # noqa: PLR0913 - as in transformers; keywords after the third
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Bool[Tensor, "b t"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        *,
        targets: Int[Tensor, "b t"] | None = None,
        past_states: LanguageState | None = None,
        use_cache: bool = False,
        last_logits_only: bool = False,
        return_logits: bool = True,
        cu_seqlens: Int[Tensor, " offsets"] | None = None,
    ) -> LanguageOutput:
        """Predict the token after each token.

        Args:
            input_ids: the tokens.
            attention_mask: real tokens (True), with padding left or right; None when all are.
                Padding changes nothing: no logits of real tokens, no loss, no state.
            labels: the tokens again, as in transformers: the label of token t + 1 is predicted at
                t; -100 counts for nothing.
            targets: the token to predict at each token, already shifted; -100 counts for nothing.
            past_states: the `states` of an earlier call, whose sequences these tokens continue.
            use_cache: return the states after these tokens.
            last_logits_only: logits [b, 1, vocab] of the last real token in each row only.
            return_logits: without them the loss is computed by chunks of tokens, and the logits of
                all tokens never are in memory.
            cu_seqlens: where each document starts in the one row of packed documents, and its
                length; no document sees another one. Without attention_mask and states.

        Raises:
            ValueError: both labels and targets, a token or label outside the vocabulary (seen on
                the CPU only: looking would make other devices wait), a place outside the table of
                learned positions, or arguments of other shapes.
            NotImplementedError: past_states or use_cache, and the mixer has no state.
        """
        if labels is not None and targets is not None:
            raise ValueError("give labels (shifted here) or targets (already shifted), not both")
        if last_logits_only and not (labels is targets is cu_seqlens is None):
            raise ValueError(
                "last_logits_only has no logits for labels, targets or packed documents: leave "
                "out one"
            )
        check_tokens(input_ids, "input_ids")
        check_mask(attention_mask, input_ids.shape, of="token", name="attention_mask")
        targets = self._targets(input_ids, attention_mask, labels, targets, cu_seqlens)
        if attention_mask is not None:
            input_ids = input_ids.masked_fill(~attention_mask, 0)
        check_range("token", input_ids, self.vocab_size, of="vocabulary")
        hidden, states = self.encode(
            self.embedding(input_ids),
            attention_mask,
            past_states=past_states,
            use_cache=use_cache,
            cu_seqlens=cu_seqlens,
        )
        if not return_logits:
            loss = partial(chunked_loss, hidden, self._output(hidden))
            return LanguageOutput(None, self._mean(loss, targets), states)
        if last_logits_only:
            hidden = last_hidden(hidden, attention_mask, self.shards)
        logits = logits_of(hidden, self._output(hidden))
        return LanguageOutput(
            logits, self._mean(partial(token_cross_entropy, logits), targets), states
        )

    def _targets(
        self,
        input_ids: Int[Tensor, "b t"],
        mask: Bool[Tensor, "b t"] | None,
        labels: Int[Tensor, "b t"] | None,
        targets: Int[Tensor, "b t"] | None,
        cu_seqlens: Int[Tensor, " offsets"] | None,
    ) -> Int[Tensor, "b t"] | None:
        """Return the target of each token, checked; -100 at padded places."""
        if labels is not None:
            check_integers("labels", labels, input_ids.shape)
            targets = shifted(labels, mask, cu_seqlens, self.shards)
        if targets is None:
            return None
        check_integers("targets", targets, input_ids.shape)
        targets = targets if mask is None else targets.masked_fill(~mask, IGNORED)
        check_range("label", targets, self.vocab_size, of="vocabulary", also=IGNORED)
        return targets

    def _output(self, hidden: Float[Tensor, "b t dim"]) -> OutputLayer:
        if self.head is not None:
            return self.head
        return tied_matrix(self.embedding, self.vocab_size, hidden.device)

    def _mean(
        self, loss: Callable[..., Tensor], targets: Int[Tensor, "b t"] | None
    ) -> Float[Tensor, ""] | None:
        """Return the mean over the targets that count, on all ranks; None without targets."""
        if targets is None or self.shards is None:
            return None if targets is None else loss(targets)
        return self.shards.sum(loss(targets, count=self.shards.total((targets != IGNORED).sum())))

    def encode(
        self,
        embedded: Float[Tensor, "b t dim"],
        attention_mask: Bool[Tensor, "b t"] | None = None,
        *,
        past_states: LanguageState | None = None,
        use_cache: bool = False,
        cu_seqlens: Int[Tensor, " offsets"] | None = None,
    ) -> tuple[Float[Tensor, "b t dim"], LanguageState | None]:
        """Return the last hidden states, zero at padded places, and the states.

        Args:
            embedded: the rows of `embedding` for the tokens, before scaling and positions.
            attention_mask: see `forward`, here and for all that follows.
            past_states: the `states` of an earlier call.
            use_cache: return the states.
            cu_seqlens: where packed documents start.
        """
        past, mask = self._past(past_states), attention_mask
        seen = torch.full(embedded.shape[:1], embedded.shape[1], device=embedded.device)
        seen = seen if mask is None else mask.sum(1)
        before = None if self.shards is None else self.shards.before(seen)
        places = token_places(embedded, mask, past_states, cu_seqlens, before)
        x, turn = self._place(embedded, mask, places)
        layers = []
        shared = {"mask": mask, "return_state": use_cache, "turn": turn, "cu_seqlens": cu_seqlens}
        for block, state in zip(self.blocks, past, strict=True):
            call = partial(block, causal=True, state=state, **shared)
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(call, x, use_reentrant=False)
            else:
                x = call(x)
            if use_cache:
                x, layer = x
                layers.append(layer)
        x = self.norm(x)
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0)
        if not use_cache:
            return x, None
        seen = seen if self.shards is None else self.shards.total(seen)
        position = seen if past_states is None else past_states.position + seen
        return x, LanguageState(tuple(layers), position)

    def load_published_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the parameters of the published `FlowFormer_GPT` (thuml/Flowformer).

        Build the model from a preset of that module (learned positions, gelu-tanh, an output layer
        of its own).

        Raises:
            ValueError: parameters are missing, left over, or of another shape; all are listed.
        """
        what = "a published GPT module of this size"
        self.load_state_dict(matched(self, rename_gpt(state_dict), what=what))

    def _place(
        self,
        embedded: Float[Tensor, "b t dim"],
        mask: Bool[Tensor, "b t"] | None,
        places: Int[Tensor, "rows t"] | None,
    ) -> tuple[Float[Tensor, "b t dim"], Rotation | None]:
        """Return the input of the first block, and the turn of rotary positions."""
        x, turn = embedded, None
        if self.config.scale_embeddings:
            x = x * self.config.dim**0.5
        if self.positions is not None:
            x = self.positions(x, places)
        elif self.config.positions == "rotary":
            mixer = self.get_submodule("blocks.0.mixer")
            assert isinstance(mixer, ProjectedMixer)
            if places is None:
                places = torch.arange(x.shape[1], device=x.device)[None]
            wide = torch.promote_types(x.dtype, torch.float32)
            turn = rotation(places, mixer.head_dim, dtype=wide)
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0)
        return self.dropout(x), turn

    def _past(self, states: LanguageState | None) -> tuple[State | None, ...]:
        if states is None:
            return (None,) * len(self.blocks)
        if len(states.layers) != len(self.blocks):
            raise ValueError(
                f"past_states must have a state for each of {len(self.blocks)} layers, "
                f"got {len(states.layers)}"
            )
        return states.layers


def _build_block(config: LanguageModelConfig) -> TransformerBlock:
    mixer = build_mixer(
        config.mixer,
        config.dim,
        config.num_heads,
        **{
            "max_length": config.max_length,
            "bias": config.bias,
            **mixer_options(config, "language"),
        },
    )
    mixer.attention.require("causal")
    if config.positions == "rotary":
        mixer.require_rotary()
    return TransformerBlock(
        mixer,
        config.dim,
        config.feedforward,
        activation=config.activation,
        norm="pre",
        normalization=config.normalization,
        bias=config.bias,
        dropout=config.dropout,
        inner_dropout=0.0,
    )


def _draw_as_gpt2(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _draw_as_fairseq(name: str, linear: nn.Linear) -> None:
    linear.reset_parameters()
    if name == "out_projection":
        nn.init.xavier_uniform_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    elif name.endswith("_projection"):
        nn.init.xavier_uniform_(linear.weight, gain=0.5**0.5)


def load_fairseq_model(
    path: Path | str, config: LanguageModelConfig = LANGUAGE_PRESETS["wikitext-103"]
) -> LanguageModel:
    """Load the language model in a fairseq checkpoint, with its vocabulary.

    Args:
        path: the checkpoint.
        config: the model's architecture, which the file does not tell reliably.

    Raises:
        ValueError: see `read_checkpoint`; or parameters are missing, left over or of
            another shape, which are all listed.
    """
    state = read_fairseq_checkpoint(path)
    if FAIRSEQ_EMBEDDING not in state:
        raise ValueError(f"{path} is no fairseq language model: it has no {FAIRSEQ_EMBEDDING}")
    model = LanguageModel(config, vocab_size=state[FAIRSEQ_EMBEDDING].shape[0])
    what = "a fairseq transformer_lm of this size"
    model.load_state_dict(matched(model, rename_fairseq(state), what=what))
    return model
