"""Labelled sequences of the Long Range Arena: readers, generators, preparation and batches."""
