"""The table of mixers, which their classes fill themselves, and what each of them can do."""

from dataclasses import dataclass, fields
from typing import Any

# The mixers by name, in the order in which `flowformer.nn.mixers` imports them, and the attentions
# of those that need no more than query, key and value: these also go into a layer with projections
# of its own, such as the stand-in for `nn.MultiheadAttention`.
MIXERS: dict[str, Any] = {}
ATTENTIONS: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an attention can do, for users, models and the conformance suite; all else raises.

    Attributes:
        causal: it has a form in which no output depends on a later token.
        cross: the sources may be another sequence, of another length.
        state: a causal sequence may be given in pieces, with a state passed from call to call.
        growing_state: that state grows with the sequence; otherwise its size is constant.
        independent_sinks: in cross-attention each output depends on its own query and the context
            alone. Otherwise the other queries enter it too, later ones among them: as the
            cross-attention of a decoder it would leak the tokens that are to be predicted.
        variable_length: any length is accepted; otherwise `max_length` must be given and bounds it.
        bidirectional: it has a form in which all tokens see each other.
        exact_mask: a padded sequence gives what it gives alone; otherwise the attention's own text
            says what padding changes.
    """

    causal: bool
    cross: bool
    state: bool
    variable_length: bool
    bidirectional: bool = True
    exact_mask: bool = True
    growing_state: bool = False
    independent_sinks: bool = False

    def __str__(self) -> str:
        """Name what it can do, for error messages."""
        names = [field.name for field in fields(self) if getattr(self, field.name)]
        return ", ".join(names).replace("_", " ")


def enter(name: str, mixer: Any) -> None:
    """Give a class of mixers its name; `ProjectedMixer` calls it for its subclasses.

    Raises:
        ValueError: another class has that name. (A class that is defined again takes its own.)
    """
    before = MIXERS.get(name, mixer)
    if (before.__module__, before.__qualname__) != (mixer.__module__, mixer.__qualname__):
        raise ValueError(
            f"a mixer {name!r} is there already: {before.__module__}.{before.__name__}"
        )
    leave(name)
    MIXERS[name] = mixer
    if mixer.kind.inputs == ("query", "key", "value"):
        ATTENTIONS[name] = mixer.kind


def leave(name: str) -> None:
    """Take a name out of the table, such as that of a mixer of one's own after a test."""
    MIXERS.pop(name, None)
    ATTENTIONS.pop(name, None)


def able(capability: str) -> list[str]:
    """Return the names of the mixers that have a capability, as they are by default."""
    return [name for name, mixer in MIXERS.items() if getattr(mixer.capabilities, capability)]
