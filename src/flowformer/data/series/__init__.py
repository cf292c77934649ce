"""Labelled time series: their record, readers, preprocessing and batches."""
