"""Flowformer under the interfaces of other libraries, a room for each.

`sklearn.py` trains, and `runs.py` reads what was trained; nothing else here needs `train`.
"""
