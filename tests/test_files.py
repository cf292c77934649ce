"""Files appear whole or not at all."""

import contextlib
import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from flowformer import files
from flowformer.files import (
    atomic_file,
    locked,
    remove_unfinished,
    require_no_input,
    write_atomically,
)


def test_an_error_while_writing_keeps_the_old_content_and_leaves_nothing(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "old")
    with contextlib.suppress(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"ne")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_the_old_content_stands_until_the_new_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    pipe, told = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: told.append(pipe.read_text()), daemon=True)
    reader.start()
    write_atomically(pipe, "told")
    assert pipe.is_fifo()
    reader.join(10)
    assert told == ["told"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    kept = tmp_path / "a" / "file.txt"
    write_atomically(kept, "content")
    # A kill leaves the hidden file of a write that never ended.
    killed = atomic_file(tmp_path / "a" / "other.txt")
    killed.__enter__().write(b"half")
    assert len(list((tmp_path / "a").iterdir())) == 2
    remove_unfinished(tmp_path)
    assert list((tmp_path / "a").iterdir()) == [kept]


def test_who_is_refused_a_lock_is_told_who_has_it(tmp_path):
    path, told = tmp_path / ".lock", []
    mine = f"process {os.getpid()} on {socket.gethostname()}, since 20"
    with (
        locked(path),
        pytest.raises(BlockingIOError, match=rf"the folder is taken \({mine}"),
        locked(path, refusal="the folder is taken", patience=0.3, on_wait=told.append),
    ):
        pass
    assert len(told) == 1
    assert told[0].startswith(mine)


def test_a_lock_is_given_to_who_waits_for_it_and_its_file_is_gone_in_the_end(tmp_path):
    path, order = tmp_path / "new" / ".lock", []

    def wait() -> None:
        with locked(path, patience=30.0):
            assert json.loads(path.read_text())["pid"] == os.getpid()
            order.append("waiter")

    waiter = threading.Thread(target=wait)
    with locked(path):
        waiter.start()
        time.sleep(0.1)
        order.append("holder")
    waiter.join()
    assert order == ["holder", "waiter"]
    assert not path.exists()


@pytest.mark.parametrize("host", ["here", "another"])
def test_a_lock_whose_owner_is_dead_does_not_block(tmp_path, host):
    path = tmp_path / ".lock"
    code = f"""
import os, signal, socket
from flowformer.files import locked
if {host!r} != "here":
    socket.gethostname = lambda: {host!r}
with locked(__import__("pathlib").Path({str(path)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.exists()
    with locked(path, patience=0.0):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_what_another_machine_holds_is_waited_for_until_a_server_notices_its_death(
    tmp_path, monkeypatch
):
    path, seconds = tmp_path / ".lock", itertools.count()
    with locked(path):
        path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "ever"}))
        clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _: None)
        monkeypatch.setattr(files, "time", clock)
        with pytest.raises(BlockingIOError, match="process 1 on elsewhere"):
            locked(path, patience=10.0).__enter__()
    assert next(seconds) > files.LEASE_SECONDS


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with (
        pytest.warns(UserWarning, match=f"the file system of {tmp_path} has no locks"),
        locked(tmp_path / ".lock"),
    ):
        pass


@pytest.mark.parametrize("way", ["itself", "symlink", "hard-link", "folder-link", "in-a-folder"])
def test_what_is_read_is_not_written_over(tmp_path, way):
    path = tmp_path / "data" / "in.csv"
    write_atomically(path, "values")
    output, read = tmp_path / "out.csv", path
    if way == "itself":
        output = tmp_path / "data" / ".." / "data" / "in.csv"
    elif way == "symlink":
        output.symlink_to(path)
    elif way == "hard-link":
        output.hardlink_to(path)
    elif way == "folder-link":
        (tmp_path / "other").symlink_to(path.parent)
        output = tmp_path / "other" / "in.csv"
    else:
        output, read = path, path.parent
    with pytest.raises(ValueError, match="expected another file to write"):
        require_no_input(output, [read])
    require_no_input(tmp_path / "data" / "new.csv", [path, path.parent])
