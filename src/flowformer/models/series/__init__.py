"""Classifiers of time series, by the name of their encoder."""
