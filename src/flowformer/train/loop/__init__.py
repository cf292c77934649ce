"""Lightning's Trainer, set up for a run folder: the loop, its callbacks and its checkpoints."""
