"""The supervisor with real processes and real signals; the scripts need no TensorFlow."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from outlast import exit_codes
from outlast.errors import DaemonFailed, JobBusy
from outlast.job import lifecycle
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.supervisor.detached import start_detached
from outlast.supervisor.supervisor import Observer, Supervisor, request_stop, resume
from tests.acceptance.plain import PlainJob

pytestmark = pytest.mark.acceptance


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., PlainJob]]:
    """Return a function that makes a job of a script's code; nothing of it outlives the test."""
    with ExitStack() as stack:
        yield lambda code, **options: stack.enter_context(PlainJob(tmp_path, code, **options))


Make = Callable[..., PlainJob]


def test_a_script_that_just_works(job: Make) -> None:
    plain = job("print('hello', sys.argv[1:])", args=["--lr", "1"])
    assert plain.run() == exit_codes.DONE
    assert plain.job.state is State.SUCCEEDED
    assert plain.output() == "hello ['--lr', '1']\n"
    assert plain.log() == [
        "attempt_launched",
        "attempt_started",
        "nothing_protected",
        "attempt_exited",
        "attempt_ended",
    ]
    assert resume(plain.storage).state is State.SUCCEEDED  # and nothing is started again


def test_a_crash_loop_spends_the_retry_budget_and_says_why(job: Make) -> None:
    plain = job("def load():\n    raise ConnectionError('no such host')\nload()", max_retries=2)
    assert plain.run() == exit_codes.FAILED
    found = plain.job
    assert (found.state, found.attempt) == (State.FAILED, 3)
    assert [end.outcome for end in plain.ends] == [Outcome.CRASHED] * 3
    assert "3 consecutive attempts" in found.reason
    assert "ConnectionError: no such host (train.py, line " in found.reason
    assert "job_failed" in plain.log(level="error")
    # the traceback is the user's own, from the first frame on
    lines = plain.output().splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "train.py" in lines[1]
    assert lines[-1] == "ConnectionError: no such host"
    assert not any("service/outlast" in line or "runpy" in line for line in lines)


@pytest.mark.parametrize(("kind", "attempts"), [("ValueError", 1), ("KeyError", 2)])
def test_a_permanent_error_ends_the_job(job: Make, kind: str, attempts: int) -> None:
    plain = job(f"raise {kind}('no such column')", max_retries=3, backoff=0.0)
    assert plain.run() == exit_codes.FAILED
    assert (plain.job.state, plain.job.attempt) == (State.FAILED, attempts)
    assert "it is not retried, because" in plain.job.reason


def test_progress_resets_the_retry_budget(job: Make) -> None:
    plain = job(
        "for _ in range(ctx.attempt): step()\ncommit(ctx.attempt)\n"
        "sys.exit(0 if ctx.attempt == 5 else 1)",
        max_retries=0,
    )
    assert plain.run() == exit_codes.DONE
    assert plain.job.attempt == 5
    assert [end.advanced for end in plain.ends] == [True] * 5
    assert [end.reached and end.reached.step for end in plain.ends] == [1, 2, 3, 4, 5]


def test_a_sigkill_is_reported_as_a_possible_lack_of_memory(job: Make) -> None:
    plain = job("if ctx.attempt == 1: os.kill(os.getpid(), signal.SIGKILL)")
    assert plain.run() == exit_codes.DONE
    first = plain.ends[0]
    assert (first.outcome, first.signal) == (Outcome.KILLED, signal.SIGKILL)
    assert "perhaps out of memory" in first.reason


def test_a_segmentation_fault_is_named_and_its_stack_is_kept(job: Make) -> None:
    plain = job("import faulthandler\nif ctx.attempt == 1: faulthandler._sigsegv()")
    assert plain.run() == exit_codes.DONE
    assert plain.ends[0].outcome is Outcome.CRASHED
    assert "segmentation fault" in plain.ends[0].reason
    assert "train.py" in plain.output()


