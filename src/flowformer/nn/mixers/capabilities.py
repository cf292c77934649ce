"""What an attention can do, as a record that users, models and the conformance suite read."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an attention can do; asking it for anything else raises.

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
        """The names of what it can do, for error messages."""
        names = [field.name for field in fields(self) if getattr(self, field.name)]
        return ", ".join(names).replace("_", " ")
