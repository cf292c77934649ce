"""The causal form, and causal linear attention: the passes of a forward and of a backward.

docs/attention/gpu.md derives the backward. The arguments are those of torch's operators.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowformer.ops.backends.operators import LINEAR, Numbers, causal_results
from flowformer.ops.backends.triton import launch, sequences
from flowformer.ops.backends.triton.side import Side, on_device, side_of, together
from flowformer.ops.backends.triton.tuning import settings_of


def forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Four dependent prefixes: of chunks, over the chunks, inside of them."""
    query, key, value = map(together, arguments[:3])
    mask, cu_seqlens, row_scale, tokens, *past = arguments[3:13]
    options, (keep, return_state) = Numbers(*arguments[13:18]), arguments[18:]
    with on_device(query):
        side = side_of(query, mask, cu_seqlens, options, settings_of(query, value, causal=True))
        if options.feature_map == LINEAR:
            scale = _scalars(row_scale)
            before, total, _ = launch.states(side, key, value, start=past[5], prefix=True)
            assert before is not None
            out, _ = launch.output(side, query, key, value, before, causal=True, row_scale=scale)
            state = [None] * 6 + [total] if return_state else []
            return causal_results(out, state, None, None, torch.float32)
        count, last = sequences.counts(side, tokens)
        n = count.clamp(min=1).to(torch.float32).contiguous()
        keys, key_sum = _prefix(side, launch.weighted_sum(side, key, None, 0.0), past[0])
        queries, query_sum = _prefix(side, launch.weighted_sum(side, query, None, 0.0), past[1])
        incoming, outgoing, *shares = launch.prefix_flow(side, query, key, n, (keys, queries))
        key_flows, key_flow = _prefix(side, shares[0], past[2])
        query_flows, query_flow = _prefix(side, shares[1], past[3])
        flows = key_flows, query_flows
        sink, source, *_ = launch.prefix_flow(side, query, key, n, flows, (incoming, outgoing))
        scale = incoming.reciprocal()
        if options.allocation:
            scale = scale * torch.sigmoid(sink)
        weight, competition = None, past[4]
        if options.competition:
            share, competition = _compete(side, source, past[4], options)
            weight = (share * n[:, None]).to(torch.float32).contiguous()
        elif competition is None:
            competition = _none_yet(side)
        before, key_value, _ = launch.states(
            side, key, value, weight=weight, start=past[5], prefix=True
        )
        assert before is not None
        out, _ = launch.output(
            side, query, key, value, before, causal=True, row_scale=scale, weight=weight
        )
    state: list[Tensor | None] = []
    if return_state:
        # Without competition it passes by: a copy, since an operator returns none of its inputs.
        competition = competition.clone(memory_format=torch.contiguous_format)
        sums = (key_sum, query_sum, key_flow, query_flow, competition, key_value)
        state = [last.clone(), *sums]
    stats = vectors = None
    if keep:
        stats = torch.stack((incoming, outgoing, sink, source))
        vectors = torch.stack((keys, key_flows, queries, query_flows))
    return causal_results(out, state, stats, vectors, torch.float32)


