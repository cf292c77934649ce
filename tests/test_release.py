"""What publishes the package notices what is wrong with it, and does what the Makefile does."""

import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from scripts import check_release, check_wheel

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Make a project that can be published as 1.2.0."""
    monkeypatch.setattr(check_release, "ROOT", tmp_path)
    (tmp_path / "src" / "flowformer").mkdir(parents=True)
    (tmp_path / "src" / "flowformer" / "__init__.py").write_text('__version__ = "1.2.0"  # here\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changes\n\n## 1.2.0 (2026-12-01)\n\n## 1.1.0 (2026-11-01)\n"
    )
    (tmp_path / "CITATION.cff").write_text("version: 1.2.0\ndate-released: 2026-12-01\n")
    return tmp_path


@pytest.mark.usefixtures("project")
def test_a_dated_version_can_be_published():
    assert list(check_release.faults()) == []
    assert list(check_release.faults("v1.2.0")) == []


def test_a_version_that_differs_anywhere_cannot(project):
    assert list(check_release.faults("v1.1.0")) == ["the tag is v1.1.0, not v1.2.0"]
    (project / "CITATION.cff").write_text("version: 1.1.0\ndate-released: 2026-12-01\n")
    assert list(check_release.faults()) == ["CITATION.cff has version 1.1.0, the package 1.2.0"]


@pytest.mark.parametrize(
    ("title", "citation"),
    [
        ("1.2.0 (unreleased)", "version: 1.2.0\n"),
        ("1.2.0 (2026-12-01)", "version: 1.2.0\n"),
        ("1.2.0 (2026-12-01)", "version: 1.2.0\ndate-released: 2026-12-02\n"),
        ("1.1.0 (2026-12-01)", "version: 1.2.0\ndate-released: 2026-12-01\n"),
    ],
)
def test_a_version_without_one_date_cannot(project, title, citation):
    (project / "CHANGELOG.md").write_text(f"# Changes\n\n## {title}\n")
    (project / "CITATION.cff").write_text(citation)
    (fault,) = check_release.faults()
    assert fault.startswith(f"CHANGELOG.md opens with {title!r}")


@pytest.fixture
def dist(tmp_path):
    """Give a function that packs a wheel of a platform and the source archive, of what src/ has."""
    modules = check_wheel.paths("flowformer/**/*.py") | {"flowformer/py.typed"}
    sources = {"setup.py", "MANIFEST.in"}
    sources |= {f"src/{name}" for name in modules | check_wheel.paths("flowformer/csrc/*")}

    def pack(platform, *, without=frozenset(), more=frozenset()):
        with zipfile.ZipFile(tmp_path / f"flowformer-1-py3-none-{platform}.whl", "w") as wheel:
            for name in (modules | more) - without:
                wheel.writestr(name, "")
        with tarfile.open(tmp_path / "flowformer-1.tar.gz", "w:gz") as archive:
            for name in sources - without:
                archive.addfile(tarfile.TarInfo(f"flowformer-1/{name}"), io.BytesIO())
        return tmp_path

    return pack


def test_a_wheel_holds_the_library_where_its_name_says_so(dist):
    dist("any", more={check_wheel.LOG})
    folder = dist("manylinux_2_17_x86_64", more={check_wheel.LIBRARY})
    check_wheel.check_contents(folder, ["manylinux_2_17_x86_64", "any"])
    dist("any", more={check_wheel.LIBRARY})
    with pytest.raises(SystemExit, match=r"none-any.whl and src/ differ in .*cpu\.log.*cpu\.so"):
        check_wheel.check_contents(folder, ["manylinux_2_17_x86_64", "any"])


def test_a_wheel_that_is_missing_or_not_asked_for_is_told(dist):
    folder = dist("any", more={check_wheel.LOG})
    with pytest.raises(SystemExit, match=r"expected wheels of \['win_amd64'\], found .*none-any"):
        check_wheel.check_contents(folder, ["win_amd64"])


@pytest.mark.parametrize("lost", ["flowformer/ops/flow.py", "src/flowformer/csrc/exports.map"])
def test_a_file_that_a_package_lost_is_told(dist, lost):
    folder = dist("any", more={check_wheel.LOG}, without={lost})
    with pytest.raises(SystemExit, match=lost):
        check_wheel.check_contents(folder, ["any"])


def steps(workflow):
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_the_makefile_has_and_pins_what_it_uses(workflow):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    ran = [
        target
        for step in steps(workflow)
        for target in re.findall(r"\bmake ([\w-]+)", step.get("run", ""))
    ]
    assert ran
    assert set(ran) <= targets
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert [
        action for action in used if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action)
    ] == []
