"""Comparisons of methods: many runs, their table, and the conclusions from it."""
