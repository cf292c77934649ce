"""What is read runs no code, and nothing is fetched but where a command or a flag says so."""

import ast
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("src", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")
)

# Modules whose files hold code, or through which code or data comes from elsewhere.
CODE_IN_FILES = {"cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
NETWORK = {"aiohttp", "ftplib", "httpx", "requests", "socketserver", "urllib3"}
NETWORK |= {"http.client", "urllib.request", "smtplib", "xmlrpc"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "np.lib.format.read_array"),
    *("tempfile.mktemp", "runpy.run_path", "ctypes.PyDLL"),
}

# The functions of other libraries that fetch, and the commands that do: where they are called.
FETCHING = {"load_dataset", "load_classification", "CIFAR10", "from_pretrained", "hf_hub_download"}
FETCHING |= {
    "load_regression",
    "snapshot_download",
    "load_state_dict_from_url",
    "urlopen",
    "urlretrieve",
    "download",
}
FETCHERS = {
    "src/flowformer/data/standins/fetching.py": {"pip download", "apt-get download"},
    "src/flowformer/data/trajectories/minari.py": {"load_dataset"},
    "src/flowformer/data/sequences/pictures.py": {"CIFAR10"},
    "src/flowformer/data/sequences/texts.py": {"load_dataset"},
    "src/flowformer/data/series/uea.py": {"load_classification", "load_regression"},
    "src/flowformer/data/language/corpora.py": {"load_dataset"},
    "src/flowformer/cli/linearize.py": {"from_pretrained"},  # of a model that the user names
}


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the name of what is called: `torch.load`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """The constant that a call gives by keyword; None without one."""
    found = [one.value for one in call.keywords if one.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def unsafe_calls(source: str) -> list[str]:
    """The calls by which a file can run code or write anywhere, or a shell is asked."""
    found = []
    for name, call in calls(source):
        last = name.rpartition(".")[2]
        unsafe = (
            name in FORBIDDEN_CALLS
            or (
                name in ("torch.load", "load_from_checkpoint") and not keyword(call, "weights_only")
            )
            or any(one.arg == "allow_pickle" and not _is_false(one.value) for one in call.keywords)
            or (last in ("extractall", "extract") and keyword(call, "filter") != "data")
            or bool(keyword(call, "shell"))
            or bool(keyword(call, "trust_remote_code"))
        )
        if unsafe:
            found.append(f"line {call.lineno}: {ast.unparse(call)[:80]}")
    return found


def imports(source: str) -> set[str]:
    """Names of all modules that are imported, and of the packages they are in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names | {name.split(".")[0] for name in names}


def fetches(source: str) -> set[str]:
    """What in a module can fetch."""
    found = set()
    for name, _ in calls(source):
        if (last := name.rpartition(".")[2]) in FETCHING:
            found.add(last)
    words = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    found |= {f"{one} download" for one in ("pip", "apt-get") if {one, "download"} <= words}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_in_a_file_is_run(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert unsafe_calls(source) == []
    assert not imports(source) & CODE_IN_FILES


def test_only_the_modules_of_the_table_fetch() -> None:
    found, through = {}, {}
    for path in (path for path in SOURCES if path.is_relative_to(ROOT / "src")):
        source, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        if names := fetches(source):
            found[name] = names
        if modules := imports(source) & NETWORK:
            through[name] = modules
    assert found == FETCHERS
    assert through == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pickle.loads(content)",
        "eval(text)",
        "archive.extractall(folder)",
        "tar.extract(member, folder, filter='fully_trusted')",
        "subprocess.run(command, shell=True)",
        "load('x', trust_remote_code=True)",
    ],
)
def test_what_runs_code_is_told(source: str) -> None:
    assert unsafe_calls(source)


def test_what_is_safe_is_not_told() -> None:
    safe = "torch.load(path, weights_only=True)\nmodel.eval()\nnp.load(path)"
    assert (
        unsafe_calls(f"{safe}\ntar.extractall(folder, filter='data')\npattern = re.compile('a')")
        == []
    )


# In a process whose every connection is refused and written down, in those that it starts, too.
BLOCKER = """
import os, sys

PROGRAMS = ("pip", "apt-get", "curl", "wget", "git", "ssh")


def refuse(event, arguments):
    what = None
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        what = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        what = arguments[1][0]
    elif event == "subprocess.Popen":
        words = [os.path.basename(os.fsdecode(word)) for word in arguments[1]]
        what = next((word for word in words if word in PROGRAMS), None)
    if what is not None and what not in ("localhost", "127.0.0.1", "::1"):
        with open(os.environ["BLOCKED"], "a") as log:
            log.write(f"{event} {what}\\n")
        raise OSError(f"no network in this test: {event} {what}")


sys.addaudithook(refuse)
"""


def run_without_network(code: str, folder: Path, **variables: str) -> tuple[str, str]:
    """Runs code where nothing can be reached; returns its output, and what it tried to reach."""
    (folder / "sitecustomize.py").write_text(BLOCKER)
    log = folder / "blocked"
    log.touch()
    path = os.pathsep.join((str(folder), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "BLOCKED": str(log)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, log.read_text()


def test_a_connection_would_be_seen(tmp_path: Path) -> None:
    code = """
        import socket, subprocess, sys
        for attempt in (
            lambda: socket.create_connection(("192.0.2.1", 9), timeout=1),
            lambda: subprocess.run([sys.executable, "-m", "pip", "--version"]),
        ):
            try:
                attempt()
            except OSError as error:
                print(error)
        inner = "import socket; socket.getaddrinfo('example.org', 80)"
        subprocess.run([sys.executable, "-c", inner])
    """
    _, blocked = run_without_network(code, tmp_path)
    assert blocked.splitlines() == [
        "socket.getaddrinfo 192.0.2.1",
        "subprocess.Popen pip",
        "socket.getaddrinfo example.org",
    ]


def test_importing_everything_and_a_run_on_data_that_is_here_reach_for_nothing(
    tmp_path: Path,
) -> None:
    code = """
        import importlib, pkgutil, warnings
        warnings.simplefilter("ignore")
        import flowformer
        for module in pkgutil.walk_packages(flowformer.__path__, "flowformer."):
            if "libflowformer" not in module.name:  # a library in C, and no module
                importlib.import_module(module.name)
                print(module.name)

        from flowformer.cli import main

        tiny = "--model.dim 16 --model.num-heads 2 --model.num-layers 1 --model.feedforward 32"
        quick = "--training.epochs 1 --training.accelerator cpu --training.progress none"
        for command in (
            "recipes",
            "info",
            "data list",
            f"train japanese-vowels {tiny} {quick} --run-dir run",
            "evaluate run",
            "visualize run",
        ):
            try:
                main(command.split())
            except SystemExit as ended:
                assert not ended.code, command
    """
    out, blocked = run_without_network(code, tmp_path)
    assert blocked == ""
    assert "flowformer.data.trajectories.minari" in out
    assert "japanese-vowels" in out
    assert (tmp_path / "run" / "report" / "index.html").is_file()


def test_data_that_is_not_here_is_fetched_only_by_asking_and_fails_in_words(tmp_path: Path) -> None:
    code = """
        from flowformer.cli import main

        try:
            main(["data", "prepare", "shakespeare", "--output", "text"])
        except SystemExit as ended:
            assert ended.code, "expected no network"
        else:
            raise AssertionError("expected an end")
    """
    _, blocked = run_without_network(code, tmp_path, FLOWFORMER_DATA=str(tmp_path / "cache"))
    assert "pip" in blocked
