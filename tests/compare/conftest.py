"""The data set and the experiment of tests/train, which comparisons run too."""

from tests.train.conftest import tiny_config, waves, write_ts

__all__ = ["tiny_config", "waves", "write_ts"]
