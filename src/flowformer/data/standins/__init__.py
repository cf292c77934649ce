"""Data sets made, collected or taken from packages, where the published ones cannot be fetched."""
