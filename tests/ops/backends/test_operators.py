"""The compiled operators take and return by name what torch hands on one after another."""

import pytest
import torch

from flowformer.ops.backends.arguments import (
    BidirectionalArguments,
    BidirectionalBackwardArguments,
    CausalArguments,
    CausalBackwardArguments,
    CausalGradients,
    ConvolutionArguments,
    ConvolutionBackwardArguments,
    MobileArguments,
    MobileBackwardArguments,
    declared,
    flow_options,
    numbers,
    reader,
    writer,
)
from flowformer.ops.backends.cpu.call import Inputs
from flowformer.ops.options import FlowOptions

# A program that torch.export saved calls them so: an order or a name that changes breaks it.
SCHEMAS = {
    "bidirectional": (
        "(Tensor query, Tensor key, Tensor value, Tensor? query_mask, Tensor? key_mask, "
        "Tensor? cu_seqlens, Tensor? cu_seqlens_k, Tensor? row_scale, int feature_map, int "
        "competes_over, bool allocation, float clamp, float eps, bool keep) -> (Tensor out, "
        "Tensor query_stats, Tensor key_stats, Tensor sums)"
    ),
    "bidirectional_backward": (
        "(Tensor grad_out, Tensor? out, Tensor query, Tensor key, Tensor value, Tensor? "
        "query_mask, Tensor? key_mask, Tensor? cu_seqlens, Tensor? cu_seqlens_k, Tensor? "
        "row_scale, Tensor query_stats, Tensor key_stats, Tensor sums, int feature_map, int "
        "competes_over, bool allocation, float clamp, float eps) -> (Tensor, Tensor, Tensor, "
        "Tensor)"
    ),
    "causal": (
        "(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? cu_seqlens, Tensor? "
        "row_scale, Tensor? log_decay, Tensor? tokens, Tensor? key_sum, Tensor? query_sum, "
        "Tensor? key_flow, "
        "Tensor? query_flow, Tensor? competition, Tensor? key_value, int feature_map, int "
        "competes_over, bool allocation, float clamp, float eps, bool keep, bool "
        "return_state, bool reverse) -> (Tensor out, Tensor tokens, Tensor key_sum, Tensor "
        "query_sum, Tensor key_flow, Tensor query_flow, Tensor competition, Tensor key_value, "
        "Tensor stats, Tensor sums)"
    ),
    "causal_backward": (
        "(Tensor grad_out, Tensor? grad_key_sum, Tensor? grad_query_sum, Tensor? "
        "grad_key_flow, Tensor? grad_query_flow, Tensor? grad_competition, Tensor? "
        "grad_key_value, Tensor? out, Tensor query, Tensor key, Tensor value, Tensor? mask, "
        "Tensor? cu_seqlens, Tensor? row_scale, Tensor? log_decay, Tensor? tokens, Tensor? "
        "key_sum, Tensor? "
        "query_sum, Tensor? key_flow, Tensor? query_flow, Tensor? competition, Tensor? "
        "key_value, Tensor stats, Tensor sums, int feature_map, int competes_over, bool "
        "allocation, float clamp, float eps, bool state_gradient, bool reverse) -> (Tensor, "
        "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
}


MOBILE_SCHEMAS = {
    "mobile": (
        "(Tensor query, Tensor key, Tensor value, Tensor? query_mask, Tensor? key_mask, "
        "Tensor? cu_seqlens, Tensor? cu_seqlens_k, Tensor? row_scale, int feature_map, int "
        "competes_over, bool allocation, float clamp, float eps, bool normalize, bool keep) -> "
        "(Tensor out, Tensor query_stats, Tensor key_stats, Tensor sums)"
    ),
    "mobile_backward": (
        "(Tensor grad_out, Tensor? out, Tensor query, Tensor key, Tensor value, Tensor? "
        "query_mask, Tensor? key_mask, Tensor? cu_seqlens, Tensor? cu_seqlens_k, Tensor? "
        "row_scale, Tensor query_stats, Tensor key_stats, Tensor sums, int feature_map, int "
        "competes_over, bool allocation, float clamp, float eps, bool normalize) -> (Tensor, "
        "Tensor, Tensor, Tensor)"
    ),
}


CONVOLUTION_SCHEMAS = {
    "convolution": (
        "(Tensor x, Tensor weight, Tensor? bias, Tensor? mask, Tensor? cu_seqlens, Tensor? recent, "
        "bool activates, int ahead, bool keep) -> Tensor out"
    ),
    "convolution_backward": (
        "(Tensor grad_out, Tensor x, Tensor weight, Tensor? bias, Tensor? mask, Tensor? "
        "cu_seqlens, Tensor? recent, bool activates, int ahead, bool recent_gradient) -> (Tensor, "
        "Tensor, Tensor, Tensor)"
    ),
}


@pytest.mark.parametrize("name", MOBILE_SCHEMAS)
def test_schemas_of_mobile_attention_stay_what_saved_programs_call(name):
    schema = getattr(torch.ops.flowformer, name).default._schema
    assert str(schema) == f"flowformer::{name}{MOBILE_SCHEMAS[name]}"


@pytest.mark.parametrize("name", SCHEMAS | CONVOLUTION_SCHEMAS)
@pytest.mark.parametrize("prefix", ["", "triton_"])
def test_schemas_that_are_made_of_the_names_stay_what_saved_programs_call(prefix, name):
    schema = getattr(torch.ops.flowformer, f"{prefix}{name}").default._schema
    expected = (SCHEMAS | CONVOLUTION_SCHEMAS)[name]
    assert str(schema) == f"flowformer::{prefix}{name}{expected}"


@pytest.mark.parametrize(
    "kind",
    [
        BidirectionalArguments,
        BidirectionalBackwardArguments,
        CausalArguments,
        CausalBackwardArguments,
        CausalGradients,
        ConvolutionArguments,
        ConvolutionBackwardArguments,
        MobileArguments,
        MobileBackwardArguments,
    ],
)
def test_what_is_laid_out_is_picked_up_again(kind):
    names = [name for _, name in declared(kind)]
    record = reader(kind)(names)
    assert writer(kind)(record) == names
    for name in ("query", "past", "options", "keep"):  # some that stand on the first floor
        if name in kind._fields and name in names:
            assert getattr(record, name) == name


def test_names_lead_to_the_place_of_their_own():
    names = [name for _, name in declared(CausalBackwardArguments)]
    record = reader(CausalBackwardArguments)(names)
    assert record.saved.inputs.past.competition == "competition"
    assert record.saved.kept.stats == "stats"
    assert record.grad_state.grad_key_flow == "grad_key_flow"
    assert record.options.eps == "eps"


@pytest.mark.parametrize(
    "options",
    [
        FlowOptions(),
        FlowOptions("relu", None, 1e-3, None, allocation=False),
        FlowOptions(competition="heads"),
    ],
)
def test_options_survive_as_numbers(options):
    assert flow_options(numbers(options)) == options


def test_the_library_reads_the_inputs_of_either_operator_by_the_same_names():
    names = [name for _, name in declared(BidirectionalArguments)]
    assert [*Inputs._fields] == [*names[:8], "log_decay"]  # the last is of a causal call alone
