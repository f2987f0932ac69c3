"""The first five minutes of README.md: every script and command that it shows is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


class Shell:
    """Runs command lines in one folder, as in a terminal with the environment activated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        bin_folder = Path(os.environ.get("OUTLAST_README_BIN") or Path(sys.executable).parent)
        self.env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}

    def run(self, commands: str) -> str:
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", commands],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    def status(self, job: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.run(f"outlast status {job} --json"))
        return found


def test_the_documented_setup_installs_an_existing_extra_with_everything_needed() -> None:
    lines = [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()]
    venv, activate, install = lines
    assert venv == "python3 -m venv .venv"
    assert activate == "source .venv/bin/activate"
    found = re.fullmatch(r"pip install '\.\[(\w+)\]'", install)
    assert found is not None
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"][found.group(1)]
    assert any(line.startswith("scikit-learn") for line in extra)


def test_the_demo_can_be_set_up_and_run_by_make() -> None:
    assert "`make demo`" in README
    done = subprocess.run(["make", "-n", "install", "demo"], cwd=TOP, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_changed_line_of_the_diff_is_in_the_script() -> None:
    added = [line[1:] for line in blocks("diff")[0].splitlines() if line.startswith("+")]
    script = blocks("python")[0].splitlines()
    assert added
    assert set(added) <= set(script)


@pytest.mark.longest
def test_every_shown_command_works(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (script,) = blocks("python")
    (tmp_path / "train.py").write_text(script)
    shown = blocks("sh")[1:]
    assert len(shown) >= 5
    try:
        printed = [shell.run(commands) for commands in shown]
    finally:
        # Whatever failed above, nobody goes on training.
        shell.run("outlast stop --now --wait 1m digits || true")
    assert any("equal to the byte" in text for text in printed)

    digits = shell.status("digits")
    untouched = shell.status("untouched")
    assert digits["state"] == untouched["state"] == "succeeded"
    outcomes = [attempt["outcome"] for attempt in digits["attempts"]]  # type: ignore[attr-defined]
    assert outcomes[0] == "killed"
    assert outcomes[-1] == "completed"
    assert len(outcomes) >= 2

    def steps(job: str) -> list[dict[str, object]]:
        rows = map(json.loads, shell.run(f"outlast history {job} --steps --json").splitlines())
        return [{name: value for name, value in row.items() if name != "time"} for row in rows]

    assert [row["step"] for row in steps("digits")] == list(range(1, len(steps("digits")) + 1))
    assert steps("digits") == steps("untouched")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_bare_script_resumes_when_run_again(tmp_path: Path) -> None:
    assert 'fit(…, job_dir="my-job")' in README
    shell = Shell(tmp_path)
    script = blocks("python")[0].replace(
        "validation_split=0.1, verbose=0)", 'job_dir="my-job", verbose=0)'
    )
    (tmp_path / "short.py").write_text(
        script.replace("epochs=150", "epochs=2").replace("val_accuracy", "accuracy")
    )
    first = shell.run("python short.py")
    assert shell.run("python short.py") == first
    (tmp_path / "longer.py").write_text(
        script.replace("epochs=150", "epochs=3").replace("val_accuracy", "accuracy")
    )
    shell.run("python longer.py")
    rows = shell.run("outlast history ./my-job --epochs --json").splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [0, 1, 2]
