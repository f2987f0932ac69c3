"""A real Slurm preempts, requeues, moves, stops and resumes a training, which ends the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast_checkpoints.format import layout
from tests.acceptance.jobs import PATH, SCRIPTS, Training, assert_same, gone, outlast
from tests.support import slurm_cluster
from tests.support.slurm_cluster import Cluster


@pytest.fixture(scope="module")
def cluster(require: Any) -> Iterator[Cluster]:
    slurm_cluster.demand(require)
    with slurm_cluster.running() as cluster:
        yield cluster


class Queued:
    """A training in the queue. Each of its attempts holds at the end of some epoch."""

    def __init__(self, training: Training, cluster: Cluster) -> None:
        self.training, self.cluster = training, cluster
        self.epoch = 0
        self.attempt = 0

    def outlast(self, verb: str, *arguments: object) -> str:
        done = outlast(verb, "--root", self.training.root, *arguments, cwd=self.training.control)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self) -> str:
        """Submit it; return its number in the queue."""
        name = self.training.script
        options = ["--name", name, "--seed", self.training.seed, *self.training.options]
        slurm = ["--engine", "slurm", "--partition", "low", "--grace", "60s"]
        script = SCRIPTS / f"{name}.py"
        self.outlast("submit", *options, *slurm, script, self.training.control)
        return self.number()

    def number(self) -> str:
        queued = self.training.job().queued
        assert queued is not None
        return str(queued.handle["id"])

    def until_held(self, epoch: int) -> psutil.Process:
        """Wait until the next attempt holds at the end of this epoch or a later one."""
        self.attempt += 1
        self.process = self.training.attempt(self.attempt)
        self.epoch = self.training.until_held(self.process, "epoch_end", epoch)
        return self.process

    def leave(self) -> None:
        """Let the attempt go on, an epoch at a time, until it has seen that it shall leave."""
        while self.training.job().in_flight and self.training.job().attempt == self.attempt:
            if self.training.held(self.process) == ("epoch_end", self.epoch):
                self.epoch += 1
                self.training.hold("epoch_end", self.epoch)
            time.sleep(0.3)

    def outcomes(self) -> list[Outcome]:
        ended = (getattr(entry.event, "outcome", None) for entry in self.training.journal.read())
        return [outcome for outcome in ended if outcome is not None]


@pytest.mark.longest
def test_a_job_preempted_requeued_moved_stopped_and_resumed_ends_with_the_same_bytes(
    train: Callable[..., Training],
    untouched: Callable[[str], Training],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**cluster.environment, "PYTHONPATH": PATH}.items():
        monkeypatch.setenv(name, value)
    training = train("mlp")
    job = Queued(training, cluster)
    training.hold("epoch_end", 3)
    number = job.submit()

    # Preempted by a job of a better partition: it saves within the grace time and is requeued.
    job.until_held(3)
    urgent = ["sbatch", "--parsable", "-p", "high", "--nodes=2", "--exclusive", "-o", "/dev/null"]
    other = cluster.call(*urgent, "--wrap", "sleep 1").strip()
    cluster.wait(lambda: cluster.show(number).get("PreemptTime", "None") != "None", "preemption")
    job.leave()
    cluster.wait(lambda: cluster.show(other)["JobState"] == "COMPLETED", "the urgent job's end")
    training.hold("epoch_end", job.epoch + 2)
    cluster.start_now(number, 1)

    # Its node's daemon dies, its processes do not: Slurm starts it once more, elsewhere.
    zombie = job.until_held(job.epoch + 2)
    node = cluster.show(number)["NodeList"]
    cluster.kill_node(node)
    cluster.wait(lambda: cluster.show(number).get("Restarts") == "2", "the death of the node")
    assert not gone(zombie)
    cluster.start_now(number, 2)
    job.until_held(job.epoch)
    training.until("the old attempt has left", lambda: gone(zombie))

    # Stopped from the login node, then resumed there.
    job.outlast("stop", training.script)
    job.leave()
    training.until("it has stopped", lambda: training.job().state is State.STOPPED)
    training.hold("never")
    job.outlast("resume", training.script)
    assert job.number() != number
    training.until("it has succeeded", lambda: training.job().state is State.SUCCEEDED)
    cluster.wait(lambda: not cluster.call("squeue", "-h"), "an empty queue")

    assert job.outcomes() == [Outcome.PREEMPTED, Outcome.LOST, Outcome.STOPPED, Outcome.COMPLETED]
    said = training.storage.read(layout.SUPERVISOR_OUTPUT).decode()
    assert f"slurm will restart the job as {number}" in said
    assert_same(training, untouched("mlp"))