def _prefix(
    side: Side, parts: Tensor | None, start: Tensor | None, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    assert parts is not None
    before, total = launch.scan(side, parts, start, prefix=True, reverse=reverse)
    assert before is not None
    return before, total


def _scalars(row_scale: Tensor | None) -> Tensor | None:
    """Return [b, t, h] as the kernels read it."""
    return None if row_scale is None else row_scale.transpose(1, 2).float().contiguous()


def _none_yet(side: Side) -> Tensor:
    shape = side.layout.sequences, side.shape[2]
    return torch.full(shape, -torch.inf, dtype=torch.float64, device=side.device)


def _compete(
    side: Side, source: Tensor, before: Tensor | None, options: Numbers
) -> tuple[Tensor, Tensor]:
    before = _none_yet(side) if before is None else before
    return sequences.prefix_compete(side, source, before, options.clamp)


class _Competed(NamedTuple):
    """A competition computed again, with its graph."""

    logits: Tensor
    before: Tensor
    share: Tensor
    end: Tensor

    @classmethod
    def again(
        cls, side: Side, source: Tensor, before: Tensor | None, options: Numbers
    ) -> "_Competed":
        logits = source.detach().requires_grad_()
        before = (_none_yet(side) if before is None else before).detach().requires_grad_()
        with torch.enable_grad():
            return cls(logits, before, *_compete(side, logits, before, options))

    def backward(self, grad_share: Tensor, grad_end: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the gradients of the logits and of what came before."""
        outputs, grads = [self.share], [grad_share]
        if grad_end is not None:
            outputs, grads = [self.share, self.end], [grad_share, grad_end]
        found = torch.autograd.grad(outputs, [self.logits, self.before], grads)
        return found[0], found[1].contiguous()


def _state_grads(empty: Any, found: list[Tensor | None]) -> list[Tensor]:
    return [empty(0, dtype=torch.float64) if grad is None else grad for grad in found]


def backward(grad_out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Four dependent suffixes: see docs/attention/gpu.md."""
    grad_state = list(rest[:6])
    query, key, value, grad, out = map(together, (*rest[7:10], grad_out, rest[6]))
    mask, cu_seqlens, row_scale, tokens, *past = rest[10:20]
    stats, before, options = rest[20], rest[21], Numbers(*rest[22:27])
    tensors = query, key, value, grad
    with on_device(query):
        side = side_of(query, mask, cu_seqlens, options, settings_of(query, value, causal=True))
        if options.feature_map == LINEAR:
            return _linear_backward(side, tensors, _scalars(row_scale), past[5], grad_state[5])
        incoming, outgoing, sink, source = stats
        count, _ = sequences.counts(side, tokens)
        n = count.clamp(min=1).to(torch.float32).contiguous()
        delta = launch.row_products(side, out, grad)
        scale, sink_weight = incoming.reciprocal(), torch.zeros_like(delta)
        if options.allocation:
            allocated = torch.sigmoid(sink)
            scale, sink_weight = allocated * scale, delta * (1 - allocated) / n[:, None]
        weight = competed = None
        if options.competition:
            competed = _Competed.again(side, source, past[4], options)
            weight = (competed.share.detach() * n[:, None]).to(torch.float32).contiguous()
        matrix, _, _ = launch.states(side, key, value, weight=weight, start=past[5], prefix=True)
        grad_matrix, grad_key_value, _ = launch.states(
            side, query, grad, weight=scale, start=grad_state[5], prefix=True, reverse=True
        )
        assert grad_matrix is not None
        grad_value, grad_weight = launch.values_backward(
            side, tensors, grad_matrix, causal=True, row_scale=scale, weight=weight
        )
        source_weight, grad_competition = torch.zeros_like(delta), grad_state[4]
        if competed is not None:
            assert grad_weight is not None
            source_weight, grad_competition = competed.backward(
                (grad_weight * n[:, None]).double(), grad_competition
            )
            source_weight = (source_weight / n[:, None]).contiguous()
        key_part = launch.weighted_sum(side, query, sink_weight, options.eps)
        query_part = launch.weighted_sum(side, key, source_weight, options.eps)
        key_flow, grad_key_flow = _prefix(side, key_part, grad_state[2], reverse=True)
        query_flow, grad_query_flow = _prefix(side, query_part, grad_state[3], reverse=True)
        grad_incoming = -delta / incoming
        grad_outgoing, key_part, query_part = launch.prefix_flow_backward(
            side,
            query,
            key,
            n,
            (incoming, outgoing),
            (sink_weight, source_weight),
            (key_flow, query_flow),
            grad_incoming,
        )
        key_sum, grad_key_sum = _prefix(side, key_part, grad_state[0], reverse=True)
        query_sum, grad_query_sum = _prefix(side, query_part, grad_state[1], reverse=True)
        seen = n[:, None]
        of_source = torch.ones_like(delta) if weight is None else weight
        gradients = launch.FlowGradients(
            sinks=torch.stack((scale, sink_weight, grad_incoming, seen / incoming)),
            sources=torch.stack((of_source, source_weight, grad_outgoing, seen / outgoing)),
            before=before,
            after=torch.stack((query_flow, query_sum, key_flow, key_sum)),
            matrix=matrix,
            grad_matrix=grad_matrix,
        )
        grad_query, grad_key = launch.flow_features_backward(side, tensors, gradients, causal=True)
    assert grad_query is not None
    assert grad_key is not None
    if grad_competition is None:
        grad_competition = torch.zeros_like(grad_key_sum[..., 0])
    fields = [grad_key_sum, grad_query_sum, grad_key_flow, grad_query_flow, grad_competition]
    empty = query.new_empty
    return (
        grad_query,
        grad_key,
        grad_value,
        empty(0, dtype=torch.float32),
        *_state_grads(empty, [*fields, grad_key_value]),
    )


def _linear_backward(
    side: Side,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    row_scale: Tensor | None,
    start: Tensor | None,
    grad_end: Tensor | None,
) -> tuple[Tensor, ...]:
    query, key, value, grad = tensors
    matrix, _, _ = launch.states(side, key, value, start=start, prefix=True)
    grad_matrix, grad_start, _ = launch.states(
        side, query, grad, weight=row_scale, start=grad_end, prefix=True, reverse=True
    )
    assert matrix is not None
    assert grad_matrix is not None
    grad_value, _ = launch.values_backward(
        side, tensors, grad_matrix, causal=True, row_scale=row_scale
    )
    grad_query, grad_key, grad_scale = launch.linear_features_backward(
        side, tensors, (matrix, grad_matrix), row_scale
    )
    empty = query.new_empty
    if grad_scale is None:
        grad_scale = empty(0, dtype=torch.float32)
    else:
        grad_scale = grad_scale.transpose(1, 2).contiguous()
    found = [grad_query, grad_key, grad_value, grad_scale]
    return (*found, *_state_grads(empty, [None] * 5 + [grad_start]))
