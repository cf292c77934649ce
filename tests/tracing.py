"""A program of torch.jit.trace, without the warnings that are no news."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The program that the model is for these inputs."""
    with warnings.catch_warnings():
        # Sizes are checked while it is traced, and not in the program.
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.trace")  # deprecated, and in use
        # torch reads all attributes, one that transformers deprecates among them.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        return torch.jit.trace(model, inputs, check_trace=False)
