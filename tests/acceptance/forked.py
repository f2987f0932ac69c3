"""`holdfast` with TensorFlow imported already: its attempts are forks, which start in no time.

`python -m tests.acceptance.forked run …` is `holdfast run …` in all else: an attempt is a process
of its own, in a session of its own, that runs what `python -m service.attempt` runs. It saves the
tests that start a hundred attempts some seconds for each.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from checkpoints import layout
from checkpoints.storage import Storage
from service import identity
from service.backends import base
from service.backends.local import SUPERVISOR_PID, LocalBackend
from service.spec import JobSpec


class _Fork:
    """As much of a Popen as the local backend needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


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
                from service.attempt import main

                code = main([storage.root, str(attempt)])
            finally:
                threading._shutdown()  # as the interpreter does: wait for threads, then atexit
                atexit._run_exitfuncs()
                os._exit(code)
        self._children[pid] = _Fork(pid)  # type: ignore[assignment]
        who = identity.of_process(pid)
        return {
            "pid": pid,
            "start": who.start,
            "host": who.host,
            "boot_id": who.boot_id,
            "output": str(output),
        }


def _become_attempt(spec: JobSpec, output: Path, supervisor: int) -> None:
    os.setsid()
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


def main(arguments: list[str]) -> int:
    import keras  # noqa: F401

    import service.training.fit  # noqa: F401
    from service import backends
    from service.cli import main as command_line

    backends._BUILT_IN["forked"] = f"{__name__}:{ForkedBackend.__name__}"  # type: ignore[index]
    sys.argv = ["holdfast", *arguments]
    found: Any = command_line()
    return int(found or 0)


if __name__ == "__main__":
    from tests.acceptance.forked import main as imported_main

    sys.exit(imported_main(sys.argv[1:]))
