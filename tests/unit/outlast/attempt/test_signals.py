"""Signals set a flag and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from outlast.attempt import signals
from outlast.attempt.signals import StopFlag

SIGNALS = (*signals.LEAVE, *signals.SAVE)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    usual = dict.fromkeys(SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    for signum, handler in usual.items():  # whatever tests before have left
        signal.signal(signum, handler)
    yield
    after = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum, handler in before.items():
        signal.signal(signum, handler)
    assert after == usual


@pytest.mark.parametrize("signum", signals.LEAVE)
def test_a_signal_asks_to_leave_and_a_second_changes_nothing(signum: signal.Signals) -> None:
    flag = StopFlag()
    handlers = signals.install(flag)
    assert handlers is not None
    assert (flag.reason, flag.requested, flag.wait(0)) == (None, False, False)
    signal.raise_signal(signum)
    assert (flag.reason, flag.count, flag.wait(0)) == (signum.name, 1, True)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert (flag.reason, flag.count) == (signum.name, 3)
    assert not flag.save_and_continue
    handlers.restore()


def test_usr2_asks_for_a_save_only() -> None:
    flag = StopFlag()
    handlers = signals.install(flag)
    assert handlers is not None
    signal.raise_signal(signal.SIGUSR2)
    assert flag.save_and_continue
    assert not flag.requested
    handlers.restore()


def test_the_last_allowed_interrupt_raises_keyboard_interrupt() -> None:
    flag = StopFlag()
    handlers = signals.install(flag, max_interrupts=2)
    assert handlers is not None
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    for _ in range(5):
        signal.raise_signal(signal.SIGTERM)  # of these any number
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    handlers.restore()


def test_outside_of_the_main_thread_there_are_no_handlers() -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(signals.install(StopFlag())))
    thread.start()
    thread.join()
    assert found == [None]


class Script:
    """A script's own handler, which notes the signals that it gets."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.seen: list[int] = []
        self._error = error

    def __call__(self, signum: int, frame: object) -> None:
        self.seen.append(signum)
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("late", [False, True])
def test_the_scripts_own_handler_is_called_after_ours(signum: signal.Signals, late: bool) -> None:
    flag, script = StopFlag(), Script()
    before = signal.getsignal(signum)
    if not late:
        signal.signal(signum, script)
    handlers = signals.install(flag)
    assert handlers is not None
    if late:
        signal.signal(signum, script)
    assert flag.reinstall_handlers() == ([signum.name] if late else [])
    assert flag.reinstall_handlers() == []
    signal.raise_signal(signum)
    assert script.seen == [signum]
    assert flag.save_and_continue == (signum in signals.SAVE)
    assert flag.requested == (signum in signals.LEAVE)
    handlers.restore()
    assert signal.getsignal(signum) == script
    signal.signal(signum, before)


@pytest.mark.parametrize("other", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_signal_that_the_script_ignores_still_saves(other: signal.Handlers) -> None:
    flag = StopFlag()
    handlers = signals.install(flag)
    assert handlers is not None
    signal.signal(signal.SIGTERM, other)
    assert flag.reinstall_handlers() == ["SIGTERM"]
    signal.raise_signal(signal.SIGTERM)
    assert flag.reason == "SIGTERM"
    signal.signal(signal.SIGTERM, other)
    assert flag.reinstall_handlers() == []  # it was said before
    signal.raise_signal(signal.SIGTERM)
    assert flag.count == 2
    handlers.restore()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), ValueError("no")])
def test_a_handler_that_leaves_waits_for_the_save(error: BaseException) -> None:
    flag = StopFlag()
    before = signal.signal(signal.SIGTERM, Script(error))
    handlers = signals.install(flag)
    assert handlers is not None
    with flag.read_by_loop():
        signal.raise_signal(signal.SIGTERM)
    assert flag.handler_error == f"{type(error).__name__}: {error}"
    with pytest.raises(type(error)):  # outside of a loop there is nothing to save
        signal.raise_signal(signal.SIGTERM)
    handlers.restore()
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_handler_that_is_set_in_a_loop_takes_no_signal_away(signum: signal.Signals) -> None:
    """Not even one that arrives before the next border between two steps."""
    flag, early, late = StopFlag(), Script(), Script()
    handlers = signals.install(flag)
    assert handlers is not None
    usual = signal.getsignal(signum)
    set_handler = signal.signal
    signal.signal(signum, early)
    with flag.read_by_loop():
        signal.raise_signal(signum)
        assert signal.signal(signum, late) == early
        signal.raise_signal(signum)
        assert (early.seen, late.seen) == ([signum], [signum])
        assert flag.count + 2 * flag.save_and_continue == 2
        assert flag.reinstall_handlers() == [signum.name]
        assert signal.signal(signum, usual) == late
        signal.raise_signal(signum)
        assert len(late.seen) == 1
        with pytest.raises(TypeError):
            signal.signal(signum, "no handler")  # type: ignore[arg-type]
        assert signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGHUP)) is not None
        assert flag.reinstall_handlers() == []
    assert signal.signal is set_handler
    handlers.restore()


