"""What a state dict says of the attention inside layers of another library."""

import json
from typing import Any

import torch
from jaxtyping import Int32, Real
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX  # torch has no public name for it


class MixerRecord(nn.Module):
    """Writes the mixer and its options into the state dict of the layer that it stands in.

    The projections of such a layer are those of softmax attention: without a word, a fresh model of
    the other library would take them and compute something else. The name of the key says which
    mixer it was, and `load_state_dict` of a model without it fails of that key, if strict. Loading
    into a layer whose options are others fails too. State dicts without a record load.

    Args:
        mixer: its name.
        defaults: the options of the mixer and what they are where nothing is given.
        options: those given.
    """

    def __init__(self, mixer: str, defaults: dict[str, Any], options: dict[str, Any]) -> None:
        """Hold them, but for `backend`, which is how to compute and not what."""
        super().__init__()
        self.mixer = mixer
        self.defaults = {name: each for name, each in defaults.items() if name != "backend"}
        self.options = {name: each for name, each in options.items() if name != "backend"}

    @property
    def name(self) -> str:
        """Under which it stands in the layer: keys of a state dict show it."""
        return f"mixer_{self.mixer}".replace("-", "_")

    def get_extra_state(self) -> Int32[Tensor, " bytes"]:
        """What `state_dict` writes: JSON as a tensor, for safetensors holds nothing else.

        Not of bytes: who averages state dicts sums all that is in them.
        """
        text = json.dumps({"mixer": self.mixer, "options": self.options}, default=str)
        return torch.tensor(list(text.encode()), dtype=torch.int32, device="cpu")

    def set_extra_state(self, state: Real[Tensor, " bytes"]) -> None:
        """Compare what was saved.

        Raises:
            ValueError: another mixer, or the same with other options.
        """
        saved = json.loads(bytes(map(round, state.tolist())))  # it may have been cast
        given, theirs = (
            json.dumps({**self.defaults, **options}, default=str, sort_keys=True)
            for options in (self.options, saved["options"])
        )
        # The values, not their text: 1 is 1.0.
        if (self.mixer, json.loads(given)) != (saved["mixer"], json.loads(theirs)):
            raise ValueError(
                f"expected what was saved with the mixer {self.mixer!r} and the options {given}, "
                f"got {saved['mixer']!r} and {theirs}"
            )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],  # noqa: ARG002 - torch's signature
        strict: bool,  # noqa: ARG002
        missing_keys: list[str],  # noqa: ARG002
        unexpected_keys: list[str],  # noqa: ARG002
        error_msgs: list[str],
    ) -> None:
        key = prefix + _EXTRA_STATE_KEY_SUFFIX
        state = state_dict.get(key)
        if state is None or state.is_meta:  # saved by torch or before there were records; no values
            return
        try:
            self.set_extra_state(state)
        except ValueError as error:
            # torch does not say here whether the caller is strict.
            error_msgs.append(f"{error}. To load it all the same, take {key!r} out of it")

    def extra_repr(self) -> str:
        """The mixer and the options given, for print(model)."""
        return ", ".join([repr(self.mixer), *(f"{k}={v!r}" for k, v in self.options.items())])
