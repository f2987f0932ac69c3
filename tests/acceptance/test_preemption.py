"""Preemption notices, received by the real command line; most scripts need no TensorFlow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from outlast import exit_codes
from outlast.job import logs
from outlast.job.events import Released
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast_checkpoints.storage import open_storage
from tests.acceptance.jobs import Training, assert_same
from tests.acceptance.plain import PATIENCE, PlainJob
from tests.support.metadata_servers import AwsServer, AzureServer, GceServer, MetadataServer

pytestmark = pytest.mark.acceptance

GO_ON = "if ctx.attempt > 1: sys.exit(0)\ngo_on_for_ever()"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., PlainJob]]:
    """Return a function that makes a job which `outlast resume` then runs, beside a cloud."""
    with ExitStack() as stack:

        def run(server: MetadataServer, code: str, **options: Any) -> PlainJob:
            stack.enter_context(server.serving())
            plain = stack.enter_context(PlainJob(tmp_path, code, **options))
            plain.supervisors.append(resume(plain, server))
            return plain

        yield run


def resume(plain: PlainJob, server: MetadataServer) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "outlast", "resume", plain.storage.root]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "OUTLAST_METADATA_URL": server.url,
            "TMPDIR": str(plain.folder),  # no other training of this machine is to be waited for
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )


Run = Callable[..., PlainJob]


def rows(plain: PlainJob, event: str) -> list[dict[str, Any]]:
    return [row for row in logs.read(plain.storage) if row["event"] == event]


def assert_preempted(plain: PlainJob, cloud: str) -> dict[str, Any]:
    """Assert that a notice cost nothing and the job is anybody's; return the notice's row."""
    assert plain.supervisors[0].wait(PATIENCE) == exit_codes.RESUMABLE, plain.diagnostics()
    (end,) = plain.ends
    assert (end.outcome, end.exit_code) == (Outcome.PREEMPTED, exit_codes.RESUMABLE)
    assert end.advanced
    job = plain.job
    assert (job.state, job.owner, job.failures) == (State.PENDING, None, 0)
    released = plain.journal.read()[-1].event
    assert isinstance(released, Released)
    assert released.reason.startswith(f"{cloud}: ")
    assert "saved because of SIGTERM" in plain.output()
    assert [row["chosen"] for row in rows(plain, "preemption_watched")] == [cloud]
    (notice,) = rows(plain, "preemption_announced")
    assert notice["cloud"] == cloud
    assert notice["deadline"] in released.reason
    return notice


def test_google_preempts_a_job_that_then_resumes(run: Run) -> None:
    server = GceServer()
    plain = run(server, GO_ON, preemption="gce", max_retries=0)
    plain.training()
    server.say(preempted="TRUE")
    assert assert_preempted(plain, "gce")["seconds_left"] == 30.0
    server.say(preempted="FALSE")
    again = resume(plain, server)
    plain.supervisors.append(again)
    assert again.wait(PATIENCE) == exit_codes.DONE
    assert (plain.job.state, plain.job.attempt) == (State.SUCCEEDED, 2)


def test_amazon_preempts_a_spot_instance(run: Run) -> None:
    server = AwsServer()
    plain = run(server, GO_ON, preemption="aws", max_retries=0)
    plain.training()
    server.interrupt()
    notice = assert_preempted(plain, "aws")
    assert 100 < notice["seconds_left"] <= 120
    # The attempt was told how long it has, for its --grace was not one that was given.
    told = json.loads(plain.storage.read("attempts/0001/deadline.json"))
    assert told["by"] > plain.journal.read()[-1].at + 90


def test_azure_evicts_a_job_and_gets_the_acknowledgement_after_the_save(run: Run) -> None:
    server = AzureServer()
    plain = run(server, GO_ON, preemption="azure", max_retries=0)
    plain.training()
    server.schedule("Preempt")
    assert_preempted(plain, "azure")
    assert len(server.started) == 1


def test_a_training_killed_after_a_notice_still_counts_as_preempted(run: Run) -> None:
    server = GceServer()
    code = "for _ in range(3): step()\nctx.status.activity = 'compiling'\n"
    plain = run(
        server,
        code + "while True: time.sleep(0.1)",
        preemption="gce", max_retries=0, grace=0.3, grace_is_limit=True,
    )  # fmt: skip
    plain.training()
    server.say(preempted="TRUE")
    assert plain.supervisors[0].wait(PATIENCE) == exit_codes.RESUMABLE, plain.diagnostics()
    (end,) = plain.ends
    assert (end.outcome, end.advanced) == (Outcome.PREEMPTED, False)
    assert end.reason == "did not leave within 0.3 s and was killed"
    assert (plain.job.state, plain.job.failures) == (State.PENDING, 0)


def test_sigterm_after_a_notice_and_a_second_one_break_nothing(run: Run) -> None:
    server = GceServer()
    slow = (
        "if ctx.attempt > 1: sys.exit(0)\n"
        "while not ctx.stop.requested: step_on()\n"
        "ctx.status.activity = 'saving'\n"
        "while not (here / 'saved').exists(): time.sleep(0.02)\n"
        "commit(ctx.status.step)\nprint('saved because of', ctx.stop.reason)\nctx.leave()\n"
    )
    step_on = "def step_on():\n    ctx.status.activity = 'training'; ctx.status.phase = 0\n"
    step_on += "    ctx.status.step += 1; ctx.status.tick(); time.sleep(0.01)\n"
    plain = run(server, step_on + slow, preemption="gce", max_retries=0)
    beat = plain.training()
    server.say(preempted="TRUE")
    plain.until(lambda: (found := plain.beat()) and found.activity == "saving")
    for _ in range(2):  # as the machine's own shutdown does, to all of its processes
        plain.supervisors[0].send_signal(signal.SIGTERM)
        os.kill(beat.pid, signal.SIGTERM)
    (plain.folder / "saved").touch()
    assert_preempted(plain, "gce")


@pytest.mark.parametrize("trouble", ["error", "hang"])
def test_a_failing_metadata_server_does_not_affect_the_training(run: Run, trouble: str) -> None:
    server = GceServer()
    server.say(trouble=trouble)
    plain = run(server, "for _ in range(20): step()", preemption="gce", max_retries=0)
    assert plain.supervisors[0].wait(PATIENCE) == exit_codes.DONE, plain.diagnostics()
    assert plain.job.state is State.SUCCEEDED
    assert server.asked
    assert len(rows(plain, "metadata_failed")) <= 1


def test_a_training_that_google_preempts_ends_as_if_untouched(
    train: Callable[..., Training],
    untouched: Callable[[str], Training],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = GceServer()
    monkeypatch.setenv("GCE_METADATA_HOST", server.host)
    training = train("mlp", options="--save-every 7,epoch --preemption gce", forked=True)
    with server.serving():
        training.hold("validation", 3)
        training.start()
        attempt = training.attempt(1)
        training.until_held(attempt, "validation", 3)
        server.say(preempted="TRUE")
        folder = training.folder / "attempts" / "0001"
        training.until("the notice", lambda: (folder / "deadline.json").exists())
        training.hold("never")
        training.end(exit_codes.RESUMABLE)
        job = training.job()
        assert (job.state, job.outcome) == (State.PENDING, Outcome.PREEMPTED)
        assert job.failures == 0
        server.say(preempted="FALSE")
        training.resume()
        training.end()
    assert training.job().attempt == 2
    steps = [step for _, step in training.raw_steps()]
    assert len(steps) == max(steps)  # none was trained twice
    assert_same(training, untouched("mlp"))


BARE = """
import sys, time
from outlast.attempt import bare

ctx = bare.open_bare(sys.argv[1])
ctx.stop.watched = False  # as before, between and after its phases: nothing is unsaved
print("here", flush=True)
time.sleep(120)
"""


def test_a_notice_ends_a_bare_script_outside_its_phases(tmp_path: Path) -> None:
    server = GceServer()
    environment = {
        **os.environ,
        "OUTLAST_PREEMPTION": "gce",
        "OUTLAST_METADATA_URL": server.url,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", BARE, str(tmp_path / "job")]
    with (
        server.serving(),
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as script,
    ):
        assert script.stdout is not None
        assert script.stdout.readline() == "here\n"
        server.say(preempted="TRUE")
        assert script.wait(PATIENCE) == exit_codes.RESUMABLE
    job = Journal(open_storage(tmp_path / "job")).existing_job()
    assert (job.state, job.outcome, job.owner) == (State.PENDING, Outcome.PREEMPTED, None)
    assert job.failures == 0
