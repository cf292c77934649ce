"""Work by several processes."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
from itertools import count
from flowformer.data.parallel import Workers

if __name__ == "__main__":
    with Workers(2) as pool:
        for number in pool.map(abs, count()):
            if number == 9:
                print("at work", flush=True)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.kill()
        # The pipe ends when the last process that has inherited it does.
        assert process.communicate(timeout=60)[0] == ""


def test_a_script_without_a_guard_ends_with_an_error_and_does_not_wait_for_itself(tmp_path: Path):
    (tmp_path / "script.py").write_text(
        "from pathlib import Path\n"
        "from flowformer.data.options import SequenceOptions\n"
        "from flowformer.data.sequences.preparation import prepare_sequences\n"
        "options = SequenceOptions(sizes=(40, 10, 10), min_length=5, max_length=30)\n"
        f"prepare_sequences(options, output=Path({str(tmp_path / 'set')!r}), workers=2)\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "if __name__ == '__main__'" in done.stderr
