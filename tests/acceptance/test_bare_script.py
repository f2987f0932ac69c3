"""Scripts run by hand, without `outlast run`: real processes, no TensorFlow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outlast import exit_codes
from outlast.job import spec as specs
from outlast.job.events import Ended
from outlast.job.heartbeat import read as read_beat
from outlast.job.journal import Journal
from outlast.job.lifecycle import Job, State
from outlast.job.outcome import Outcome
from outlast_checkpoints.storage import open_storage

pytestmark = pytest.mark.acceptance

HEAD = """
import sys, time
from pathlib import Path
from outlast.attempt import bare, context
ctx = bare.open_bare({job_dir!r}, {options})
def wait():
    print("ready", flush=True)
    while not ctx.stop.requested:
        ctx.status.tick()
        time.sleep(0.01)
    print("asked by", ctx.stop.reason, flush=True)
"""


class Bare:
    """A script and its job's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = open_storage(folder / "my job")
        self.running: list[subprocess.Popen[str]] = []

    def start(self, code: str, options: str = "") -> subprocess.Popen[str]:
        script = self.folder / "train.py"
        head = HEAD.format(job_dir=str(self.folder / "my job"), options=options)
        script.write_text(head + code)
        process = subprocess.Popen(
            [sys.executable, str(script), "--lr", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.running.append(process)
        return process

    def run(self, code: str, options: str = "") -> tuple[int, str]:
        process = self.start(code, options)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said

    @property
    def job(self) -> Job:
        return Journal(self.storage).existing_job()

    @property
    def ends(self) -> list[Ended]:
        events = (entry.event for entry in Journal(self.storage).read())
        return [event for event in events if isinstance(event, Ended)]


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bare]:
    bare = Bare(tmp_path)
    yield bare
    for process in bare.running:
        process.kill()
        with process:  # closes its pipe, read to the end or not
            pass


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def test_a_bare_script_is_a_complete_job(bare: Bare) -> None:
    code, said = bare.run("ctx.status.step = 12; print(ctx.attempt, ctx.supervised, ctx.local_dir)")
    assert (code, said) == (0, f"1 False {bare.folder / 'my job'}\n")
    spec = specs.decode(bare.storage.read("spec.json"))
    assert (spec.job, spec.args) == ("my-job", ["--lr", "1"])
    assert spec.script == str(bare.folder / "train.py")
    assert bare.job.state is State.SUCCEEDED
    beat = read_beat(bare.storage, 1)
    assert beat is not None
    assert (beat.ended, beat.step) == (0, 12)
    assert [end.reached for end in bare.ends] == [beat.reached()]


def test_running_the_script_again_starts_the_next_attempt(bare: Bare) -> None:
    for attempt in (1, 2, 3):
        assert bare.run("print(ctx.attempt)") == (0, f"{attempt}\n")
    assert bare.job.attempt == 3


def test_a_second_call_gives_the_same_attempt(bare: Bare) -> None:
    same = "print(bare.open_bare(ctx.local_dir) is ctx is context.current())"
    assert bare.run(same) == (0, "True\n")


def test_the_seed_stays_with_the_job_and_arguments_override_it(bare: Bare) -> None:
    told = "print(ctx.spec.seed, ctx.spec.save_every, ctx.spec.keep)"
    first = bare.run(told, "save_every=7")[1].split()
    assert first[1:] == ["7", "last:3"]
    assert bare.run(told)[1].split() == first
    assert bare.run(told, "save_every='30s', keep=5, seed=9")[1].split() == ["9", "30s", "5"]
    assert bare.run(told)[1].split() == first


def test_a_bad_argument_is_named(bare: Bare) -> None:
    code, said = bare.run("", "save_every='sometimes'")
    assert code == 1
    assert "SpecInvalid: Invalid value for save_every" in said


def test_a_crash_is_recorded_with_its_reason(bare: Bare) -> None:
    code, said = bare.run("raise ValueError('no such column')")
    assert code == 1
    assert said.splitlines()[-1] == "ValueError: no such column"
    assert (bare.job.state, bare.job.owner) == (State.PENDING, None)
    (end,) = bare.ends
    assert (end.outcome, end.reason) == (Outcome.CRASHED, "ValueError: no such column")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_lets_it_save_and_leave(bare: Bare, signum: signal.Signals) -> None:
    process = bare.start("wait()\nctx.leave()")
    ready(process)
    process.send_signal(signum)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (exit_codes.RESUMABLE, f"asked by {signum.name}\n")
    assert bare.job.state is State.STOPPED
    assert bare.run("print(ctx.attempt)") == (0, "2\n")


def test_the_third_ctrl_c_interrupts_immediately(bare: Bare) -> None:
    process = bare.start("wait()\ntime.sleep(1000)")
    ready(process)
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked by SIGINT\n"
    process.send_signal(signal.SIGINT)
    # the third must be one of its own: two that are pending at once are one
    said = ""
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            said, _ = process.communicate(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    assert "KeyboardInterrupt" in said
    assert process.returncode == -signal.SIGINT
    assert bare.ends[0].outcome is Outcome.STOPPED


def test_a_second_process_of_the_same_job_is_refused(bare: Bare) -> None:
    first = bare.start("wait()\nctx.leave()")
    ready(first)
    code, said = bare.run("")
    assert code == 1
    assert "JobBusy" in said
    assert f"process {first.pid} on {os.uname().nodename} has it" in said
    first.terminate()
    first.communicate(timeout=60)
    assert bare.run("print(ctx.attempt)") == (0, "2\n")


def test_after_a_sigkill_the_next_process_starts_immediately(bare: Bare) -> None:
    first = bare.start("wait()")
    ready(first)
    first.kill()
    first.communicate()
    assert bare.run("print(ctx.attempt)") == (0, "2\n")
    assert [end.outcome for end in bare.ends] == [Outcome.LOST, Outcome.COMPLETED]


def test_a_job_can_be_in_memory(bare: Bare) -> None:
    """As in a notebook: closed by hand, and its handlers and context are gone with it."""
    code, said = bare.run(
        "import signal\n"
        "bare.close_bare(ctx)\n"
        "assert context.current() is None\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "other = bare.open_bare('memory://jobs/a')\n"
        "other.log.info('here')\n"
        "bare.close_bare(other)\n"
        "again = bare.open_bare('memory://jobs/a')\n"
        "print(again.attempt, again.local_dir)\n"
    )
    assert (code, said) == (0, "2 None\n")
