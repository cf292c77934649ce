"""Classifiers of one long sequence or of two (Long Range Arena)."""
