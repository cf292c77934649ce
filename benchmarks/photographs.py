"""Print the paths of the photographs that ship inside scikit-image, to show them to a run.

    flowformer visualize RUN $(python -m benchmarks.photographs)

They are fetched into the cache of `flowformer.data.packages` at first; nothing is installed.
"""

from flowformer.data.photographs import fetch_photographs

if __name__ == "__main__":
    print(*fetch_photographs(), sep="\n")
