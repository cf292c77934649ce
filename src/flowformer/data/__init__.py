"""Data sets, a folder for each kind, and nothing that knows of models.

Here belong readers, the records they give, what is fitted on training data (normalisation), splits
and batching.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowformer.data.arrays import require_classes
    from flowformer.data.language.addition import AdditionProblems, ExactSums, count_exact
    from flowformer.data.language.batches import ContiguousBlocks, PackedDocuments, collate_packed
    from flowformer.data.language.corpora import CORPORA, Corpus, load_corpus
    from flowformer.data.language.preparation import prepare_text
    from flowformer.data.language.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
    from flowformer.data.language.tokens import Counts, PreparedText, TokenArray, open_text
    from flowformer.data.loaders import EpochSampler, StepBatches
    from flowformer.data.series.batches import (
        MISSING_POLICIES,
        MissingPolicy,
        Preprocessing,
        SeriesDataset,
        collate,
        require_complete,
    )
    from flowformer.data.series.collection import (
        SeriesCollection,
        data_set,
        labels_of,
        load_ts_files,
        numbers_of,
        of_ts_file,
    )
    from flowformer.data.series.parting import hold_out, part
    from flowformer.data.series.reading import is_series_file, load_series, read_series
    from flowformer.data.series.records import (
        SeriesSplit,
        TimeSeriesData,
        as_numbers,
        as_series,
        encode_labels,
        from_arrays,
        stratified_split,
        warn_of_swapped_axes,
    )
    from flowformer.data.series.ts_format import TsFile, TsFormatError, read_ts
    from flowformer.data.series.uea import load_uea

__all__ = [
    "CORPORA",
    "MISSING_POLICIES",
    "AdditionProblems",
    "ContiguousBlocks",
    "Corpus",
    "Counts",
    "EpochSampler",
    "ExactSums",
    "MissingPolicy",
    "PackedDocuments",
    "PreparedText",
    "Preprocessing",
    "SeriesCollection",
    "SeriesDataset",
    "SeriesSplit",
    "StepBatches",
    "TimeSeriesData",
    "TokenArray",
    "Tokenizer",
    "TsFile",
    "TsFormatError",
    "as_numbers",
    "as_series",
    "collate",
    "collate_packed",
    "count_exact",
    "data_set",
    "encode_labels",
    "from_arrays",
    "hold_out",
    "is_series_file",
    "labels_of",
    "load_corpus",
    "load_series",
    "load_tokenizer",
    "load_ts_files",
    "load_uea",
    "numbers_of",
    "of_ts_file",
    "open_text",
    "part",
    "prepare_text",
    "read_series",
    "read_ts",
    "require_classes",
    "require_complete",
    "stratified_split",
    "train_tokenizer",
    "warn_of_swapped_axes",
]

_MODULES = (
    *("arrays", "loaders", "series.records", "series.ts_format", "series.uea", "series.batches"),
    *("series.collection", "series.parting", "series.reading"),
    *("language.tokenizers", "language.tokens", "language.corpora", "language.preparation"),
    *("language.batches", "language.addition"),
)


def __getattr__(name: str) -> object:
    """Import public names on first use: recipes know options of data and start without torch."""
    if name in __all__:
        modules = (import_module(f"flowformer.data.{module}") for module in _MODULES)
        return next(getattr(module, name) for module in modules if hasattr(module, name))
    raise AttributeError(f"module 'flowformer.data' has no attribute {name!r}")
