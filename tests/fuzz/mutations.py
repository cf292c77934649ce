"""Damage: edits of valid content, drawn by hypothesis, which makes failing ones small."""

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

Edit = Callable[[bytearray], None]

_INTERESTING = tuple(
    value.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
)
_HEADER = 128  # bytes at the beginning, where formats say what follows


def damaged(contents: Sequence[bytes], tokens: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Valid content with one to six edits; now and then bytes that are nothing.

    Args:
        contents: valid ones.
        tokens: parts of such content, put in by some edits.
    """
    edited = st.builds(_edited, st.sampled_from(list(contents)), _edits(contents, tokens))
    return st.one_of(edited, edited, edited, edited, st.binary(max_size=200))


def _edited(content: bytes, edits: list[Edit]) -> bytes:
    changed = bytearray(content)
    for edit in edits:
        edit(changed)
    return bytes(changed)


def _edits(contents: Sequence[bytes], tokens: Sequence[bytes]) -> st.SearchStrategy[list[Edit]]:
    longest = max(map(len, contents))
    anywhere = st.integers(0, longest)
    place = st.one_of(anywhere, anywhere, st.integers(0, min(_HEADER, longest)))
    length = st.one_of(st.integers(1, 16), st.integers(1, max(1, longest)))
    pieces = st.one_of(
        st.sampled_from(_INTERESTING),
        st.binary(min_size=1, max_size=8),
        *([st.sampled_from(list(tokens))] if tokens else []),
    )
    kinds = [
        st.builds(_flip, place, st.integers(0, 7)),
        st.builds(_put, place, pieces),
        st.builds(_insert, place, pieces, st.sampled_from((1, 1, 1, 2, 50))),
        st.builds(_cut, place, length),
        st.builds(_truncate, place),
        st.builds(_repeat, place, length, place),
    ]
    return st.lists(st.one_of(kinds), min_size=1, max_size=6)


def _flip(place: int, bit: int) -> Edit:
    def edit(content: bytearray) -> None:
        if content:
            content[place % len(content)] ^= 1 << bit

    return edit


def _put(place: int, piece: bytes) -> Edit:
    def edit(content: bytearray) -> None:
        content[place : place + len(piece)] = piece

    return edit


def _insert(place: int, piece: bytes, times: int) -> Edit:
    def edit(content: bytearray) -> None:
        content[place:place] = piece * times

    return edit


def _cut(place: int, length: int) -> Edit:
    def edit(content: bytearray) -> None:
        del content[place : place + length]

    return edit


def _truncate(place: int) -> Edit:
    def edit(content: bytearray) -> None:
        del content[place:]

    return edit


def _repeat(place: int, length: int, target: int) -> Edit:
    def edit(content: bytearray) -> None:
        content[target:target] = content[place : place + length]

    return edit
