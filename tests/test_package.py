"""What is published about the package agrees with the package."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import yaml

from flowformer import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_installed_version_is_that_of_the_package():
    assert importlib.metadata.version("flowformer") == __version__
    assert "version" in PROJECT["dynamic"]


def test_it_runs_from_its_sources_where_nothing_is_installed():
    run = subprocess.run(
        [sys.executable, "-S", "-m", "flowformer", "--version"],  # without site-packages
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, f"flowformer {__version__}\n", "")


def test_package_is_marked_as_typed():
    assert resources.files("flowformer").joinpath("py.typed").is_file()


def test_changelog_opens_with_the_current_version():
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0].split()[0] == __version__


def test_citation_names_this_version_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    titles = [paper["title"] for paper in citation["references"]]
    assert len(titles) == 2
    assert citation["preferred-citation"]["title"] in titles


def test_constraints_pin_every_direct_dependency():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = PROJECT["optional-dependencies"].values()
    requirements = [*PROJECT["dependencies"], *(name for extra in extras for name in extra)]
    names = {re.split(r"[\[<>=~ ]", requirement)[0].lower() for requirement in requirements}
    assert names - {"flowformer"} - pinned == set()


def test_the_page_of_the_installation_has_every_extra():
    page = (ROOT / "docs" / "installation.md").read_text()
    _, _, section = page.partition("## Extras\n")
    rows = re.findall(r"^\| (`[^|]*) \|", section.partition("\n## ")[0], re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(PROJECT["optional-dependencies"])
