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


class Run:
    """A training in a new process, from its start to its digests."""

    def __init__(self, name: str, variation: Variation, train: Train, output: Path) -> None:
        """Start it. Its output is appended to a file."""
        self.name, self.variation, self.output = name, variation, output
        self._started = time.monotonic()
        reader, writer = os.pipe()
        start = self._start_cold if variation.cold else self._fork
        self._pid = start(train, reader, writer)
        os.close(writer)
        self._reader = reader

    def _fork(self, train: Train, reader: int, writer: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.close(reader)
            os.setsid()  # a kill of the group takes the busy loops along
            _connect(self.output)
            with self.variation.conditions():
                digests = train(self.name)
            os.write(writer, json.dumps(digests).encode())
            code = 0
        except BaseException:  # noqa: BLE001  (never go on as a second parent)
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _start_cold(self, train: Train, reader: int, writer: int) -> int:
        command = [sys.executable, "-m", "tests.testbeds.repeatability", "--one", self.name]
        with self.output.open("ab") as log:
            process = subprocess.Popen(command, stdout=writer, stderr=log, start_new_session=True)
        process.returncode = 0  # the process is waited for by its id, below
        return process.pid

    def end(self) -> dict[str, Any] | None:
        """Return its line of the log, or None while it trains. Digests may be {"error": …}."""
        seconds = time.monotonic() - self._started
        if seconds > SECONDS:
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
        done, status = os.waitpid(self._pid, os.WNOHANG if seconds < SECONDS else 0)
        if not done:
            return None
        code = os.waitstatus_to_exitcode(status)
        with os.fdopen(self._reader, "rb") as result:
            said = result.read()
        error = {"error": f"exit code {code}, see {self.output}"}
        return {
            "name": self.name,
            "variation": self.variation.name,
            "s": round(seconds, 1),
            "digests": error if code else json.loads(said.splitlines()[-1]),
        }


def run_all(runs: Iterator[Callable[[], Run]], beside: int) -> Iterator[dict[str, Any]]:
    """Start the runs, up to `beside` at once; yield the line of each when it ends."""
    going: list[Run] = []
    more = True
    while more or going:
        while more and len(going) < beside:
            begin = next(runs, None)
            more = begin is not None
            if begin is not None:
                going.append(begin())
        for one in list(going):
            line = one.end()
            if line is not None:
                going.remove(one)
                yield line
        time.sleep(0.02)


def _connect(output: Path) -> None:
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
