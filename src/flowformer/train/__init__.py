"""Training: one run for every kind of experiment, and the folder that it leaves.

`run` has what is done with runs, `study` what a kind adds to one, `kinds` which kinds there are;
each has a folder with its configuration, its data and its study. `loop` is Lightning's, set up for
a run folder, `processes` are those of one run. `config`, `folder`, `records`, `kinds` and the
configurations of the kinds import no torch, so that the command line can list recipes and refuse a
wrong flag at once.
"""
