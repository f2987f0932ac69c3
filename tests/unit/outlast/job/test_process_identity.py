"""Whether a process that was named once is still the same one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from outlast.job import process_identity


def test_this_process_is_running() -> None:
    me = process_identity.here()
    assert me.pid == os.getpid()
    assert me.local
    assert me.is_running()
    assert not me.gone()
    assert str(me) == f"process {os.getpid()} on {me.host}"


def test_a_reused_pid_is_another_process() -> None:
    me = process_identity.here()
    assert me.start is not None
    other = msgspec.structs.replace(me, start=me.start - 1)
    assert other.gone()
    assert not other.is_running()


def test_processes_of_another_machine_or_boot_are_unknown() -> None:
    me = process_identity.here()
    for elsewhere in (
        msgspec.structs.replace(me, boot_id="other/pid:[1]"),  # another host of this name
        msgspec.structs.replace(me, boot_id="before/pid:[1]", pid=1),
        msgspec.structs.replace(me, boot_id=""),
    ):
        assert not elsewhere.local
        assert not elsewhere.gone()
        assert not elsewhere.is_running()


def test_the_hosts_name_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    before = process_identity.here()
    monkeypatch.setattr(process_identity.socket, "gethostname", lambda: "renamed")
    now = process_identity.here()
    assert (now.host, before.local, before.is_running()) == ("renamed", True, True)
    assert now == before
    assert not now != before  # noqa: SIM202  (msgspec has its own)
    assert len({now, before}) == 1
    unknown = msgspec.structs.replace(before, boot_id="")
    assert unknown != msgspec.structs.replace(now, boot_id="")


def test_a_process_is_followed_from_stopped_to_gone() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    who = process_identity.of_process(child.pid)
    assert who.is_running()
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert not who.is_running()
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
        assert who.is_running()
    finally:
        child.kill()
        child.wait()
