"""Whole models, each a configuration and a module that takes its mixer by name."""
