"""Image models: the hierarchical Flowformer and DeiT, around any mixer."""
