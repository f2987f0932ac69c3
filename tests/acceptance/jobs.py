"""Jobs of the real command line: started, watched through their files, killed, compared."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from outlast.job import heartbeat
from outlast.job.heartbeat import Beat
from outlast.job.journal import Journal
from outlast.job.lifecycle import Job, State
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.history import HistoryReader
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance import forked

TOP = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
# Processes with this on their path do not find what slows their start.
SITE = Path(__file__).parent / "site"
# Where the processes of a training find this project as well.
PATH = os.pathsep.join(map(str, (TOP, SITE)))
PATIENCE = 240  # seconds; nothing here takes long, but the machine may be busy

OUTLAST = [sys.executable, "-m", "outlast"]
Supervisor = subprocess.Popen[bytes] | forked.CommandLine


def outlast(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    command = [*OUTLAST, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )


def write_digits(path: Path) -> None:
    """Write scikit-learn's handwritten digits as the scripts read them."""
    from sklearn.datasets import load_digits  # which the fork server does without

    bunch = load_digits()
    x = (bunch.images / 16).astype("float32")
    np.savez(path, x=x, y=bunch.target.astype("int32"))


class Training:
    """One of the scripts here, run as a job of the command line in a folder of its own.

    options: of `outlast run`. seed: the job's. forked: the supervisor and its attempts are forks
    of a process that has imported TensorFlow (see forked.py). control: where the script finds its
    data and is told to hold (see moments.py). root: where the job is, if not below the folder.
    """

    def __init__(
        self,
        folder: Path,
        script: str,
        digits: Path,
        *,
        options: str = "",
        seed: int = 11,
        forked: bool = False,
        root: Path | None = None,
    ) -> None:
        self.root = root or folder / "jobs"
        self.folder = self.root / script
        self.control = folder / "control"
        self.control.mkdir(parents=True)
        os.link(digits, self.control / "digits.npz")
        self.vary("plain")
        self.hold("never")
        self.storage = open_storage(self.folder)
        self.store = CheckpointStore(self.storage)
        self.journal = Journal(self.storage)
        self.script = script
        self.seed = seed
        self.options = ["--backoff", "0", "--max-retries", "50", *options.split()]
        self.forked = forked
        self.supervisor: Supervisor | None = None
        self._made = time.time()
        self._supervisors: list[Supervisor] = []
        self._output = folder / "outlast.log"

    def other(self, name: str) -> Training:
        """Return another job of the same script and root, such as a fork."""
        found = copy.copy(self)
        found.script, found.folder, found.supervisor = name, self.root / name, None
        found.storage = open_storage(found.folder)
        found.store = CheckpointStore(found.storage)
        found.journal = Journal(found.storage)
        return found

    # -- its processes -------------------------------------------------------------------

    def start(self) -> None:
        """Start `outlast run`."""
        options = ["--root", self.root, "--name", self.script, "--seed", self.seed, *self.options]
        self._start("run", *options, SCRIPTS / f"{self.script}.py", self.control)

    def resume(self, *options: str) -> None:
        """Start `outlast resume`."""
        self._start("resume", "--root", self.root, self.script, *options)

    def _start(self, *told: object) -> None:
        arguments = [*map(str, told)]
        env = {**os.environ, "PYTHONPATH": PATH}
        if self.forked:
            self.supervisor = forked.start(arguments, self._output, self.control, env)
        else:
            with self._output.open("ab") as output:
                self.supervisor = subprocess.Popen(
                    [*OUTLAST, *arguments],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.control,
                    env=env,
                )
        self._supervisors.append(self.supervisor)

    def end(self, code: int = 0) -> None:
        """Wait until the supervisor has ended, with this exit code."""
        assert self.supervisor is not None
        try:
            found = self.supervisor.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end{self.diagnostics()}") from None
        assert found == code, f"exit code {found}{self.diagnostics()}"

    def close(self) -> None:
        """End what is still there, whatever state it is in."""
        left = [one.pid for one in self._supervisors if one.poll() is None]
        for attempt in range(1, 200):
            beat = heartbeat.read(self.storage, attempt)
            if beat is not None and beat.ended is None and self._is_mine(beat):
                left.append(beat.pid)
        for pid in left:
            try:
                process = psutil.Process(pid)
                family = [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for member in family:
                try:
                    member.kill()
                except psutil.NoSuchProcess:
                    continue
        for one in self._supervisors:
            one.wait(PATIENCE)

    def _is_mine(self, beat: Beat) -> bool:
        try:
            return psutil.Process(beat.pid).create_time() >= self._made - 1
        except psutil.Error:
            return False

    def release_supervisor(self) -> Supervisor:
        """Return the supervisor, which is not this training's any more: another one may start."""
        assert self.supervisor is not None
        released, self.supervisor = self.supervisor, None
        return released

    def kill_supervisor(self) -> None:
        supervisor = self.release_supervisor()
        supervisor.kill()
        supervisor.wait(PATIENCE)

    # -- what its files show -------------------------------------------------------------

    def diagnostics(self) -> str:
        """What there is to say when a test fails."""
        lines = [f"\n--- {self._output}", self.output()[-3000:]]
        for path in sorted(self.folder.glob("attempts/*/output.log"))[-2:]:
            lines += [f"--- {path}", path.read_text(errors="replace")[-2500:]]
        return "\n".join(lines)

    def output(self) -> str:
        """Return what the command line has said."""
        return self._output.read_text(errors="replace")

    def log(self, attempt: int) -> list[dict[str, Any]]:
        """Return the structured log of an attempt."""
        lines = (self.folder / f"attempts/{attempt:04d}/log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def until(self, what: str, look: Callable[[], Any], pause: float = 0.02) -> Any:
        """Wait until `look` returns something true, and return that."""
        give_up = time.monotonic() + PATIENCE
        while not (found := look()):
            if time.monotonic() > give_up:
                raise AssertionError(f"waited in vain: {what}{self.diagnostics()}")
            if self.supervisor is not None and self.supervisor.poll() is not None:
                if found := look():
                    break
                code = self.supervisor.returncode
                raise AssertionError(f"ended with {code} before: {what}{self.diagnostics()}")
            time.sleep(pause)
        return found

    def job(self) -> Job:
        return self.journal.existing_job()

    def attempt(self, number: int) -> psutil.Process:
        """Return the process of an attempt, once it shows that it is there."""

        def look() -> psutil.Process | None:
            beat = heartbeat.read(self.storage, number)
            return psutil.Process(beat.pid) if beat is not None else None

        process: psutil.Process = self.until(f"attempt {number}", look)
        return process

    def folders(self, attempt: int) -> list[CheckpointId]:
        """Return the checkpoints, committed or not, of an attempt, oldest first."""
        found = map(CheckpointId.parse, self.storage.list("checkpoints"))
        return sorted(one for one in found if one is not None and one.attempt == attempt)

    def committed(self, checkpoint: CheckpointId) -> bool:
        return self.storage.exists(f"checkpoints/{checkpoint}/manifest.json")

    def writing(self, attempt: int) -> CheckpointId | None:
        """Return the checkpoint that an attempt is writing: its folder has no manifest yet."""
        newest = self.folders(attempt)[-1:]
        return newest[0] if newest and not self.committed(newest[0]) else None

    def vary(self, variant: str) -> None:
        """Choose what the script "variants" does when it is started the next time."""
        (self.control / "variant").write_text(variant)

    # -- holding it ----------------------------------------------------------------------

    def hold(self, moment: str, epoch: int = 0, but: psutil.Process | None = None) -> None:
        """Tell the script to hold at a moment of this epoch or a later one, or "never".

        but: an attempt that shall not; whoever is held goes on when it is told something new.
        """
        new = self.control / "hold.new"
        new.write_text(f"{moment} {epoch} {but.pid if but else 0}")
        new.replace(self.control / "hold")

    def held(self, attempt: psutil.Process) -> tuple[str, int] | None:
        """Return the moment and the epoch that the attempt is held at."""
        try:
            pid, moment, epoch = (self.control / "held").read_text().split()
        except FileNotFoundError:
            return None
        return (moment, int(epoch)) if int(pid) == attempt.pid else None

    def until_held(self, attempt: psutil.Process, moment: str, epoch: int) -> int:
        """Wait until the attempt is held at the moment; return the epoch."""

        def look() -> int | None:
            found = self.held(attempt)
            wanted = found is not None and found[0] == moment and found[1] >= epoch
            return found[1] + 1 if found is not None and wanted else None

        found: int = self.until(f"{moment} {epoch}", look)
        return found - 1

    def until_saved(self, steps: int) -> CheckpointId:
        """Wait until a checkpoint of this step or a later one is committed; return the newest.

        Who is held at an epoch's end may still be writing what was due at its begin.
        """

        def look() -> CheckpointId | None:
            newest = self.store.ids()[-1:]
            return newest[0] if newest and newest[0].step >= steps else None

        found: CheckpointId = self.until(f"the save of {steps}", look)
        return found

    # -- what it came to -----------------------------------------------------------------

    def final(self) -> CheckpointId:
        """Return the checkpoint of the phase's end."""
        assert self.job().state is State.SUCCEEDED, self.diagnostics()
        return self.store.finished_phases()[0]

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        """Return every array of the final checkpoint: type, shape and bytes by name."""
        loaded = self.store.load(self.final())
        return {
            f"{file}:{name}": (str(array.dtype), array.shape, _without_call(name, array.tobytes()))
            for file, arrays in loaded.files.items()
            for name, array in arrays.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the merged history, times aside."""
        return [without_time(row) for row in HistoryReader(self.storage).rows()]

    def raw_steps(self) -> list[tuple[int, int]]:
        """Return (attempt, step) of every step row that any attempt ever wrote."""
        found = []
        for path in sorted(self.folder.glob("attempts/*/history.jsonl")):
            for line in path.read_bytes().splitlines(keepends=True):
                if b'"kind":"step"' in line and line.endswith(b"\n"):
                    step = int(line.partition(b'"step":')[2].partition(b",")[0])
                    found.append((int(path.parent.name), step))
        return found

    def returned_history(self) -> str:
        """Return the History that `fit` returned, as the script wrote it."""
        return (self.control / "history.json").read_text()


def _without_call(name: str, content: bytes) -> bytes:
    """Return the content of an array; of the document, all but the arguments of the script.

    They name the folder of the test, so they differ between two equal trainings.
    """
    if name != "document":
        return content
    found = json.loads(content)
    found.pop("called", None)
    return json.dumps(found).encode()


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "time"}


def assert_same(touched: Training, untouched: Training) -> None:
    """Assert that two trainings came to the same, byte for byte."""
    mine, theirs = touched.arrays(), untouched.arrays()
    assert list(mine) == list(theirs)
    different = [name for name, array in theirs.items() if mine[name] != array]
    assert different == [], _differences(touched, untouched)
    # Names alone would not tell that anything was compared.
    assert any(".weights.h5:optimizer/" in name for name in mine)
    assert any(name.startswith("state.h5:variables/") for name in mine)
    final = touched.final()
    assert final.place == untouched.final().place
    assert touched.rows() == untouched.rows()
    assert touched.returned_history() == untouched.returned_history()
    metrics = touched.store.manifest(final).metrics
    assert metrics == untouched.store.manifest(untouched.final()).metrics


def _differences(touched: Training, untouched: Training) -> str:
    lines = []
    mine, theirs = (t.store.load(t.final()).files for t in (touched, untouched))
    for file, arrays in theirs.items():
        for name, wanted in arrays.items():
            found = mine[file][name]
            if name == "document":
                same = bytes(found) == bytes(wanted)
                lines += [] if same else [bytes(found).decode(), bytes(wanted).decode()]
            elif not np.array_equal(found, wanted):
                off = np.abs(found.astype("float64") - wanted.astype("float64")).max()
                lines.append(f"{file}: {name} is off by {off}")
    return "\n".join(lines)


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stopped(process: psutil.Process) -> bool:
    """Whether every thread of a process stands still after SIGSTOP."""
    states = Path(f"/proc/{process.pid}/task").glob("*/stat")
    return all(stat.read_text().rpartition(")")[2].split()[0] in "Tt" for stat in states)
