"""Figures in words: durations, bytes, Markdown tables, and a dash where there is no figure."""

from collections.abc import Callable, Iterable, Sequence

MISSING = "–"


def to_markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; characters that would end a cell early are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def show(value: float | int | None, form: Callable[..., str]) -> str:
    """Return a value in a form, or a dash where there is none."""
    return MISSING if value is None else form(value)


def duration(seconds: int | float) -> str:
    """Return seconds with a unit that suits them.

    Examples:
        >>> from flowformer.report.words import duration
        >>> [duration(seconds) for seconds in (0.0123, 4.56, 485, 7380)]
        ['12.3 ms', '4.56 s', '8 min 5 s', '2 h 3 min']
    """
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def memory(count: int | float) -> str:
    """Return bytes in MiB, from about 1,000 MiB on in GiB."""
    mebibytes = count / 2**20
    return f"{mebibytes:.3g} MiB" if mebibytes < 999.5 else f"{mebibytes / 1024:.2f} GiB"
