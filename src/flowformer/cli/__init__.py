"""The command line: `flowformer recipes | info | train | compare | evaluate | predict | visualize`.

Here: the commands, what they print, and the exit codes (0 done, 1 a run failed, 2 something was
asked for wrongly, 130 stopped by Ctrl-C, 143 by SIGTERM, 141 where who reads the output has left).
What they do is in `flowformer.train`. torch and Lightning are imported by the commands that
compute, when they run.
"""

from flowformer.cli.main import main

__all__ = ["main"]
