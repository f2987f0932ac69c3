"""Output on a full disk is lost; the script continues."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")

SCRIPT = """
import os, subprocess, sys
from outlast.attempt.safe_output import guard_output
out, err = guard_output()
print("words")
sys.stdout.flush()  # python itself lets bytes overtake words that are not flushed
print("ünd so fort", file=sys.stderr)
sys.stdout.buffer.write(b"bytes")
sys.stdout.flush()
sys.stderr.flush()
assert sys.stdout.fileno() == 1
assert not sys.stdout.isatty()
open(sys.argv[1], "w").write(f"{out.lost} {err.lost}")
"""


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_output_is_lost_on_a_full_disk(options: list[str], tmp_path: Path) -> None:
    if not FULL.is_char_device():
        pytest.skip("there is no /dev/full here")
    with FULL.open("w") as full:
        command = [sys.executable, *options, "-c", SCRIPT, str(tmp_path / "lost")]
        done = subprocess.run(command, stdout=full, stderr=full, check=False, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "lost").read_text() == f"{len('words') + 1 + 5} {len('ünd so fort') + 2}"


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_output_arrives_while_there_is_space(options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, *options, "-c", SCRIPT, str(tmp_path / "lost")]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert done.stdout == b"words\nbytes"
    assert done.stderr.decode() == "ünd so fort\n"
    assert (tmp_path / "lost").read_text() == "0 0"


def test_a_closed_stdout_stays_closed() -> None:
    code = "import sys; sys.stdout = None\nfrom outlast.attempt.safe_output import guard_output\n"
    code += "print(len(guard_output()), file=sys.stderr)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert done.stderr == b"1\n"
