"""Text from a causal language model: the prompt is read once, then each token costs the same.

With a mixer that has a state of constant size (Flow-Attention and the other linear ones), the time
and the memory of a step do not depend on how many tokens came before, and no context ever ends.
"""

import math
from collections.abc import Callable, Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.generation.beams import beam_search
from flowformer.generation.sampling import Sampling
from flowformer.generation.steps import (
    CausalModel,
    GenerationOutput,
    Prompt,
    UseCache,
    check_prompt,
    evaluation_mode,
    make_decoder,
)
from flowformer.progress import counted


@torch.no_grad()
def generate(  # noqa: PLR0913 - the keywords of transformers' generate
    model: CausalModel,
    input_ids: Int[Tensor, "b t"],
    *,
    attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None = None,
    max_new_tokens: int,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    stop_ids: Collection[int] = (),
    pad_id: int = 0,
    seed: int | None = None,
    use_cache: UseCache = "auto",
    on_token: Callable[[Int[Tensor, " b"]], object] | None = None,
) -> GenerationOutput:
    """Continue the prompts token by token.

    The result is that of giving the model the whole text again for every token. A row ends with its
    stop token, generation with the last row. What a row draws depends on the seed and its place in
    the batch, not on when other rows end.

    Args:
        model: a language model; it is put into evaluation mode meanwhile.
        input_ids: the prompts, padded on the left.
        attention_mask: real tokens of the prompts (True); None when all are.
        max_new_tokens: the most tokens that are generated.
        do_sample: draw each token; otherwise take the most probable one.
        temperature: see `Sampling`, here and for the next three.
        top_k: see `Sampling`.
        top_p: see `Sampling`.
        repetition_penalty: see `Sampling`; the tokens of the prompt count.
        num_beams: more than 1: beam search, which looks for the most probable sequence.
        length_penalty: the penalty of beam search, see `beam_search`.
        stop_ids: tokens that end a row.
        pad_id: the token that fills a row that has ended.
        seed: the seed of the draws; None takes torch's own generator.
        use_cache: carry the state; "auto" does so if the model has one. Without, every token costs
            reading the whole prefix again.
        on_token: called with the tokens of each step [b], `pad_id` in rows that ended before; a
            true answer ends the generation.

    Raises:
        ValueError: an argument is out of its range or contradicts another, a prompt is empty,
            padded elsewhere, outside the vocabulary or longer than the model can read, or the
            model's logits are NaN. All but the last before the first token.
        NotImplementedError: use_cache=True with a mixer that has no state.

    Examples:
        >>> import torch
        >>> from flowformer.generation.generate import generate
        >>> from flowformer.models import LanguageModel, LanguageModelConfig
        >>> config = LanguageModelConfig(dim=16, num_heads=2, num_layers=1, feedforward=32)
        >>> model = LanguageModel(config, vocab_size=100)
        >>> prompt = torch.randint(100, (1, 8))
        >>> generated = generate(model, prompt, max_new_tokens=5, do_sample=True, seed=0)
        >>> generated.sequences.shape
        torch.Size([1, 13])
    """
    sampling = Sampling(
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
    )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    _check_beams(num_beams, length_penalty, settled=not do_sample and on_token is None)
    for token in (pad_id, *stop_ids):
        if not 0 <= token < model.vocab_size:
            raise ValueError(
                f"pad_id and stop_ids must be tokens, 0 to {model.vocab_size - 1}, got {token}"
            )
    prompt = check_prompt(model, input_ids, attention_mask, max_new_tokens)
    decoder = make_decoder(model, use_cache)
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=prompt.input_ids.device)
    with evaluation_mode(model):
        if num_beams > 1:
            return beam_search(
                decoder,
                prompt,
                sampling,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
                length_penalty=length_penalty,
                stops=stops,
                pad_id=pad_id,
            )
        generator = None
        if seed is not None:
            generator = torch.Generator(prompt.input_ids.device).manual_seed(seed)
        row = _Rows(prompt, stops, pad_id)
        logits = decoder.start(prompt)
        seen = prompt.seen(logits.shape[-1]) if repetition_penalty != 1 else None
        for step in counted(range(max_new_tokens), "generating", unit="tokens"):
            token = row.add(sampling.choose(logits, seen, generator), logits)
            if on_token is not None and on_token(token):
                break
            if row.finished.all() or step == max_new_tokens - 1:
                break
            if seen is not None:
                seen.scatter_(1, token[:, None], True)
            logits = decoder.step(token)
        return row.output()


def _check_beams(num_beams: int, length_penalty: float, *, settled: bool) -> None:
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, got {num_beams}")
    if num_beams > 1 and not settled:
        raise ValueError(
            "beam search draws nothing and settles its tokens at the end: it takes neither "
            f"do_sample nor on_token, got {num_beams=}"
        )
    if num_beams == 1 and length_penalty != 1:
        raise ValueError(
            f"length_penalty only ranks sequences of beam search: got {length_penalty} with "
            "num_beams=1"
        )
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be finite, got {length_penalty}")


class _Rows:
    """The rows of a batch and their state."""

    def __init__(self, prompt: Prompt, stops: Int[Tensor, " n"], pad_id: int) -> None:
        ids = prompt.input_ids
        self.finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        self._lengths = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        self._parts = [ids]
        self._log_probs: list[Tensor] = []
        self._stops, self._pad_id = stops, pad_id

    def add(self, token: Int[Tensor, " b"], logits: Float[Tensor, "b v"]) -> Int[Tensor, " b"]:
        """Append a token to each row that goes on, padding to the others; return them."""
        log_prob = logits.log_softmax(-1).gather(1, token[:, None])
        self._log_probs.append(log_prob.masked_fill(self.finished[:, None], 0))
        token = token.masked_fill(self.finished, self._pad_id)
        self._parts.append(token[:, None])
        self._lengths += ~self.finished
        self.finished = self.finished | torch.isin(token, self._stops)
        return token

    def output(self) -> GenerationOutput:
        return GenerationOutput(
            torch.cat(self._parts, 1), torch.cat(self._log_probs, 1), self._lengths, self.finished
        )
