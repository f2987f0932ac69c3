"""Whether a process that was named once is still the same one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil

from outlast.job import process_identity


def test_this_process_is_at_work() -> None:
    me = process_identity.here()
    assert me.pid == os.getpid()
    assert me.local
    assert me.at_work()
    assert not me.gone()
    assert str(me) == f"process {os.getpid()} on {me.host}"


def test_a_recycled_pid_is_not_taken_for_it() -> None:
    me = process_identity.here()
    assert me.start is not None
    other = msgspec.structs.replace(me, start=me.start - 1)
    assert other.gone()
    assert not other.at_work()


def test_of_another_machine_or_boot_nothing_is_known() -> None:
    me = process_identity.here()
    for elsewhere in (
        msgspec.structs.replace(me, host="elsewhere", pid=1),
        msgspec.structs.replace(me, boot_id="before/pid:[1]", pid=1),
        msgspec.structs.replace(me, boot_id=""),
    ):
        assert not elsewhere.local
        assert not elsewhere.gone()
        assert not elsewhere.at_work()


def test_a_process_is_followed_from_stopped_to_gone() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    who = process_identity.of_process(child.pid)
    assert who.at_work()
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert not who.at_work()
    assert not who.gone()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert who.gone()  # a zombie does nothing any more
    child.communicate()
    assert who.gone()


def test_a_name_with_brackets_and_blanks_is_read(tmp_path: Path) -> None:
    odd = tmp_path / "a) R (b"
    odd.symlink_to("/bin/sleep")
    child = subprocess.Popen([odd, "60"])
    try:
        started = psutil.Process(child.pid).create_time()
        who = process_identity.of_process(child.pid)
        assert who.start is not None
        ticks = os.sysconf("SC_CLK_TCK")
        assert abs(psutil.boot_time() + who.start / ticks - started) < 2
        assert who.at_work()
    finally:
        child.kill()
        child.wait()
