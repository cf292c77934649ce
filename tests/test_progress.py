"""Work is shown on a terminal, or to whoever asks, and nowhere else."""

import io
import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from flowformer.cli.main import _Messages
from flowformer.progress import Work, counted, is_shown, say, showing, working


class Terminal(io.StringIO):
    """Text after a carriage return takes the place of the text before, as on a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def last(self) -> str:
        """What was written into the last line at last."""
        return [text for text in self.getvalue().split("\r") if text.strip()][-1].strip()


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    # Not sys.stderr: pytest puts its own in its place between a fixture and the test.
    monkeypatch.setattr("flowformer.progress.sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    now = Clock()
    monkeypatch.setattr("tqdm.std.time", now)
    return now


def test_a_terminal_is_shown_what_is_done_and_how_long_the_rest_takes(terminal, clock):
    with showing(), working("reading", total=100, unit="files", done=50) as work:
        assert terminal.last.startswith("reading:  50 %|#####")
        clock.seconds = 10
        work.reach(60, note="all of them text")
        assert terminal.last.endswith("| 60 of 100 files, 00:40 left, all of them text")
        clock.seconds = 20
        work.advance(20)
        assert terminal.last.endswith("| 80 of 100 files, 00:13 left, all of them text")
        work.tell("in other words")
        clock.seconds = 21
        work.advance(0)
        assert terminal.last == "in other words"
    assert terminal.getvalue().endswith("\r" + " " * len("in other words") + "\r")


def test_without_a_total_there_is_what_is_done_and_the_time_it_took(terminal, clock):
    with showing(), working("reading", unit="tokens") as work:
        clock.seconds = 65
        work.reach(1_234_567)
    assert "reading: 1.23M tokens, 01:05" in terminal.getvalue()


def test_items_count_once_they_were_worked_on(told):
    for item in counted("ab", "shouting", unit="letters"):
        assert [done for _, done, _ in told] == list(range(1, 1 + "ab".index(item)))
    assert told == [("shouting", 1, 2), ("shouting", 2, 2)]


@pytest.mark.parametrize("shown", [None, False], ids=["no-terminal", "not-wanted"])
def test_elsewhere_there_is_silence(shown, capsys):
    with showing(shown), working("reading", total=2) as work:
        assert not is_shown()
        work.advance()
    assert capsys.readouterr() == ("", "")


def test_a_block_says_for_itself_whether_its_work_is_shown(terminal):
    with showing(), showing(False), working("reading", total=2) as work:
        work.advance()
    assert terminal.getvalue() == ""


def test_without_a_terminal_a_line_now_and_then_tells_who_asks(monkeypatch, capsys):
    now = Clock()
    monkeypatch.setattr("flowformer.progress.monotonic", now)
    with showing(True), working("reading", total=1000, unit="files") as work:
        assert is_shown()
        for second in range(1, 401):
            now.seconds = second
            work.reach(2 * second, note="of text")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading:   2 %, 20 of 1000 files, 08:10 left, of text"
    assert lines[-1].startswith("reading:  7")
    assert 20 < len(lines) < 30  # the longer it takes, the fewer


def test_what_is_soon_done_writes_nothing_into_a_file(capsys):
    with showing(True):
        assert list(counted([1, 2], "counting", unit="numbers")) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("through", ["say", "logging"])
def test_a_line_is_written_above_the_bar(terminal, clock, through):
    logger = logging.getLogger("flowformer.train")
    handler = _Messages(terminal)
    logger.addHandler(handler)
    try:
        with showing(), working("reading", total=2) as work:
            say("a line") if through == "say" else logger.warning("a line")
            assert terminal.last == "a line"
            clock.seconds = 1
            work.advance()
            assert terminal.last.startswith("reading:  50 %")
    finally:
        logger.removeHandler(handler)
    assert "\ra line\n" in terminal.getvalue()


def test_work_that_fails_leaves_no_bar(terminal):
    with pytest.raises(ValueError, match="mine"), showing(), working("reading", total=2):
        raise ValueError("mine")
    assert terminal.getvalue().endswith("\r")


def test_whoever_asks_is_told():
    seen: list[Work] = []

    def watch(work: Work) -> nullcontext:
        return nullcontext(lambda: seen.append(work))

    with showing(watch), working("reading", total=2) as work:
        work.advance()
    assert seen == [work]
