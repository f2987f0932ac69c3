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
    yield
    after = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum, handler in before.items():
        signal.signal(signum, handler)
    assert after == before


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
    assert not flag.save_and_go_on
    handlers.restore()


def test_usr2_asks_for_a_save_only() -> None:
    flag = StopFlag()
    handlers = signals.install(flag)
    assert handlers is not None
    signal.raise_signal(signal.SIGUSR2)
    assert flag.save_and_go_on
    assert not flag.requested
    handlers.restore()


def test_patience_ends_with_an_interrupt() -> None:
    flag = StopFlag()
    handlers = signals.install(flag, patience=2)
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


def test_a_fork_ends_however_soon_it_is_asked_to() -> None:
    done = subprocess.run([sys.executable, "-c", SOON], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all ended\n", "")
