"""`outlast demo` as `make demo` runs it; it deletes only its own files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance


def demo(output: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "outlast", "demo", "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.slow
@pytest.mark.longest
def test_killed_twice_and_equal_to_the_last_byte(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    old = output / "jobs" / "killed"
    old.mkdir(parents=True)
    (output / ".outlast-demo").touch()
    (old / "spec.json").write_text("of an earlier demo")
    done = demo(output, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("╳ kill -9 ") == 2
    assert "attempt 2 resumed from " in done.stdout
    assert "attempt 3 resumed from " in done.stdout
    compared = [line for line in done.stdout.splitlines() if " equal " in line]
    assert [line.split()[0] for line in compared] == ["weights", "optimizer", "other", "history"]
    assert "Equal to the last byte, after 2 kills." in done.stdout
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "mine").write_text("precious")
    done = demo(tmp_path)
    assert done.returncode == 2
    assert "is neither empty nor the output of an earlier demo" in done.stderr
    assert (tmp_path / "jobs" / "mine").read_text() == "precious"
    assert not (tmp_path / ".outlast-demo").exists()


@pytest.mark.parametrize("module", ["sklearn", "matplotlib"])
def test_a_missing_extra_of_the_demo_is_named(tmp_path: Path, module: str) -> None:
    code = (
        "import sys, importlib.util as u\nfind = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {module!r} else find(name, *a)\n"
        f"from outlast.cli import main\nmain(['demo', '--output', {str(tmp_path / 'out')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'outlast[demo]'" in done.stderr
    assert not (tmp_path / "out").exists()
