"""A detached supervisor, which survives the terminal that started it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from outlast.backends.local import source_path
from outlast.errors import DaemonFailed
from outlast.job import lifecycle, standard_streams
from outlast.job.journal import Journal
from outlast.supervisor.stop_requests import StopRequests
from outlast.supervisor.supervisor import Supervisor
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage

_OUTPUT: Final = "outlast-supervisor-"  # begin of the temporary file's name
CLAIM_WITHIN: Final = 30.0  # seconds


def start_detached(job_url: str, *, wait: float = CLAIM_WITHIN) -> int:
    """Start a supervisor in a new session and return its pid.

    It returns when the supervisor has claimed the job. The supervisor's stderr goes to
    supervisor.log in the job's folder, or to a temporary file if the storage is elsewhere.

    Args:
        job_url: Folder or URL of the job.
        wait: Longest time to wait for the claim, in seconds.

    Raises:
        DaemonFailed: the supervisor ended without having done the job.
    """
    storage = open_storage(job_url)
    output = _output_path(storage)
    words = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    env = dict(os.environ)
    if (source := source_path()) is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [source, env.get("PYTHONPATH")]))
    pid = os.posix_spawn(
        sys.executable,
        command(storage),
        env,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(output), words, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    _await_claim(storage, pid, output, wait)
    return pid


def command(storage: Storage) -> list[str]:
    """Return the command line of a supervisor for the job in `storage`."""
    return [sys.executable, "-P", "-m", "outlast.supervisor.detached", storage.root]


def _await_claim(storage: Storage, pid: int, output: Path, wait: float) -> None:
    journal = Journal(storage)
    until = time.monotonic() + wait
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        job = journal.existing_job()
        if job.owner is not None and job.owner.pid == pid:
            return
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if any(entry.by.pid == pid for entry in journal.read()):
                return  # it has done the job; the journal has the result
            said = output.read_bytes()[-2000:] if output.exists() else b""
            raise DaemonFailed(code=code, output=said.decode(errors="replace").strip())
        time.sleep(0.05)


def _output_path(storage: Storage) -> Path:
    place = storage.local_path(layout.SUPERVISOR_OUTPUT)
    if place is not None:
        return place
    file, name = tempfile.mkstemp(prefix=_OUTPUT, suffix=".log")
    os.close(file)
    return Path(name)


def main(argv: list[str]) -> int:
    """Supervise the job at the URL `argv[0]`; return the exit code."""
    try:
        requests = StopRequests()
        with requests.signals(for_good=True):
            supervisor = Supervisor(open_storage(argv[0]), requests=requests)
            return lifecycle.exit_code(supervisor.run())
    except OutlastError as error:
        standard_streams.say(f"outlast: {error}")
        return error.exit_code
    finally:
        _delete_empty_output()


def _delete_empty_output() -> None:
    """Delete the temporary file that takes this process' output, if there was none."""
    with suppress(OSError):
        output = Path("/proc/self/fd/2").readlink()
        ours = output.name.startswith(_OUTPUT) and output.parent == Path(tempfile.gettempdir())
        if ours and os.fstat(2).st_size == 0:
            output.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
