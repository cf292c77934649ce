"""Print the paths of the photographs that ship inside scikit-image, to show them to a run.

    flowformer visualize RUN $(python -m benchmarks.photographs)

They are first fetched into the cache of `flowformer.data.standins.fetching`; nothing is installed.
"""

from flowformer.data.standins.corpora import fetch_photographs

if __name__ == "__main__":
    print(*fetch_photographs(), sep="\n")
