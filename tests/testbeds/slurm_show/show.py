"""`make slurm-show`: a training on a real Slurm to which everything happens that can happen there.

It is preempted, requeued, loses its node's daemon, then a whole node, is stopped and resumed. The
same training, which nobody touches, runs beside the cluster. Both must end equal to the byte.

Options: --minutes N (10) of steps, --folder DIR (for the jobs; a temporary one). Needs root and
Slurm's own programs, as the tests of Slurm do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[3]))

from outlast.demo.digests import digests
from outlast.job import heartbeat
from outlast.job.events import Ended
from outlast.job.heartbeat import Beat
from outlast.job.journal import Journal
from outlast.job.lifecycle import Job, State
from outlast_checkpoints.storage import open_storage
from tests.support import slurm_cluster
from tests.support.slurm_cluster import Cluster

TOP = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("train.py")
STEPS_AN_EPOCH = 45
PACE = 1 / 15  # seconds a step takes at the least
SEED = 20
TOLD_EVERY = 30.0  # seconds
PATIENCE = 240.0  # seconds for anything that takes a moment on an idle machine
WANTED = ["preempted", "preempted", "lost", "lost", "stopped", "completed"]


class Show:
    """The training in the queue, and who tells of it."""

    def __init__(self, cluster: Cluster, root: Path) -> None:
        self.cluster, self.root = cluster, root
        self.storage = open_storage(root / "touched")
        self.journal = Journal(self.storage)
        self.attempt = 0
        self.restarts = 0
        self._began = time.monotonic()
        self._told_at = 0.0

    # --- looking ---------------------------------------------------------------------------

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        print(f"[{minutes:02}:{seconds:02}] {text}", flush=True)

    def outlast(self, verb: str, *arguments: object) -> str:
        command = [sys.executable, "-m", "outlast", verb, "--root", str(self.root)]
        return self.cluster.call(*command, *map(str, arguments))

    def job(self) -> Job:
        return self.journal.existing_job()

    @property
    def number(self) -> str:
        """The job's number in Slurm's queue."""
        queued = self.job().queued
        assert queued is not None
        return str(queued.handle["id"])

    @property
    def node(self) -> str:
        return self.cluster.show(self.number)["NodeList"]

    def beat(self) -> Beat | None:
        return heartbeat.read(self.storage, self.attempt) if self.attempt else None

    def where(self) -> str:
        beat = self.beat()
        if beat is None:
            return f"attempt {self.attempt}"
        return f"attempt {self.attempt}, step {beat.step} of {beat.total_steps}"

    def wait(self, what: str, holds: Callable[[], object]) -> None:
        until = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > until:
                status = self.outlast("status", "touched")
                log = (self.cluster.folder / "slurmctld.log").read_text()[-3000:]
                raise SystemExit(f"waited in vain: {what}\n{status}\n{log}")
            time.sleep(0.1)

    # --- going on --------------------------------------------------------------------------

    def until(self, part: float) -> None:
        """Let it train until so much of its steps is done."""
        while True:
            beat = self.beat()
            total = None if beat is None else beat.total_steps
            if beat is not None and total and beat.step >= part * total:
                return
            if self.job().state in (State.FAILED, State.STOPPED):
                raise SystemExit(self.outlast("status", "touched"))
            if time.monotonic() - self._told_at > TOLD_EVERY:
                self._told_at = time.monotonic()
                loss = None if beat is None else beat.logs.get("loss")
                told = "" if loss is None else f", loss {loss:.4f}"
                self.say(f"  {self.where()}{told}, on {self.node}")
            time.sleep(0.1)

    def next_attempt(self) -> None:
        """Wait until the next attempt trains; tell how the one before ended."""
        before, came_to = self.attempt, self.beat()
        self.wait(f"attempt {before + 1}", lambda: self.job().attempt > before)
        self.attempt = before + 1
        self.wait("its first step", self._trains)
        beat = self.beat()
        assert beat is not None
        if came_to is not None:
            ended = self.end_of(before)
            self.say(
                f"  attempt {before}: {ended.outcome.value}; {ended.reason}; it had come to step "
                f"{came_to.step}, saved was step {came_to.last_checkpoint_at_step}"
            )
        origin = f"from {beat.restored_from}" if beat.restored_from else "from the beginning"
        self.say(f"  {self.where()}: trains on {self.node}, {origin}")

    def _trains(self) -> bool:
        beat = self.beat()
        return beat is not None and beat.total_steps is not None and beat.steps_done > 0

    def end_of(self, attempt: int) -> Ended:
        events = (entry.event for entry in self.journal.read())
        return next(one for one in events if isinstance(one, Ended) and one.attempt == attempt)

    def started_again(self) -> None:
        """Wait until Slurm has started the job once more, and it trains."""
        self.restarts += 1
        restarts = self.restarts
        self.wait(
            "the requeue", lambda: self.cluster.show(self.number).get("Restarts") == str(restarts)
        )
        self.say(f"  Slurm has requeued job {self.number}")
        self.cluster.start_now(self.number, restarts)  # it would wait two minutes
        self.next_attempt()

    # --- what happens to it ----------------------------------------------------------------

    def preempted(self) -> None:
        """A job of a better partition takes both nodes; the training has the GraceTime."""
        self.say(f"PREEMPTED at {self.where()}: an urgent job wants both nodes")
        urgent = ["sbatch", "--parsable", "-p", "high", "--nodes=2", "--exclusive"]
        other = self.cluster.call(*urgent, "-o", "/dev/null", "--wrap", "sleep 1").strip()
        asked = time.monotonic()
        self.wait("its leaving", lambda: not self.job().in_flight)
        self.say(f"  it saved and left within {time.monotonic() - asked:.1f} s")
        ended = ("COMPLETED", "COMPLETING")
        self.wait("the urgent job", lambda: self.cluster.show(other)["JobState"] in ended)
        self.say(f"  the urgent job {other} ran and is done")
        self.started_again()

    def requeued(self) -> None:
        """An administrator requeues it: SIGTERM, and KillWait seconds later SIGKILL."""
        self.say(f"REQUEUED at {self.where()}: scontrol requeue {self.number}")
        self.cluster.call("scontrol", "requeue", self.number)
        self.started_again()

    def daemon_died(self) -> None:
        """The node's slurmd dies, the processes of the job do not: two of them for a while."""
        node, beat = self.node, self.beat()
        assert beat is not None
        zombie = psutil.Process(beat.pid)
        self.say(f"NODE LOST at {self.where()}: kill -9 of {node}'s slurmd; its step lives on")
        self.cluster.kill_node(node)
        old = self.attempt
        self.started_again()
        self.wait("the old attempt's end", lambda: _gone(zombie))
        last = heartbeat.read(self.storage, old)
        assert last is not None
        self.say(f"  attempt {old} had trained on to step {last.step}, is superseded and has left")
        self.back(node)

    def node_died(self) -> None:
        """The node goes at once with all that runs on it."""
        node = self.node
        self.say(f"NODE DEAD at {self.where()}: {node} loses its power, nothing on it lives on")
        self.cluster.kill_node(node)
        gone = self._of_the_job()
        for signum in (signal.SIGSTOP, signal.SIGKILL):  # none of them shall tell of another's end
            for process in gone:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signum)
        self.say(f"  killed with it: {len(gone)} processes of the job")
        self.started_again()
        self.back(node)

    def _of_the_job(self) -> list[psutil.Process]:
        """Return all processes of the job, Slurm's own that look after its steps included."""
        mine = {**self.cluster.environment, "SLURM_JOB_ID": self.number}
        found = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment = process.environ()
                if all(environment.get(name) == value for name, value in mine.items()):
                    parent = process.parent()
                    found.add(process)
                    if parent is not None and "slurmstepd" in parent.name():
                        found.add(parent)
        return list(found)

    def back(self, node: str) -> None:
        self.cluster.start_node(node)
        usable = ("idle", "mixed", "allocated")
        self.wait(
            f"{node} again",
            lambda: all(state in usable for state in self.cluster.squeue_nodes()),
        )
        self.say(f"  node {node} is back")

    def stopped_and_resumed(self) -> None:
        number = self.number
        self.say(f"STOPPED at {self.where()}: outlast stop touched")
        self.outlast("stop", "--wait", "2m", "touched")
        self.wait("an empty queue", lambda: not self.cluster.call("squeue", "-h"))
        self.say(f"  {self.job().state.value}; nothing of it is in Slurm's queue")
        self.say("RESUMED: outlast resume touched")
        self.outlast("resume", "touched")
        self.restarts = 0
        self.say(f"  Slurm has it as {self.number} (before: {number})")
        self.next_attempt()

    def run(self, arguments: list[str]) -> None:
        """Let all of it happen, each at its part of the steps."""
        told = self.outlast(
            "submit", "--name", "touched", "--seed", SEED, "--engine", "slurm",
            *("--partition", "low", "--grace", "60s"), SCRIPT, *arguments,
        )  # fmt: skip
        self.say(f"outlast submit --engine slurm: job {self.number}. {told.splitlines()[0]}")
        self.next_attempt()
        for part, event in (
            (0.12, self.preempted),
            (0.28, self.requeued),
            (0.42, self.daemon_died),
            (0.58, self.node_died),
            (0.75, self.stopped_and_resumed),
        ):
            self.until(part)
            event()
        self.until(1.0)
        self.wait("the end", lambda: self.job().state.final)
        self.say(f"ENDED: {self.job().state.value}")
        self.wait("an empty queue", lambda: not self.cluster.call("squeue", "-h"))


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def untouched(root: Path, arguments: list[str]) -> Any:
    """Train the same beside the cluster, under `outlast run`."""
    command = [sys.executable, "-m", "outlast", "run", "--root", str(root)]
    told = ["--name", "untouched", "--seed", str(SEED), str(SCRIPT), *arguments]
    with (root / "untouched.log").open("ab") as output:
        process = subprocess.Popen([*command, *told], stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()


def verdict(show: Show) -> bool:
    """Print how both have ended, side by side; return whether all is as it must be."""
    print(f"\n{show.outlast('status', 'touched')}\n{show.outlast('status', 'untouched')}")
    for entry in show.journal.read():
        at = time.strftime("%H:%M:%S", time.localtime(entry.at))
        kind = entry.event.__struct_config__.tag
        print(f"  {at}  {kind:14} -> {entry.state.value:10} attempt {entry.attempt}  by {entry.by}")
    mine, theirs = show.storage, open_storage(show.root / "untouched")
    print(f"\n{'':14}{'touched':34}{'untouched':34}")
    same = True
    for one, other in zip(digests(mine), digests(theirs), strict=True):
        same = same and one == other
        word = "equal" if one == other else "DIFFERENT"
        print(f"{one.part:14}{one.hash:34}{other.hash:34}{word}   {one.amount}")
    files = []
    for name in ("touched", "untouched"):
        files.append(show.root / f"{name}.weights.h5")
        show.outlast("export", name, files[-1])
    equal = files[0].read_bytes() == files[1].read_bytes()
    print(f"cmp {files[0].name} {files[1].name}: {'equal' if equal else 'DIFFERENT'}")
    events = [entry.event for entry in show.journal.read()]
    outcomes = [one.outcome.value for one in events if isinstance(one, Ended)]
    print(f"attempts: {', '.join(outcomes)}")
    if outcomes != WANTED:
        print(f"  expected: {', '.join(WANTED)}")
    return same and equal and outcomes == WANTED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    missing = [tool for tool in slurm_cluster.NEEDED if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        why = f"not installed: {', '.join(missing)}" if missing else "only root can start slurmd"
        print(f"slurm-show: {why}", file=sys.stderr)
        return 2
    for signum in (signal.SIGINT, signal.SIGTERM):  # the cluster goes as well then
        signal.signal(signum, signal.default_int_handler)
    os.environ["PYTHONPATH"] = str(TOP)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    epochs = max(10, round(options.minutes * 60 / PACE / STEPS_AN_EPOCH))
    arguments = [str(epochs), f"{PACE:.4f}"]
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="outlast-") as aside,
        slurm_cluster.running() as cluster,
    ):
        root = options.folder or Path(aside)
        root.mkdir(parents=True, exist_ok=True)
        os.environ.update(cluster.environment)
        show = Show(cluster, root.absolute())
        steps = epochs * STEPS_AN_EPOCH
        show.say(f"a Slurm of two nodes; {epochs} epochs, {steps} steps of {PACE:.3f} s or more")
        with untouched(show.root, arguments) as other:
            show.run(arguments)
            if other.wait() != 0:
                print((show.root / "untouched.log").read_text(), file=sys.stderr)
                return 1
            show.say("the untouched one has ended as well")
        good = verdict(show)
    took = time.monotonic() - began
    print(f"{'Equal to the last byte' if good else 'NOT as it must be'} ({took / 60:.1f} minutes)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
