"""Runs `outlast` and its attempts in forks of a process with TensorFlow, so that they start fast.

One process imports TensorFlow, the fork server; it lives as long as the tests do. A command line is
a fork of that, and its attempts are forks in turn: in all else processes of their own as
`outlast run …` and `python -m outlast.attempt.main` are, an attempt in a session of its own. It
saves the tests that start some hundred of them some seconds for each.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from outlast.backends import base
from outlast.backends.local import LocalBackend
from outlast.backends.warm_spares import Forked
from outlast.job import process_identity
from outlast.job.process_identity import SUPERVISOR_PID
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage
from tests.acceptance import killing


class ForkedBackend(LocalBackend):
    """The local backend, with fork in place of a new interpreter."""

    def launch(self, spec: JobSpec, storage: Storage, attempt: int) -> base.Handle:
        output = storage.local_path(layout.output_log(attempt))
        assert output is not None
        output.parent.mkdir(parents=True, exist_ok=True)
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _become_attempt(spec, output, supervisor)
                from outlast.attempt.main import main

                code = main([storage.root, str(attempt)])
            finally:
                threading._shutdown()  # as the interpreter does: wait for threads, then atexit
                atexit._run_exitfuncs()
                os._exit(code)
        self._children[pid] = Forked(pid)
        who = process_identity.of_process(pid)
        return {
            "pid": pid,
            "start": who.start,
            "host": who.host,
            "boot_id": who.boot_id,
            "output": str(output),
        }


def _become_attempt(spec: JobSpec, output: Path, supervisor: int) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the fork server's is forkserver
    resource_tracker._resource_tracker._fd = None  # type: ignore[attr-defined]  # one of its own
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    atexit._clear()
    for target, path, flags in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY)):
        opened = os.open(path, flags | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, target)
        os.close(opened)
    os.dup2(1, 2)
    os.chdir(spec.cwd or ".")
    os.environ.update(spec.env)
    os.environ[SUPERVISOR_PID] = str(supervisor)
    killing.install()


class CommandLine:
    """A command line that was started by `start`: as much of a Popen as the tests need."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def start(arguments: list[str], output: Path, folder: Path, env: dict[str, str]) -> CommandLine:
    """Start `outlast ARGUMENTS` in a folder; what it says is appended to a file."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["keras", "outlast.training.fit", "outlast.cli", __name__])
    process = server.Process(target=_command_line, args=(arguments, output, folder, env))
    # The first start begins the fork server, which is to find what its forks find.
    with mock.patch.dict(os.environ, {"PYTHONPATH": env["PYTHONPATH"]}):
        process.start()
    return CommandLine(process)


def run(arguments: list[str], folder: Path, env: dict[str, str]) -> tuple[int, str]:
    """Run `outlast ARGUMENTS` in a folder to its end; return the exit code and what it said."""
    output = folder / "outlast.log"
    code = start(arguments, output, folder, env).wait()
    return code, output.read_text(errors="replace")


def _command_line(arguments: list[str], output: Path, folder: Path, env: dict[str, str]) -> None:
    for path, number in ((Path(os.devnull), 0), (output, 1)):
        opened = os.open(path, (os.O_WRONLY if number else os.O_RDONLY) | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.dup2(1, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["outlast", *arguments]
    from outlast import backends
    from outlast.cli import main

    backends.PLUGINS.built_in["local"] = f"{__name__}:{ForkedBackend.__name__}"
    code = 1
    try:
        code = int(main() or 0)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
