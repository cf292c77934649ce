"""Data sets: one file per kind of data, and nothing that knows of models.

Here belong readers, the records they give, what is fitted on training data (normalisation), splits
and batching.
"""

from flowformer.data.batches import EpochSampler, SeriesDataset, collate
from flowformer.data.preprocessing import (
    MISSING_POLICIES,
    MissingPolicy,
    Preprocessing,
    require_complete,
)
from flowformer.data.timeseries import (
    SeriesSplit,
    TimeSeriesData,
    as_series,
    encode_labels,
    from_arrays,
    load_ts_files,
    stratified_split,
)
from flowformer.data.ts_format import TsFile, TsFormatError, read_ts
from flowformer.data.uea import load_uea

__all__ = [
    "MISSING_POLICIES",
    "EpochSampler",
    "MissingPolicy",
    "Preprocessing",
    "SeriesDataset",
    "SeriesSplit",
    "TimeSeriesData",
    "TsFile",
    "TsFormatError",
    "as_series",
    "collate",
    "encode_labels",
    "from_arrays",
    "load_ts_files",
    "load_uea",
    "read_ts",
    "require_complete",
    "stratified_split",
]
