"""Experiments on texts."""
