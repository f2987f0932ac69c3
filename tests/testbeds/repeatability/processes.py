"""The processes of the runs: a fork for each, under the conditions of its variation.

The parent has imported TensorFlow and Keras, but has not started TensorFlow's runtime: no device,
no thread pool and no random generator exists before a fork. A child sets its CPUs and its threads
before it uses TensorFlow for the first time, and TensorFlow reads them then, as it does in a new
interpreter. A warm spare forks in the same way. One run in twelve is a new interpreter, so the
table itself shows that the two are equivalent.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTRA_OP, INTER_OP = "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"
INTRA_OP_THREADS = 2  # part of the job, so equal in all runs
SECONDS = 900  # a run that takes longer is killed, and fails

Train = Callable[[str], dict[str, str]]


@dataclass(frozen=True)
class Variation:
    """The conditions of a run that must not decide its result."""

    name: str
    one_cpu: bool = False
    inter_op: int | None = None
    busy: int = 0
    """Busy loops beside it, on the same CPUs."""
    cold: bool = False
    """Whether it is a new interpreter."""

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """Put this process, and TensorFlow once it starts, under the conditions."""
        before, loops = os.sched_getaffinity(0), []
        if self.one_cpu:
            os.sched_setaffinity(0, {min(before)})
        if self.inter_op is not None:
            os.environ[INTER_OP] = str(self.inter_op)
        spin = "import os\nwhile os.getppid() == int(os.environ['OF']): pass"
        for _ in range(self.busy):
            environ = {**os.environ, "OF": str(os.getpid())}
            loops.append(subprocess.Popen([sys.executable, "-S", "-c", spin], env=environ))
        try:
            yield
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()


_PLAIN = Variation("plain")
_ONE_CPU = Variation("one cpu", one_cpu=True)
_INTER_OP_1 = Variation("inter-op 1", inter_op=1)
ROTA = (
    _PLAIN,
    _ONE_CPU,
    Variation("inter-op 4", inter_op=4),
    Variation("busy", busy=2),
    _INTER_OP_1,
    Variation("new interpreter", cold=True),
    _PLAIN,
    Variation("one cpu, busy", one_cpu=True, busy=2),
    _ONE_CPU,
    Variation("inter-op 16", inter_op=16),
    _INTER_OP_1,
    Variation("inter-op 16, one cpu", inter_op=16, one_cpu=True),
)


def variation_of(run: int) -> Variation:
    """Return the conditions of an architecture's run, counted from 0."""
    return ROTA[run % len(ROTA)]


def run(name: str, variation: Variation, train: Train, output: Path) -> dict[str, Any]:
    """Train once in a new process; return its digests, or {"error": …}. Output is appended."""
    if variation.cold:
        return _run_cold(name, output)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            os.setsid()  # a kill of the group takes the busy loops along
            _connect(output)
            with variation.conditions():
                digests = train(name)
            os.write(writer, json.dumps(digests).encode())
            code = 0
        except BaseException:  # noqa: BLE001  (never go on as a second parent)
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    code = _wait(pid)
    with os.fdopen(reader, "rb") as result:
        said = result.read()
    return json.loads(said) if code == 0 else {"error": f"exit code {code}, see {output}"}


def _run_cold(name: str, output: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.testbeds.repeatability", "--one", name]
    with output.open("ab") as log:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=log, timeout=SECONDS, check=False
        )
    if ended.returncode:
        return {"error": f"exit code {ended.returncode}, see {output}"}
    digests: dict[str, str] = json.loads(ended.stdout.splitlines()[-1])
    return digests


def _wait(pid: int) -> int:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _connect(output: Path) -> None:
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
