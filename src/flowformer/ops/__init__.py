"""Functions of tensors, ``[batch, time, head, feature]`` in and out: no modules, no files.

``flow.py`` holds the public Flow-Attention functions, which check their arguments, choose a backend
and call it; ``reference.py`` is the oracle and ``chunked.py`` the PyTorch backend; ``linear.py`` is
the second half that every linear attention shares; ``mobile.py`` is Mobile-Attention; ``baselines/``
has one file for each method compared with.
"""

