"""The form that is not causal: the passes of its forward and of its backward.

docs/attention/gpu.md derives the backward.
"""

from dataclasses import replace

import torch
from torch import Tensor

from flowformer.ops.backends.arguments import (
    BidirectionalArguments,
    BidirectionalBackwardArguments,
    BidirectionalGradients,
    BidirectionalInputs,
    BidirectionalKept,
    BidirectionalResults,
    Numbers,
)
from flowformer.ops.backends.prefix import LARGEST_EXPONENT
from flowformer.ops.backends.triton import launch, token_sums
from flowformer.ops.backends.triton.side import Side, on_device, side_of, together
from flowformer.ops.backends.triton.tuning import VECTORS, settings_of
from flowformer.ops.packing import check_same_count


def _sides(inputs: BidirectionalInputs, options: Numbers) -> tuple[Side, Side]:
    settings = settings_of(inputs.query, inputs.value, causal=False)
    offsets, offsets_k = inputs.cu_seqlens, inputs.cu_seqlens_k
    name = "cu_seqlens (cu_seqlens_k is not given)" if offsets_k is None else "cu_seqlens_k"
    offsets_k = offsets if offsets_k is None else offsets_k
    if offsets is not None and offsets_k is not None:
        check_same_count(len(offsets) - 1, len(offsets_k) - 1)
    queries = side_of(inputs.query, inputs.query_mask, offsets, options, settings)
    return queries, side_of(inputs.key, inputs.key_mask, offsets_k, options, settings, name)


def _ratio(queries: Side, keys: Side) -> Tensor:
    """Return L/S of each sequence."""
    sinks, sources = token_sums.counts(queries, None)[1], token_sums.counts(keys, None)[1]
    if keys.mask is not None or keys.layout.ends is not None:
        sources = sources.clamp(min=1)
    # Of integers alone the quotient would have the default dtype, which may be a narrow one.
    return sinks.to(torch.float32) / sources


def forward(arguments: BidirectionalArguments) -> BidirectionalResults:
    """Three dependent reductions, then the output."""
    query, key, value = map(together, arguments.inputs[:3])
    options = arguments.options
    with on_device(query):
        queries, keys = _sides(arguments.inputs, options)
        sums = [
            launch.scan(side, launch.weighted_sum(side, x, None, 0.0))[1].float()
            for side, x in ((keys, key), (queries, query))
        ]
        incoming, share = launch.total_flow(queries, query, sums[0], shares=True)
        query_flow = launch.scan(queries, share)[1].float()
        outgoing, share = launch.total_flow(keys, key, sums[1], shares=True)
        key_flow = launch.scan(keys, share)[1].float()
        matrix, logits = _key_value(keys, key, value, query_flow, options)
        allocation = row_scale = None
        if options.allocation:
            allocation = launch.Allocation(
                incoming=incoming, key_flow=key_flow, ratio=_ratio(queries, keys)
            )
        else:
            row_scale = incoming.reciprocal()
        out, conserved = launch.output(
            queries,
            query,
            key,
            value,
            matrix.to(queries.state_dtype),
            causal=False,
            row_scale=row_scale,
            allocation=allocation,
        )
    if not arguments.keep:
        return BidirectionalResults(out)
    conserved = incoming if conserved is None else conserved
    logits = outgoing if logits is None else logits
    vectors = torch.stack((sums[0], key_flow, sums[1], query_flow), 2)
    kept = BidirectionalKept(
        query_stats=torch.stack((incoming, conserved)),
        key_stats=torch.stack((outgoing, logits)),
        sums=torch.cat((vectors.flatten(2), matrix.float().flatten(2)), 2),
    )
    return BidirectionalResults(out, kept)


