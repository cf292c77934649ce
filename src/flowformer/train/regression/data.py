"""The data of a run that predicts a number: read and told apart as those of classifications."""

from flowformer.train.series.data import digest_data

__all__ = ["digest_data"]