@pytest.mark.parametrize(
    ("code", "say"),
    [
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("from json import no_such_name", "no_such_name"),
        ("def broken(:", "invalid syntax"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--what'])", "--what"),
    ],
)
def test_a_rejected_script_is_not_retried(job: Make, code: str, say: str) -> None:
    plain = job(code)
    assert plain.run() == exit_codes.REJECTED
    assert (plain.job.state, plain.job.outcome) == (State.FAILED, Outcome.REJECTED)
    assert plain.job.attempt == 1
    assert say in plain.output()


def test_a_missing_module_in_the_middle_of_training_is_a_crash(job: Make) -> None:
    plain = job("step()\nimport no_such_module_at_all", max_retries=1)
    assert plain.run() == exit_codes.FAILED
    assert [end.outcome for end in plain.ends] == [Outcome.CRASHED] * 2


@pytest.mark.parametrize(
    ("options", "say"),
    [
        ({"script": "gone.py"}, "the file does not exist"),
        ({"script": None, "module": "no_such_package.train"}, "no_such_package"),
        ({"script": None, "module": "json"}, "json"),
        ({"script": "."}, "__main__"),
    ],
)
def test_a_missing_script_is_reported_in_one_line(
    job: Make, options: dict[str, Any], say: str
) -> None:
    plain = job("", **options)
    assert plain.run() == exit_codes.REJECTED
    assert say in plain.job.reason
    assert plain.output().startswith("outlast: The script ")
    assert "Traceback" not in plain.output()


def test_a_module_runs_as_with_python_m(job: Make, tmp_path: Path) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(
        "import sys\nfrom . import __name__ as parent\nprint(__name__, parent, sys.argv)"
    )
    plain = job("", script=None, module="mine.train", args=["-x"])
    assert plain.run() == exit_codes.DONE
    assert plain.output() == f"__main__ mine ['{package / 'train.py'}', '-x']\n"


def test_a_missing_interpreter_is_not_tried_again(job: Make) -> None:
    plain = job("", python="/no-such-python", max_retries=1)
    assert plain.run() == exit_codes.REJECTED
    assert "/no-such-python" in plain.job.reason


@pytest.mark.parametrize("freeze", ["time.sleep(1000)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_a_hanging_attempt_is_killed_after_its_stacks_are_in_the_output(
    job: Make, freeze: str
) -> None:
    plain = job(
        f"step()\ndef deep_inside():\n    {freeze}\nif ctx.attempt == 1: deep_inside()",
        stall_timeout=5.0,
    )
    assert plain.run() == exit_codes.DONE
    first, second = plain.ends
    assert (first.outcome, second.outcome) == (Outcome.STALLED, Outcome.COMPLETED)
    assert "no progress for" in first.reason
    assert "attempt_stalled" in plain.log(level="error")
    if "sleep" in freeze:  # a stopped process cannot write any more
        assert "in deep_inside" in plain.output()
        assert "Thread 0x" in plain.output()  # of all threads


def test_ctrl_c_once_saves_and_stops_and_resume_continues(job: Make) -> None:
    plain = job("if ctx.attempt == 1: go_on_for_ever()")
    supervisor = plain.start()
    plain.training()
    supervisor.send_signal(signal.SIGINT)
    assert plain.end(supervisor) == exit_codes.RESUMABLE
    assert plain.job.state is State.STOPPED
    (end,) = plain.ends
    assert (end.outcome, end.exit_code, end.advanced) == (Outcome.STOPPED, 75, True)
    assert plain.output() == "saved because of SIGTERM\n"
    assert resume(plain.storage).state is State.PENDING
    assert plain.run() == exit_codes.DONE
    assert plain.job.attempt == 2


def test_ctrl_c_on_the_terminal_reaches_the_supervisor_only(job: Make) -> None:
    plain = job("go_on_for_ever()")
    supervisor = plain.start()
    beat = plain.training()
    assert os.getsid(beat.pid) == beat.pid != os.getsid(supervisor.pid)
    assert os.getpgid(beat.pid) == beat.pid


def test_ctrl_c_twice_stops_immediately(job: Make) -> None:
    plain = job(
        "signal.signal(signal.SIGTERM, lambda *_: (here / 'asked').touch())\ngo_on_for_ever()"
    )
    supervisor = plain.start()
    plain.training()
    supervisor.send_signal(signal.SIGINT)
    plain.until((plain.folder / "asked").exists)
    assert plain.job.state is State.STOPPING
    supervisor.send_signal(signal.SIGINT)
    assert plain.end(supervisor) == exit_codes.INTERRUPTED
    assert plain.job.state is State.STOPPED
    assert plain.ends[0].signal == signal.SIGKILL


def test_an_attempt_that_stays_beyond_the_grace_is_killed(job: Make) -> None:
    plain = job("signal.signal(signal.SIGTERM, signal.SIG_IGN)\ngo_on_for_ever()", grace=0.5)
    supervisor = plain.start()
    plain.training()
    supervisor.send_signal(signal.SIGINT)
    assert plain.end(supervisor) == exit_codes.RESUMABLE
    assert plain.job.state is State.STOPPED
    assert "did not leave within 0.5 s" in plain.ends[0].reason


def test_a_save_may_take_longer_than_the_grace(job: Make) -> None:
    plain = job(
        "while not ctx.stop.requested: step_ = ctx.status.tick(); time.sleep(0.01); "
        "ctx.status.phase = 0; ctx.status.step += 1\n"
        "ctx.status.activity = 'saving'\n"
        "while not (here / 'saved').exists(): time.sleep(0.01)\n"
        "commit(1)\nctx.leave()",
        grace=1.0,
    )
    supervisor = plain.start()
    plain.training()
    supervisor.send_signal(signal.SIGINT)
    plain.until(lambda: (beat := plain.beat()) is not None and beat.activity == "saving")
    count = plain.beat().count  # type: ignore[union-attr]
    plain.until(lambda: plain.beat().count > count + 10)  # type: ignore[union-attr]  # 2 s and more
    (plain.folder / "saved").touch()
    assert plain.end(supervisor) == exit_codes.RESUMABLE
    assert plain.ends[0].exit_code == exit_codes.RESUMABLE


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_preempted_supervisor_leaves_a_job_that_can_be_resumed(
    job: Make, signum: signal.Signals
) -> None:
    plain = job("if ctx.attempt == 1: go_on_for_ever()", max_retries=0)
    supervisor = plain.start()
    plain.training()
    supervisor.send_signal(signum)
    assert plain.end(supervisor) == exit_codes.RESUMABLE
    found = plain.job
    assert (found.state, found.owner, found.failures) == (State.PENDING, None, 0)
    assert plain.ends[0].outcome is Outcome.PREEMPTED
    assert plain.output() == "saved because of SIGTERM\n"
    assert resume(plain.storage).state is State.PENDING
    assert plain.run() == exit_codes.DONE


def test_an_attempt_that_is_preempted_alone_is_restarted(job: Make) -> None:
    plain = job("if ctx.attempt < 4: go_on_for_ever()", max_retries=0)
    supervisor = plain.start()
    for attempt in (1, 2, 3):
        os.kill(plain.training(attempt).pid, signal.SIGUSR1)
    assert plain.end(supervisor) == exit_codes.DONE
    assert [end.outcome for end in plain.ends] == [Outcome.PREEMPTED] * 3 + [Outcome.COMPLETED]


def test_a_stop_from_another_process_saves_and_stops(job: Make) -> None:
    plain = job("go_on_for_ever()")
    supervisor = plain.start()
    plain.training()
    assert request_stop(plain.storage).state is State.STOPPING
    assert plain.end(supervisor) == exit_codes.RESUMABLE
    assert plain.job.state is State.STOPPED
    assert plain.output() == "saved because of SIGTERM\n"
    assert request_stop(plain.storage).state is State.STOPPED  # once more does nothing


def test_a_stop_now_from_another_process_does_not_wait(job: Make) -> None:
    plain = job("go_on_for_ever()")
    supervisor = plain.start()
    plain.training()
    request_stop(plain.storage, now=True)
    assert plain.end(supervisor) == exit_codes.INTERRUPTED
    assert plain.ends[0].signal == signal.SIGKILL


def test_a_job_that_waits_for_its_next_attempt_stops_too(job: Make) -> None:
    plain = job("sys.exit(1)", backoff=1000.0, backoff_max=1000.0)
    supervisor = plain.start()
    plain.until(lambda: plain.job.state is State.WAITING)
    request_stop(plain.storage)
    assert plain.end(supervisor) == exit_codes.RESUMABLE
    assert (plain.job.state, plain.job.attempt) == (State.STOPPED, 1)


def test_a_supervisor_preempted_while_it_waits_releases_the_job(job: Make) -> None:
    plain = job("sys.exit(1)", backoff=1000.0, backoff_max=1000.0)
    supervisor = plain.start()
    plain.until(lambda: plain.job.state is State.WAITING)
    supervisor.terminate()
    assert plain.end(supervisor) == exit_codes.RESUMABLE
    assert (plain.job.state, plain.job.owner) == (State.PENDING, None)


def test_an_attempt_whose_supervisor_died_saves_and_leaves(job: Make) -> None:
    plain = job("if ctx.attempt == 1: go_on_for_ever()")
    supervisor = plain.start()
    plain.training()
    supervisor.kill()
    supervisor.wait()
    waited: list[str] = []
    found = resume(plain.storage, on_wait=waited.append)  # its orphan is waited for
    assert (found.state, found.outcome, found.failures) == (State.PENDING, Outcome.PREEMPTED, 0)
    assert plain.output() == "saved because of orphaned\n"
    assert plain.run() == exit_codes.DONE


def test_an_orphan_that_ignores_the_flag_is_forced_to_exit(job: Make) -> None:
    plain = job("ctx.status.phase = 0; ctx.status.step = 3\nwhile True: time.sleep(1)", grace=1.0)
    supervisor = plain.start()
    pid = plain.training().pid
    supervisor.kill()
    supervisor.wait()
    plain.until(lambda: not Path(f"/proc/{pid}").exists())
    assert "exit_forced" in plain.log(level="error")


def test_supervisor_and_attempt_killed_together_are_found_at_once(job: Make) -> None:
    plain = job("if ctx.attempt == 1: go_on_for_ever()", lost_after=10_000.0)
    supervisor = plain.start()
    beat = plain.training()
    supervisor.kill()
    os.kill(beat.pid, signal.SIGKILL)
    supervisor.wait()
    plain.until(lambda: not Path(f"/proc/{beat.pid}").exists())
    found = resume(plain.storage)
    assert (found.state, found.outcome, found.failures) == (State.PENDING, Outcome.LOST, 1)
    assert plain.run() == exit_codes.DONE


def test_a_job_whose_supervisor_died_can_be_stopped(job: Make) -> None:
    plain = job("go_on_for_ever()")
    supervisor = plain.start()
    plain.training()
    supervisor.kill()
    supervisor.wait()
    assert request_stop(plain.storage).state is State.STOPPED


def test_child_processes_of_the_script_do_not_outlive_a_crash(job: Make) -> None:
    plain = job(
        "import subprocess\n"
        "(here / 'pid').write_text(str(subprocess.Popen(['sleep', '1000']).pid))\n"
        "sys.exit(1)",
        max_retries=0,
    )
    plain.run()
    pid = int((plain.folder / "pid").read_text())
    plain.until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_a_hanging_interpreter_shutdown_counts_with_the_reported_exit_code(job: Make) -> None:
    plain = job(
        # runs after all that Python itself does at the end, where native libraries may hang
        "import ctypes\n"
        "hang = ctypes.CFUNCTYPE(None)(lambda: time.sleep(1000))\n"
        "ctypes.pythonapi.Py_AtExit(hang)\n"
        "print('done', flush=True)",
        grace=1.0,
    )
    assert plain.run() == exit_codes.DONE
    assert plain.job.state is State.SUCCEEDED


def test_a_detached_supervisor_outlives_its_parent(job: Make) -> None:
    plain = job("if ctx.attempt == 1: go_on_for_ever()")
    pid = start_detached(plain.storage.root)
    plain.training()
    assert os.getsid(pid) == pid  # no terminal can take it along
    owner = plain.job.owner
    assert owner is not None
    assert owner.pid == pid
    request_stop(plain.storage)
    plain.until(lambda: plain.job.state is State.STOPPED)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == exit_codes.RESUMABLE


def test_a_detached_supervisor_that_cannot_start_says_why(job: Make) -> None:
    plain = job("go_on_for_ever()")
    plain.start()
    plain.training()
    with pytest.raises(DaemonFailed, match="has it") as caught:
        start_detached(plain.storage.root)
    assert caught.value.fields["code"] == exit_codes.JOB_BUSY


def test_the_observer_sees_states_beats_output_and_log(job: Make) -> None:
    plain = job("print('hello ☂')\nfor _ in range(50): step()")

    class Recorder(Observer):
        def __init__(self) -> None:
            self.states: list[State] = []
            self.beats: list[int] = []
            self.output = b""
            self.rows: list[str] = []

        def on_state(self, job: lifecycle.Job) -> None:
            self.states.append(job.state)

        def on_beat(self, beat: Any) -> None:
            self.beats.append(beat.step)

        def on_output(self, data: bytes) -> None:
            self.output += data

        def on_log(self, row: dict[str, Any]) -> None:
            self.rows.append(row["event"])

    seen = Recorder()
    found = Supervisor(plain.storage, observer=seen).run()
    assert lifecycle.exit_code(found) == exit_codes.DONE
    assert seen.states == [State.PENDING, State.PENDING, State.RUNNING, State.SUCCEEDED]
    assert seen.beats[-1] == 50
    assert seen.beats == sorted(seen.beats)
    assert seen.output.decode() == "hello ☂\n"
    assert sorted(seen.rows) == sorted(plain.log())


def test_the_handlers_are_restored(job: Make) -> None:
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(signum) for signum in watched]
    Supervisor(job("").storage).run()
    assert [signal.getsignal(signum) for signum in watched] == before


def test_the_owner_of_the_job_is_named(job: Make) -> None:
    plain = job("go_on_for_ever()")
    supervisor = plain.start()
    plain.training()
    for ask in (lambda: resume(plain.storage), lambda: Supervisor(plain.storage).run()):
        with pytest.raises(JobBusy) as caught:
            ask()
        assert str(supervisor.pid) in str(caught.value)
        assert os.uname().nodename in str(caught.value)
    second = plain.start()
    said, _ = second.communicate(timeout=60)
    assert second.returncode == exit_codes.JOB_BUSY
    assert str(supervisor.pid) in said
    assert "Traceback" not in said
