"""Scores: the measures that rank methods, metrics of predictions, and perplexity.

Functions of arrays and files only: nothing here knows a model or a training loop.
"""
