"""What a run is worth: metrics of predictions, comparison tables, generation, rollouts.

Functions of arrays and files only: nothing here knows a model or a training loop.
"""
