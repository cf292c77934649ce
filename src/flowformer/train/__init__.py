"""Training: one LightningModule per kind of training, and the run folder that it leaves.

Here belong configurations (`config`), the loop and its callbacks, and reading a run back. `config`
and `files` import no torch, so that the command line can list recipes and print help at once.
"""
