"""Texts for language models: corpora, tokenizers, token files and batches."""
