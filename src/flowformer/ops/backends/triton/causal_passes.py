"""The causal form, and causal linear attention: the passes of a forward and of a backward.

docs/attention/gpu.md derives the backward.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from flowformer.ops.backends.arguments import (
    LINEAR,
    CausalArguments,
    CausalBackwardArguments,
    CausalGradients,
    CausalInputs,
    CausalKept,
    CausalResults,
    Numbers,
    StateFields,
    StateGradients,
)
from flowformer.ops.backends.triton import launch, token_sums
from flowformer.ops.backends.triton.side import Side, on_device, side_of, together
from flowformer.ops.backends.triton.tuning import settings_of


def forward(arguments: CausalArguments) -> CausalResults:
    """Four dependent prefixes: of chunks, over the chunks, inside of them."""
    inputs, options = arguments.inputs, arguments.options
    query, key, value = map(together, inputs[:3])
    past = inputs.past
    with on_device(query):
        side = _side(arguments.inputs, options, reverse=arguments.reverse)
        if options.feature_map == LINEAR:
            side, scale = _that_decays(side, inputs), _scalars(inputs.row_scale)
            before, total, _ = launch.states(side, key, value, start=past.key_value, prefix=True)
            assert before is not None
            out, _ = launch.output(side, query, key, value, before, causal=True, row_scale=scale)
            after = StateFields(key_value=total) if arguments.return_state else StateFields()
            return CausalResults(out, after)
        count, last = token_sums.counts(side, past.tokens)
        n = count.clamp(min=1).to(torch.float32).contiguous()
        parts = launch.weighted_sum(side, key, None, 0.0)
        keys, key_sum = _prefix(side, parts, past.key_sum)
        queries, query_sum = _prefix(
            side, launch.weighted_sum(side, query, None, 0.0), past.query_sum
        )
        incoming, outgoing, *shares = launch.prefix_flow(side, query, key, n, (keys, queries))
        key_flows, key_flow = _prefix(side, shares[0], past.key_flow)
        query_flows, query_flow = _prefix(side, shares[1], past.query_flow)
        flows = key_flows, query_flows
        sink, source, *_ = launch.prefix_flow(side, query, key, n, flows, (incoming, outgoing))
        scale = incoming.reciprocal()
        if options.allocation:
            scale = scale * torch.sigmoid(sink)
        weight, competition = None, past.competition
        if options.competes_over:
            share, competition = _compete(side, source, past.competition, options)
            weight = (share * n[:, None]).to(torch.float32).contiguous()
        elif competition is None:
            competition = _none_yet(side)
        before, key_value, _ = launch.states(
            side, key, value, weight=weight, start=past.key_value, prefix=True
        )
        assert before is not None
        out, _ = launch.output(
            side, query, key, value, before, causal=True, row_scale=scale, weight=weight
        )
    state, kept = StateFields(), CausalKept()
    if arguments.return_state:
        # Without competition it passes by: a copy, since an operator returns none of its inputs.
        competition = competition.clone(memory_format=torch.contiguous_format)
        fields = key_sum, query_sum, key_flow, query_flow, competition, key_value
        state = StateFields(last.clone(), *fields)
    if arguments.keep:
        kept = CausalKept(
            stats=torch.stack((incoming, outgoing, sink, source)),
            sums=torch.stack((keys, key_flows, queries, query_flows)),
        )
    return CausalResults(out, state, kept)


def _side(inputs: CausalInputs, options: Numbers, *, reverse: bool) -> Side:
    settings = settings_of(inputs.query, inputs.value, causal=True)
    side = side_of(inputs.query, inputs.mask, inputs.cu_seqlens, options, settings)
    return replace(side, reverse=reverse)


def _prefix(
    side: Side, parts: Tensor | None, start: Tensor | None, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    assert parts is not None
    before, total = launch.scan(side, parts, start, prefix=True, reverse=reverse)
    assert before is not None
    return before, total


def _scalars(given: Tensor | None) -> Tensor | None:
    """Return [b, t, h] as the kernels read it."""
    return None if given is None else given.transpose(1, 2).float().contiguous()


def _tokens_first(found: Tensor | None) -> Tensor | None:
    """Return [b, h, t] as operators return it."""
    return None if found is None else found.transpose(1, 2).contiguous()


def _that_decays(side: Side, inputs: CausalInputs) -> Side:
    """Return the side with the logarithms of decays, if any: zero at padded tokens."""
    given = inputs.log_decay
    if given is not None and inputs.mask is not None:
        given = torch.where(inputs.mask[..., None], given, 0)
    return replace(side, log_decay=_scalars(given))


def _none_yet(side: Side) -> Tensor:
    shape = side.layout.sequences, side.shape[2]
    return torch.full(shape, -torch.inf, dtype=torch.float64, device=side.device)


def _compete(
    side: Side, source: Tensor, before: Tensor | None, options: Numbers
) -> tuple[Tensor, Tensor]:
    before = _none_yet(side) if before is None else before
    return token_sums.prefix_compete(side, source, before, options.clamp)


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


def backward(arguments: CausalBackwardArguments) -> CausalGradients:
    """Four dependent suffixes: see docs/attention/gpu.md."""
    saved, options, after = arguments.saved, arguments.options, arguments.grad_state
    assert saved.out is not None, "the operators of this backend keep the output"
    inputs, past = saved.inputs, saved.inputs.past
    query, key, value = map(together, inputs[:3])
    grad, out = map(together, (arguments.grad_out, saved.out))
    tensors = query, key, value, grad
    with on_device(query):
        side = _side(inputs, options, reverse=arguments.reverse)
        if options.feature_map == LINEAR:
            return _linear_backward(side, tensors, arguments)
        incoming, outgoing, sink, source = saved.kept.stats
        count, _ = token_sums.counts(side, past.tokens)
        n = count.clamp(min=1).to(torch.float32).contiguous()
        delta = launch.row_products(side, out, grad)
        scale, sink_weight = incoming.reciprocal(), torch.zeros_like(delta)
        if options.allocation:
            allocated = torch.sigmoid(sink)
            scale, sink_weight = allocated * scale, delta * (1 - allocated) / n[:, None]
        weight = competed = None
        if options.competes_over:
            competed = _Competed.again(side, source, past.competition, options)
            weight = (competed.share.detach() * n[:, None]).to(torch.float32).contiguous()
        matrix, _, _ = launch.states(
            side, key, value, weight=weight, start=past.key_value, prefix=True
        )
        grad_matrix, grad_key_value, _ = launch.states(
            side, query, grad, weight=scale, start=after.grad_key_value, prefix=True, reverse=True
        )
        assert grad_matrix is not None
        grad_value, grad_weight = launch.values_backward(
            side, tensors, grad_matrix, causal=True, row_scale=scale, weight=weight
        )
        source_weight, grad_competition = torch.zeros_like(delta), after.grad_competition
        if competed is not None:
            assert grad_weight is not None
            source_weight, grad_competition = competed.backward(
                (grad_weight * n[:, None]).double(), grad_competition
            )
            source_weight = (source_weight / n[:, None]).contiguous()
        key_part = launch.weighted_sum(side, query, sink_weight, options.eps)
        query_part = launch.weighted_sum(side, key, source_weight, options.eps)
        key_flow, grad_key_flow = _prefix(side, key_part, after.grad_key_flow, reverse=True)
        query_flow, grad_query_flow = _prefix(side, query_part, after.grad_query_flow, reverse=True)
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
        key_sum, grad_key_sum = _prefix(side, key_part, after.grad_key_sum, reverse=True)
        query_sum, grad_query_sum = _prefix(side, query_part, after.grad_query_sum, reverse=True)
        seen = n[:, None]
        of_source = torch.ones_like(delta) if weight is None else weight
        gradients = launch.FlowGradients(
            sinks=torch.stack((scale, sink_weight, grad_incoming, seen / incoming)),
            sources=torch.stack((of_source, source_weight, grad_outgoing, seen / outgoing)),
            before=saved.kept.sums,
            after=torch.stack((query_flow, query_sum, key_flow, key_sum)),
            matrix=matrix,
            grad_matrix=grad_matrix,
        )
        grad_query, grad_key = launch.flow_features_backward(side, tensors, gradients, causal=True)
    assert grad_query is not None
    assert grad_key is not None
    if grad_competition is None:
        grad_competition = torch.zeros_like(grad_key_sum[..., 0])
    before = StateGradients()
    if arguments.state_gradient:
        before = StateGradients(
            grad_key_sum,
            grad_query_sum,
            grad_key_flow,
            grad_query_flow,
            grad_competition,
            grad_key_value,
        )
    return CausalGradients(grad_query, grad_key, grad_value, past=before)


def _linear_backward(
    side: Side, tensors: tuple[Tensor, Tensor, Tensor, Tensor], arguments: CausalBackwardArguments
) -> CausalGradients:
    query, key, value, grad = tensors
    inputs, grad_end = arguments.saved.inputs, arguments.grad_state.grad_key_value
    side, row_scale = _that_decays(side, inputs), _scalars(inputs.row_scale)
    matrix, _, _ = launch.states(side, key, value, start=inputs.past.key_value, prefix=True)
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
    grad_decay = None
    if side.log_decay is not None:
        grad_decay = launch.decays_backward(side, tensors, (matrix, grad_matrix), row_scale)
    grad_scale, grad_decay = map(_tokens_first, (grad_scale, grad_decay))
    before = StateGradients()
    if arguments.state_gradient:
        before = StateGradients(grad_key_value=grad_start)
    return CausalGradients(grad_query, grad_key, grad_value, grad_scale, grad_decay, before)
