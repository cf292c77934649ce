"""Which photographs are there to show to a run? Prints the paths of those in scikit-image.

    flowformer visualize RUN $(python -m benchmarks photographs)

They are first fetched into the cache of `flowformer.data.standins.fetching`; nothing is installed.
"""

from argparse import Namespace

from flowformer.data.standins.packaged import fetch_photographs


def execute(_: Namespace) -> None:
    """Fetch and print."""
    print(*fetch_photographs(), sep="\n")
