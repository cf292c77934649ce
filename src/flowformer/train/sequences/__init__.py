"""Experiments on labelled sequences (Long Range Arena)."""
