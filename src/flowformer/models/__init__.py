"""Models: mixers, embeddings and heads put together for one kind of task."""
