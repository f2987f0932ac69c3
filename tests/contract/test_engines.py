"""Every engine passes the one suite, on a real Slurm too; and what is Slurm's own."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from outlast import engines
from outlast.engines.base import Engine
from outlast.engines.local import LocalEngine
from outlast.engines.slurm import SlurmEngine, script
from outlast.engines.testing import EngineConformance, RunningJob
from outlast.errors import EngineFailed, PluginUnknown, SpecInvalid
from outlast.job import process_identity
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast.job.submission import request_stop, submit
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from tests.support import slurm_cluster
from tests.support.slurm_cluster import Cluster


@pytest.fixture(scope="module")
def cluster(require: Any) -> Iterator[Cluster]:
    slurm_cluster.demand(require)
    with slurm_cluster.running() as cluster:
        yield cluster


class TestLocalEngine(EngineConformance):
    def make(self) -> Engine:
        return LocalEngine()


class TestSlurmEngine(EngineConformance):
    options = {"engine": "slurm", "engine_options": {"partition": "low"}, "grace": 20.0}  # noqa: RUF012

    def make(self) -> Engine:
        return SlurmEngine()

    @pytest.fixture(autouse=True)
    def _at(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)

    def test_a_queued_job_says_why_it_waits_and_a_stop_removes_it(
        self, job: tuple[JobSpec, Storage], cluster: Cluster
    ) -> None:
        spec, storage = job
        cluster.call("scontrol", "update", "partitionname=low", "state=down")
        try:
            handle = self.make().launch(spec, storage)
            found = self.make().poll(handle)
            assert found is not None
            assert found.queued
            assert "PENDING, Partition" in str(found)
            self.make().stop(handle, storage)
            self._gone(self.make(), handle)
        finally:
            cluster.call("scontrol", "update", "partitionname=low", "state=up")

    def test_near_its_time_limit_a_job_is_requeued_and_continues(
        self, running: RunningJob, cluster: Cluster, tmp_path: Path
    ) -> None:
        _, handle, _, storage = running
        journal = Journal(storage)
        cluster.call("scancel", "-s", "USR1", handle["id"])  # what --signal sends
        self._until(lambda: journal.existing_job().owner is None)
        (tmp_path / "done").touch()
        cluster.start_now(handle["id"], 1)
        self._until(lambda: self._is(storage, State.SUCCEEDED))
        job_now = journal.existing_job()
        assert job_now.attempt == 2
        assert job_now.slot is not None
        assert (job_now.slot.id, job_now.slot.start) == (handle["id"], 1)
        assert job_now.queued is not None  # noted from inside: nobody else did here
        self._gone(self.make(), handle)

    def test_where_requeueing_is_forbidden_another_job_is_submitted(
        self, running: RunningJob, cluster: Cluster, tmp_path: Path
    ) -> None:
        _, handle, _, storage = running
        journal = Journal(storage)
        cluster.call("scontrol", "update", f"jobid={handle['id']}", "requeue=0")
        cluster.call("scancel", "-s", "USR1", handle["id"])
        self._until(lambda: journal.existing_job().outcome is Outcome.PREEMPTED)
        (tmp_path / "done").touch()
        self._until(lambda: self._is(storage, State.SUCCEEDED))
        queued = journal.existing_job().queued
        assert queued is not None
        assert queued.handle["id"] != handle["id"]

    def test_a_job_that_was_stopped_in_the_queue_is_not_started(
        self, job: tuple[JobSpec, Storage], cluster: Cluster
    ) -> None:
        spec, storage = job
        cluster.call("scontrol", "update", "partitionname=low", "state=down")
        handle = self.make().launch(spec, storage)
        assert request_stop(storage).state is State.STOPPED
        cluster.call("scontrol", "update", "partitionname=low", "state=up")
        cluster.wait(lambda: cluster.show(handle["id"])["JobState"] == "COMPLETED", "its end")
        assert Journal(storage).existing_job().attempt == 0

    def test_variables_of_sbatch_do_not_change_the_job(
        self, job: tuple[JobSpec, Storage], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec, storage = job
        for name, value in (("ARRAY_INX", "0-1"), ("NO_REQUEUE", "1"), ("WAIT", "1")):
            monkeypatch.setenv(f"SBATCH_{name}", value)
        handle = self.make().launch(spec, storage)  # and it does not wait for the job's end
        self._until(lambda: self._is(storage, State.RUNNING))
        found = cluster.show(handle["id"])
        assert "ArrayJobId" not in found
        assert found["Requeue"] == "1"
        request_stop(storage)
        self._gone(self.make(), handle)

    def test_an_array_that_starts_one_job_twice_runs_it_once(
        self, job: tuple[JobSpec, Storage], cluster: Cluster, tmp_path: Path
    ) -> None:
        spec, storage = job
        array = self._array(cluster, tmp_path, spec, storage.root)
        self._until(lambda: self._is(storage, State.RUNNING))
        said = [tmp_path / f"array-{task}.out" for task in (0, 1)]
        self._until(lambda: any("(attempt 1)" in one.read_text() for one in said if one.exists()))
        owner = Journal(storage).existing_job().slot
        assert owner is not None
        assert owner.id in (f"{array}_0", f"{array}_1")
        (tmp_path / "done").touch()
        try:
            self._until(lambda: self._is(storage, State.SUCCEEDED))
        except AssertionError as error:  # say what the two tasks did instead
            told = [one.read_text() for one in said if one.exists()]
            raise AssertionError([*Journal(storage).read(), *told]) from error
        now = Journal(storage).existing_job()
        assert now.attempt == 1
        assert now.queued is not None
        cluster.wait(lambda: not cluster.call("squeue", "-h"), "an empty queue")

    def test_of_an_array_of_jobs_each_is_requeued_for_itself(
        self, job: tuple[JobSpec, Storage], cluster: Cluster, tmp_path: Path
    ) -> None:
        spec, first = job
        submit(open_storage(tmp_path / "jobs"), msgspec.structs.replace(spec, job="j1"))
        second = open_storage(tmp_path / "jobs" / "j1")
        (tmp_path / "jobs" / "j").rename(tmp_path / "jobs" / "j0")
        first = open_storage(tmp_path / "jobs" / "j0")
        array = self._array(cluster, tmp_path, spec, str(tmp_path / "jobs" / "j") + "$TASK")
        self._until(lambda: all(self._is(one, State.RUNNING) for one in (first, second)))
        # One of them has the array's own number: whoever asked by that would ask for both.
        cluster.call("scancel", "-s", "USR1", f"{array}_1")
        self._until(lambda: Journal(second).existing_job().outcome is Outcome.PREEMPTED)
        (tmp_path / "done").touch()
        cluster.start_now(f"{array}_1", 1)
        self._until(lambda: all(self._is(one, State.SUCCEEDED) for one in (first, second)))
        attempts = [Journal(one).existing_job().attempt for one in (first, second)]
        assert attempts == [1, 2]
        cluster.wait(lambda: not cluster.call("squeue", "-h"), "an empty queue")

    def _array(self, cluster: Cluster, folder: Path, spec: JobSpec, url: str) -> str:
        """Queue an array of two that supervise a job each; $TASK in the URL is their number."""
        text = script(spec, open_storage(folder / "jobs" / "j"))
        lines = [line for line in text.splitlines() if "--output" not in line]
        where = '"' + url.replace("$TASK", "$SLURM_ARRAY_TASK_ID") + '"'
        lines[-1] = lines[-1].rpartition(" ")[0] + f" {where}"
        batch = folder / "array.sh"
        batch.write_text("\n".join(lines) + "\n")
        asked = ["--array=0-1", "-o", str(folder / "array-%a.out")]
        return cluster.call("sbatch", "--parsable", *asked, str(batch)).strip()

    def test_a_refusal_of_slurm_is_quoted(self, job: tuple[JobSpec, Storage]) -> None:
        spec, storage = job
        wrong = {**spec.engine_options, "partition": "nowhere"}
        spec = JobSpec(job="j", script="a.py", engine="slurm", engine_options=wrong)
        with pytest.raises(EngineFailed, match="invalid partition"):
            self.make().launch(spec, storage)


def spec(**options: Any) -> JobSpec:
    return JobSpec(job="j", script="a.py", cwd="/w", engine="slurm", engine_options=options)


def test_the_batch_script_requests_the_given_options(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "100% it's")
    options = {"partition": "gpu", "gpus": "a100:2", "time": "2-12", "sbatch": ["account=a b"]}
    text = script(spec(**options), storage)
    asked = [shlex.split(line)[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    output = str(tmp_path / "100%% it's" / "supervisor.log")
    assert asked == [
        "--job-name=j",
        f"--comment=outlast {storage.root}",
        "--partition=gpu",
        "--gpus=a100:2",
        "--time=2-12",
        "--nodes=1",
        "--ntasks=1",
        "--requeue",
        "--signal=USR1@90",
        "--chdir=/w",
        "--open-mode=append",
        f"--output={output}",
        "--account=a b",
    ]
    assert shlex.split(text.splitlines()[-1])[-1] == storage.root


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nodes": "2"}, "2 nodes: .* not supported yet"),
        ({"time": "1"}, "too short: the job needs 90 s"),
        ({"time": "soon"}, "is not a time limit of Slurm"),
        ({"queue": "x"}, "or --sbatch queue="),
        ({"sbatch": ["signal=TERM"]}, "Outlast sets 'signal' itself"),
        ({"sbatch": ["--requeue"]}, "Outlast sets 'requeue' itself"),
        ({"sbatch": ["-A x"]}, "not a long option"),
        ({"sbatch": ["array=0-1"]}, "array=0-1 would start the same job several times"),
        ({"sbatch": ["nodes=2"]}, "nodes=2: .* not supported yet"),
        ({"sbatch": ["--ntasks=2"]}, "ntasks=2: .* not supported yet"),
        ({"sbatch": ["ntasks-per-node"]}, "not supported yet"),
        ({"sbatch": ["comment=mine"]}, "Outlast sets 'comment' itself"),
        ({"sbatch": ["mail-user=a\nb"]}, "contains a control character"),
        ({"partition": "gpu\nrm -rf x"}, "contains a control character"),
    ],
)
def test_options_that_are_not_allowed_are_named(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecInvalid, match=said):
        script(spec(**options), open_storage(tmp_path))


@pytest.mark.parametrize("limit", ["2", "1:31", "0:02:00", "1-0", "0-0:2", "0-0:0:91", "UNLIMITED"])
def test_time_limits_are_read_as_slurm_reads_them(limit: str, tmp_path: Path) -> None:
    assert f"--time={limit}" in script(spec(time=limit), open_storage(tmp_path))


def test_without_slurm_the_missing_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineFailed, match="sbatch"):
        SlurmEngine().launch(spec(), open_storage(tmp_path / "j"))


def test_engines_are_known_by_name() -> None:
    assert {"local", "slurm"} <= set(engines.names())
    assert isinstance(engines.get("slurm"), SlurmEngine)
    assert isinstance(engines.get("local"), LocalEngine)
    with pytest.raises(PluginUnknown, match="abacus"):
        engines.get("abacus")
    assert process_identity.here().local
