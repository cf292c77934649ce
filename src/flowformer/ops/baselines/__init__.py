"""The attentions that Flow-Attention is compared with: functions of tensors, one file each."""

from flowformer.ops.baselines.linear import elu_attention
from flowformer.ops.baselines.linformer import linformer_attention
from flowformer.ops.baselines.softmax import KVState, softmax_attention

__all__ = ["KVState", "elu_attention", "linformer_attention", "softmax_attention"]
