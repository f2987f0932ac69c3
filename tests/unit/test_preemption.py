"""Signals set a flag and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from service import preemption
from service.preemption import StopFlag

SIGNALS = (*preemption.LEAVE, *preemption.SAVE)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    after = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum, handler in before.items():
        signal.signal(signum, handler)
    assert after == before


@pytest.mark.parametrize("signum", preemption.LEAVE)
def test_a_signal_asks_to_leave_and_a_second_changes_nothing(signum: signal.Signals) -> None:
    flag = StopFlag()
    handlers = preemption.install(flag)
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
    handlers = preemption.install(flag)
    assert handlers is not None
    signal.raise_signal(signal.SIGUSR2)
    assert flag.save_and_go_on
    assert not flag.requested
    handlers.restore()


def test_patience_ends_with_an_interrupt() -> None:
    flag = StopFlag()
    handlers = preemption.install(flag, patience=2)
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
    thread = threading.Thread(target=lambda: found.append(preemption.install(StopFlag())))
    thread.start()
    thread.join()
    assert found == [None]


FORKS = """
import os, signal
from service import preemption

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
