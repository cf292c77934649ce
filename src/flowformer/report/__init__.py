"""Pictures and the HTML report of a run.

Works on arrays and on the files of a run folder: nothing here knows a model or a training loop.
"""