def _key_value(
    keys: Side, key: Tensor, value: Tensor, query_flow: Tensor, options: Numbers
) -> tuple[Tensor, Tensor | None]:
    """Return Σ kᵀ c v of each sequence, and the logits of the competition."""
    if options.competes_over == 0:
        return launch.states(keys, key, value)[1].float(), None
    packed = keys.layout.ends is not None
    largest = token_sums.LARGEST_PACKED_EXPONENT if packed else LARGEST_EXPONENT
    if options.competes_over == 1 and options.clamp <= largest:
        competes = query_flow, options.clamp
        _, matrix, logits = launch.states(keys, key, value, competes=competes)
        assert logits is not None
        weight = logits.clamp(-options.clamp, options.clamp).exp()
        mask = token_sums.real(keys)
        if mask is not None:
            weight = torch.where(mask, weight, 0)
        total = token_sums.totals(keys, weight)
        share = token_sums.counts(keys, None)[1][:, None] / torch.where(total == 0, 1, total)
        return (matrix * share[..., None, None]).float(), logits
    logits, _ = launch.total_flow(keys, key, query_flow, shares=False)
    competition = token_sums.compete(keys, logits, options)
    return launch.states(keys, key, value, weight=competition.contiguous())[1].float(), logits


def backward(arguments: BidirectionalBackwardArguments) -> BidirectionalGradients:
    """Four passes over either side: see docs/attention/gpu.md."""
    inputs, kept, options = arguments.saved.inputs, arguments.saved.kept, arguments.options
    assert arguments.saved.out is not None, "the operators of this backend keep the output"
    query, key, value = map(together, inputs[:3])
    grad, out = map(together, (arguments.grad_out, arguments.saved.out))
    (incoming, conserved), (outgoing, logits) = kept.query_stats, kept.key_stats
    width, eps = query.shape[3], options.eps
    vectors, matrix = kept.sums[..., : VECTORS * width], kept.sums[..., VECTORS * width :]
    before = vectors.unflatten(2, (VECTORS, width)).movedim(2, 0).contiguous()
    with on_device(query):
        queries, keys = _sides(inputs, options)
        matrix = matrix.unflatten(2, (width, value.shape[3])).to(queries.state_dtype).contiguous()
        delta = launch.row_products(queries, out, grad)
        scale, sink_weight = incoming.reciprocal(), torch.zeros_like(delta)
        if options.allocation:
            ratio = token_sums.spread(queries, _ratio(queries, keys)[:, None])
            allocated = torch.sigmoid(conserved * ratio)
            scale, sink_weight = allocated * scale, delta * (1 - allocated) * ratio
        grad_incoming = -delta / incoming
        grad_matrix = launch.states(queries, query, grad, weight=scale)[1].to(queries.state_dtype)
        competition = torch.ones_like(outgoing)
        if options.competes_over:
            competition = token_sums.compete(keys, logits, options).contiguous()
        grad_value, grad_weight = launch.values_backward(
            keys, (key, key, value, value), grad_matrix, causal=False, weight=competition
        )
        source_weight = torch.zeros_like(outgoing)
        if options.competes_over:
            assert grad_weight is not None
            source_weight = token_sums.compete_backward(
                keys, logits, competition, grad_weight, options
            ).contiguous()

        def total(side: Side, parts: Tensor) -> Tensor:
            return launch.scan(side, parts)[1].float()

        key_flow = total(queries, launch.weighted_sum(queries, query, sink_weight, eps))
        query_flow = total(keys, launch.weighted_sum(keys, key, source_weight, eps))
        parts = launch.total_flow_backward(queries, query, query_flow, incoming, grad_incoming)
        key_sum = total(queries, parts)
        grad_outgoing = torch.zeros_like(outgoing)
        parts = launch.total_flow_backward(keys, key, key_flow, outgoing, grad_outgoing)
        gradients = launch.FlowGradients(
            sinks=torch.stack((scale, sink_weight, grad_incoming, incoming.reciprocal())),
            sources=torch.stack((competition, source_weight, grad_outgoing, outgoing.reciprocal())),
            before=before,
            after=torch.stack((query_flow, total(keys, parts), key_flow, key_sum)),
            matrix=matrix,
            grad_matrix=grad_matrix,
        )
        tensors = query, key, value, grad
        grad_query, _ = launch.flow_features_backward(
            queries, tensors, replace(gradients, sources=None), causal=False
        )
        _, grad_key = launch.flow_features_backward(
            keys, tensors, replace(gradients, sinks=None), causal=False
        )
    assert grad_query is not None
    assert grad_key is not None
    return BidirectionalGradients(grad_query, grad_key, grad_value)
