"""The kernels, in Triton's language: not typed, checked by running and by compiling them.

`no_type_check` keeps the tests' shape checks from wrapping a kernel, of which Triton reads the
source.
"""
