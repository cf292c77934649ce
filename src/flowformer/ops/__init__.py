"""Functions of tensors, ``[batch, time, head, feature]`` in and out: no modules, no files.

``flow.py`` holds the public Flow-Attention functions, which check their arguments, choose a
backend and call it; ``reference.py`` is the oracle and ``chunked.py`` the PyTorch backend;
``linear.py`` is the second half that every linear attention shares; ``mobile.py`` is
Mobile-Attention; ``convolution.py`` is what recurrent mixers put before query, key and value;
``steps.py`` knows a decoding step again. The methods that it is compared with
stand in ``flowformer.nn.mixers``.
"""

from flowformer.ops.convolution import short_convolution
from flowformer.ops.flow import FlowMap, flow_attention, flow_attention_step, flow_map
from flowformer.ops.linear import linear_attention
from flowformer.ops.mobile import mobile_attention
from flowformer.ops.state import ConvolutionState, FlowState, LinearState, states_in_place

__all__ = [
    "ConvolutionState",
    "FlowMap",
    "FlowState",
    "LinearState",
    "flow_attention",
    "flow_attention_step",
    "flow_map",
    "linear_attention",
    "mobile_attention",
    "short_convolution",
    "states_in_place",
]
