"""Comparisons of methods: many runs, their table, and what can be said of it."""