def test_a_handler_that_ends_the_process_by_the_same_signal_waits_for_the_save() -> None:
    flag = StopFlag()
    handlers = signals.install(flag)
    assert handlers is not None

    def ends(signum: int, frame: object) -> None:
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)

    with flag.read_by_loop():
        signal.signal(signal.SIGTERM, ends)
        signal.raise_signal(signal.SIGTERM)
        assert flag.reason == "SIGTERM"
    handlers.restore()


def test_outside_of_a_loop_the_script_decides_what_a_signal_means() -> None:
    flag, script = StopFlag(), Script()
    before = signal.signal(signal.SIGTERM, script)
    flag.watched = False
    handlers = signals.install(flag)
    assert handlers is not None
    signal.raise_signal(signal.SIGTERM)
    assert script.seen == [signal.SIGTERM]
    handlers.restore()
    signal.signal(signal.SIGTERM, before)


def test_a_handler_that_calls_the_previous_one_does_not_recurse() -> None:
    flag, seen = StopFlag(), []
    handlers = signals.install(flag)
    assert handlers is not None
    ours = signal.getsignal(signal.SIGTERM)
    assert callable(ours)

    def polite(signum: int, frame: object) -> None:
        seen.append(signum)
        ours(signum, None)

    signal.signal(signal.SIGTERM, polite)
    flag.reinstall_handlers()
    signal.raise_signal(signal.SIGTERM)
    assert (seen, flag.count) == ([signal.SIGTERM], 1)
    handlers.restore()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_two_jobs_in_turn_in_one_process_call_the_scripts_handler_once() -> None:
    one, two, script = StopFlag(), StopFlag(), Script()
    before = signal.signal(signal.SIGTERM, script)
    first, second = signals.install(one), signals.install(two)
    assert first is not None
    assert second is not None
    signal.raise_signal(signal.SIGTERM)
    assert (one.count, two.count, len(script.seen)) == (0, 1, 1)
    assert one.reinstall_handlers() == []  # nobody took them away: the other job did
    signal.raise_signal(signal.SIGTERM)
    assert (one.count, two.count) == (1, 1)
    second.restore()
    first.restore()
    signal.signal(signal.SIGTERM, before)


FORKS = """
import os, signal
from outlast.attempt import signals as preemption

preemption.install(preemption.StopFlag())
pid = os.fork()
if pid == 0:
    signal.raise_signal(signal.SIGTERM)
    os._exit(0)  # not reached
print(os.WTERMSIG(os.waitpid(pid, 0)[1]))
"""


def test_a_fork_ends_as_if_there_were_no_handler() -> None:
    """A data worker forked from the attempt has nothing to save: terminate() must end it."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True)
    assert int(done.stdout) == signal.SIGTERM


HANDLERS_OF_A_FORK = """
import os, signal
from outlast.attempt import signals as preemption

before = {s: signal.getsignal(s) for s in preemption.LEAVE}
preemption.install(preemption.StopFlag())
pid = os.fork()
if pid == 0:
    as_before = all(signal.getsignal(s) == before[s] for s in preemption.LEAVE)
    os._exit(0 if as_before and signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_fork_has_no_handler_of_ours() -> None:
    """Ours would not be run in a worker that is just beginning to wait for a lock."""
    command = [sys.executable, "-c", HANDLERS_OF_A_FORK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


SOON = """
import os, signal, time
from outlast.attempt import signals as preemption

preemption.install(preemption.StopFlag())
for _ in range(100):
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(1)
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 20
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            raise SystemExit("it never ended")
print("all ended")
"""


def test_a_fork_ends_on_a_signal_at_any_time() -> None:
    done = subprocess.run([sys.executable, "-c", SOON], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all ended\n", "")
