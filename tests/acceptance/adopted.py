"""Scripts that know nothing of Outlast, run by `outlast run --adopt`, and plainly by Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from outlast.audit.state_leaves import State
from outlast_checkpoints.history import HistoryReader
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance import forked
from tests.acceptance.jobs import OUTLAST, PATH, PATIENCE, TOP, without_time

SCRIPTS = Path(__file__).parent / "unmodified"
_EVERY = sorted(path for path in SCRIPTS.glob("*.py") if path.stem != "ending")
OF_LIBRARIES = [path for path in _EVERY if path.stem.startswith(("hub_", "rs_"))]
OF_SEARCHES = [path for path in _EVERY if path.stem.startswith("search_")]
OF_KERAS = [path for path in _EVERY if path not in OF_LIBRARIES + OF_SEARCHES]
# Its op determinism is that of an attempt; Keras is not repeatable without.
PLAIN = (
    "import os, runpy, sys, tensorflow as tf\n"
    "tf.config.experimental.enable_op_determinism()\n"
    "sys.argv = sys.argv[1:]\n"
    "sys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


@dataclass(frozen=True)
class Outcome:
    """What a job has come to.

    Attributes:
        end: What the script has printed at its end.
        phases: The state at the end of each phase.
        rows: The history, times aside.
        attempts: How many there were.
        log: The log of all attempts.
    """

    end: str
    phases: dict[int, State]
    rows: list[dict[str, Any]]
    attempts: int
    log: str

    def differences(self, other: Outcome) -> list[str]:
        """Return what differs from another job of the same script, to the byte."""
        found = [] if self.end == other.end else [f"{self.end}\n{other.end}"]
        if list(self.phases) != list(other.phases):
            found.append(f"phases {list(self.phases)}, {list(other.phases)}")
        for phase, mine, theirs in zip(
            self.phases, self.phases.values(), other.phases.values(), strict=False
        ):
            # What an attempt has found changed in objects depends on where it began.
            units = mine.units() & theirs.units()
            one, two = _plain(mine, units), _plain(theirs, units)
            for place in {**one, **two}:
                if _differ(place, one.get(place), two.get(place)):
                    found.append(f"phase {phase}: {place}")
        rows = zip_longest(self.rows, other.rows)
        found += [f"{mine}\n{theirs}" for mine, theirs in rows if mine != theirs][:3]
        return found


def run(
    script: Path,
    folder: Path,
    *options: str,
    arguments: Sequence[str] = (),
    kills: str = "",
    fork: bool = True,
    needs: str = "",
) -> Outcome:
    """Run a script under `outlast run --adopt` in a folder of its own, to its end.

    arguments: of the script. kills: see `killing`. fork: whether its processes are forks of one
    with TensorFlow. needs: what else it imports of what the processes here do without.
    """
    folder.mkdir(parents=True)
    told = [
        *("run", "--adopt=strict", "--root", "jobs", "--name", "job", "--seed", "11"),
        *(
            "--save-every",
            "3",
            "--backoff",
            "0",
            "--max-retries",
            "50",
            *options,
            str(script),
            *arguments,
        ),
    ]
    output, env = folder / "outlast.log", {**os.environ, "PYTHONPATH": PATH, "KILLED_AFTER": kills}
    env["SCRIPT_NEEDS"] = needs
    process: forked.CommandLine | subprocess.Popen[bytes]
    if fork and not needs:
        process = forked.start(told, output, folder, env)
    else:
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*OUTLAST, *told], stdout=file, stderr=subprocess.STDOUT, cwd=folder, env=env
            )
    try:
        code = process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
    assert code == 0, output.read_text()[-5000:]
    return outcome(folder / "jobs" / "job")


def outcome(job: Path) -> Outcome:
    """Return what a job has come to."""
    storage = open_storage(job)
    store = CheckpointStore(storage)
    attempts = sorted(job.glob("attempts/*/output.log"))
    ends = [line for line in attempts[-1].read_text().splitlines() if line.startswith("END ")]
    phases = {}
    for phase, checkpoint in store.finished_phases().items():
        phases[phase] = State(store.load(checkpoint).files, str(checkpoint))
    assert phases
    rows = [without_time(row) for row in HistoryReader(storage).rows()]
    log = "".join(path.read_text() for path in sorted(job.glob("attempts/*/log.jsonl")))
    return Outcome(ends[-1], phases, rows, len(attempts), log)


def _differ(place: Any, one: Any, two: Any) -> bool:
    if place[0] in ("attributes", "callbacks"):
        # What was made after the beginning is stored where it is found, otherwise as a reference.
        values = (one, two)
        if None in values or any(str(value).startswith("'object ") for value in values):
            return False
    return one != two


def _plain(state: State, units: set[Any]) -> dict[Any, Any]:
    """Return every value of a state with its place, arrays with the bytes of their numbers."""
    return {
        place: (str(value.dtype), value.shape, value.tobytes())
        if isinstance(value, np.ndarray)
        else repr(value)
        for place, value in state.leaves(units)
    }


def plainly(script: Path, folder: Path, *arguments: str) -> str:
    """Run a script as `python script.py`, and return what it has printed at its end."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(script), *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(TOP)}, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return next(line for line in done.stdout.splitlines() if line.startswith("END "))
