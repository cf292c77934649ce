"""Other people's parameters under our names: renamed, checked, and all problems told at once."""

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def read_checkpoint(
    path: Path | str, *, what: str, entry: str | None = "model"
) -> dict[str, Tensor]:
    """The parameters in one entry of a checkpoint, read without running what is in it.

    Tensors, plain values and `argparse.Namespace` (the settings of a run) are read; a file with
    anything else pickled in it is refused.

    Args:
        path: the checkpoint.
        what: who wrote it, for the message.
        entry: where the parameters are; None where they are all that the file holds.

    Raises:
        ValueError: the file holds pickled objects, is damaged, or has no parameters there.
        FileNotFoundError: there is no such file.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except FileNotFoundError:
        raise
    except Exception as error:  # of a damaged file torch raises whatever its parts do
        raise ValueError(f"{path} is no checkpoint that torch can read: {error}") from error
    state = checkpoint.get(entry) if entry and isinstance(checkpoint, dict) else checkpoint
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        where = "and nothing else" if entry is None else f"in entry {entry!r}"
        raise ValueError(f"{path} is no {what} checkpoint: expected parameters {where}")
    return state


def rename(
    state_dict: Mapping[str, Tensor], names: Iterable[tuple[str, str]]
) -> dict[str, tuple[str, Tensor]]:
    """The parameters under their new names, each with its old name.

    Args:
        state_dict: the parameters.
        names: (old, new) parts of names, replaced in this order.
    """
    renamed = {}
    pairs = tuple(names)
    for old_name, value in state_dict.items():
        name = old_name
        for old, new in pairs:
            name = name.replace(old, new)
        renamed[name] = (old_name, value)
    return renamed


def matched(
    own: Mapping[str, Tensor], given: Mapping[str, tuple[str, Tensor]], *, what: str
) -> dict[str, Tensor]:
    """The given parameters in the shapes of a model's own, ready for `load_state_dict`.

    Shapes agree but for sizes of one (a convolution of width 1 is a linear layer).

    Args:
        own: the model's state dict.
        given: the parameters under the model's names, each with the name that it had (`rename`).
        what: what they should have been, for the message.

    Raises:
        ValueError: parameters are missing, left over, or of another shape; all are listed.
    """
    problems = [f"missing: {name}" for name in own if name not in given]
    problems += [f"not known: {old}" for name, (old, _) in given.items() if name not in own]
    problems += [
        f"{old}: expected {tuple(own[name].shape)}, got {tuple(value.shape)}"
        for name, (old, value) in given.items()
        if name in own and not _fits(value, own[name])
    ]
    if problems:
        raise ValueError(f"not the parameters of {what}:\n  " + "\n  ".join(problems))
    return {name: value.reshape(own[name].shape) for name, (_, value) in given.items()}


def _fits(value: Tensor, own: Tensor) -> bool:
    return [n for n in value.shape if n != 1] == [n for n in own.shape if n != 1]


def _refusal(path: Path | str, error: str) -> str:
    found = re.search(r"GLOBAL (\S+)", error)
    what = found[1] if found else "something that is neither a tensor nor a plain value"
    return (
        f"{path} refused: it holds {what}, and reading pickled objects can run any code. If you "
        "trust who wrote it, load it with torch.load(..., weights_only=False) yourself and save "
        "its parameters alone: torch.save({'model': checkpoint['model']}, ...)"
    )
