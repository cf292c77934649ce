"""Flowformer under the interfaces of other libraries: one module per library."""
