"""Files are facts, never orders: no verb signals, runs, imports or contacts what a file names.

Every document of a job is written by somebody else, with pids, ids, handles, names of engines and
modules that are not this job's. All verbs read it. What they do to the outside is recorded by
Python's audit hooks, and refused there: signals, processes, libraries, modules, connections.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outlast.cli import main
from outlast.engines import kubernetes, slurm
from outlast.job import process_identity
from outlast.job import spec as specs
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout, lineage, manifest
from outlast_checkpoints.format.lineage import Origin
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot

PLANTED = "planted_by_somebody"  # a module and a library beside the job
VARIABLE = "TF_PLUGGABLE_DEVICE_LIBRARY_PATH"
VERBS = [
    *("status J", "list", "logs J", "logs --output J", "history J", "history --csv J"),
    *("checkpoints J", "verify J", "verify", "prune --dry-run J", "export J DEST", "copy J COPY"),
    *("events J", "rm --dry-run J", "audit J", "stop J", "stop --now J", "resume J"),
    *("fork J other", "resume --latest", "resume --all"),
]  # fmt: skip
STARTED = ("claimed", "launched", "started")
COURSES = [("queued",), STARTED, ("queued", *STARTED), (*STARTED, "ended"),
           ("queued", *STARTED, "ended"), ("queued", *STARTED, "stop-requested")]  # fmt: skip
ENGINES = ["local", "slurm", "kubernetes", PLANTED, f"{PLANTED}:Engine", ""]


class Acts:
    """What this process did to others, while `watching`. Everything but a question is refused."""

    def __init__(self) -> None:
        self.watching = False
        self.done: list[tuple[str, Any]] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def watch(self) -> Iterator[None]:
        self.watching = True
        try:
            yield
        finally:
            self.watching = False

    def _hook(self, event: str, given: tuple[Any, ...]) -> None:
        if self.watching and event in _REFUSED and not _asks(event, given):
            self.record(event, given)
            raise PermissionError(f"{event} {given!r}")

    def record(self, what: str, given: Any) -> None:
        self.done.append((what, given))


_REFUSED = frozenset(
    {
        *("os.kill", "os.killpg", "signal.pthread_kill", "os.exec", "os.fork", "os.forkpty"),
        *("os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen", "socket.connect"),
        *("socket.bind", "os.putenv", "os.unsetenv", "ctypes.dlopen", "import", "pty.spawn"),
    }
)


def _asks(event: str, given: tuple[Any, ...]) -> bool:
    """Return whether an act changes nothing and is not one that a file could have named."""
    if event == "os.kill":
        return bool(given[1] == 0)  # whether a process exists
    if event == "import":  # lazy imports of ours, of our libraries and of the standard library
        name = str(given[0])
        return PLANTED not in name and name not in ("antigravity", "this")
    if event == "ctypes.dlopen":
        return given[0] is None or PLANTED not in str(given[0])
    return event in ("os.putenv", "os.unsetenv") and bool(given[0] != VARIABLE.encode())


@pytest.fixture(scope="module")
def acts() -> Acts:
    return Acts()


@pytest.fixture(scope="module")
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user that has nothing to do with any job."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def asked(acts: Acts) -> Iterator[list[Any]]:
    """Put doubles in place of Slurm and Kubernetes; they know only somebody else's jobs."""
    patch = pytest.MonkeyPatch()
    questions: list[Any] = []

    def call(action: str, *command: str, **more: Any) -> str:
        if command[0] not in ("squeue", "scontrol") or "requeue" in command:
            acts.record("slurm", command)
        questions.append(command)
        return "payroll\n" if "%k" in command else "RUNNING|None|node1\n"

    class Cluster:
        context = namespace = "x"

        def __init__(self, context: str | None) -> None:
            self.jobs = self.pods = self

        def ask(self, action: str, request: Any) -> Any:
            return request()

        def __getattr__(self, name: str) -> Any:
            def request(*given: Any, **more: Any) -> Any:
                if not name.startswith(("read_", "list_")):
                    acts.record("kubernetes", (name, given))
                questions.append((name, given))
                metadata = SimpleNamespace(annotations={}, uid="1", deletion_timestamp=None)
                status = SimpleNamespace(conditions=[])
                return SimpleNamespace(metadata=metadata, status=status, items=[])

            return request

    def sent(*given: Any) -> None:
        acts.record("pidfd_send_signal", given)

    patch.setattr(slurm, "_call", call)
    patch.setattr(kubernetes, "_Cluster", Cluster)
    patch.setattr(signal, "pidfd_send_signal", sent)  # it has no audit event
    yield questions
    patch.undo()


class Hostile:
    """Draws the values that somebody could write into a document to have something done."""

    def __init__(self, data: st.DataObject, victim: int) -> None:
        self._draw = data.draw
        here = process_identity.of_process(victim)
        mine = process_identity.here()
        self._processes = [
            {"host": here.host, "pid": pid, "boot_id": boot, "start": start}
            for pid in (-1, 0, 1, victim, -victim, os.getppid(), os.getpid(), 2**31 - 1)
            for boot in (here.boot_id, "")
            for start in (here.start, mine.start, None)
        ]

    def one(self, *values: Any) -> Any:
        return self._draw(st.sampled_from(values))

    def process(self) -> dict[str, Any]:
        return dict(self._draw(st.sampled_from(self._processes)))

    def handle(self) -> dict[str, Any]:
        number = self.one("4711", "--me", "-u x", "1,2", "../x", "4711\n", "a-job", "")
        more = {"output": self.one("/etc/passwd", "x"), "namespace": self.one("finance", "../x")}
        return {**self.process(), "id": number, **more, "context": self.one("prod", None)}

    def event(self) -> dict[str, Any]:
        kind = self.one("queued", "claimed", "launched", "started", "ended", "stop-requested",
                        "released", "resumed")  # fmt: skip
        slot = {"engine": self.one(*ENGINES), "id": "4711", "restart": 0}
        return {
            "kind": kind,
            "attempt": self.one(1, 2),
            "owner": self.process(),
            "slot": self.one(None, slot),
            "handle": self.handle(),
            "engine": self.one(*ENGINES),
            "outcome": self.one("crashed", "stopped", "succeeded", "preempted"),
            "by": "x",
            "now": self.one(True, False),
        }

    def beat(self) -> dict[str, Any]:
        process = self.process()
        preload = {"modules": [PLANTED, "antigravity"], "environment": {VARIABLE: f"{PLANTED}.so"}}
        return {
            "attempt": 1,
            "count": self.one(1, 10**6),
            **{name: process[name] for name in ("pid", "host", "boot_id")},
            "process_start": process["start"],
            "preload": preload,
            "ended": self.one(None, 0, 75),
            "away_since": self.one(None, 1.0),
            "spool": "/etc",
        }

    def spec(self) -> bytes:
        """Return a spec that runs other programs. The waits are short."""
        return specs.encode(
            JobSpec(
                job="evil",
                script=f"{PLANTED}.py",
                python=f"./{PLANTED}",
                cwd="/tmp",
                env={VARIABLE: f"./{PLANTED}.so", "LD_PRELOAD": f"./{PLANTED}.so"},
                engine=self.one(*ENGINES),
                backend=self.one("local", PLANTED, f"{PLANTED}:Backend"),
                engine_options={"image": "evil", "sbatch": ["x=1"]},
                warm_spare=True,
                heartbeat_every=0.01,
                lost_after=0.02,
                grace=0.0,
                seed=1,
            )
        )


def plant(storage: Storage, hostile: Hostile) -> None:
    """Write a job as somebody does who knows the formats. Its checkpoints are whole."""
    storage.create(layout.SPEC, hostile.spec())
    events: list[dict[str, Any]] = [{"kind": "submitted"}]
    # Mostly a course that is allowed, so that the verbs act on it; sometimes then anything.
    for kind in hostile.one(*COURSES):
        events.append({**hostile.event(), "kind": kind, "attempt": 1})
    events += [hostile.event() for _ in range(hostile.one(0, 0, 0, 2))]
    state = hostile.one("pending", "starting", "running", "stopping", "waiting", "stopped")
    for seq, event in enumerate(events, 1):
        entry = {"seq": seq, "event": event, "state": state, "attempt": 1, "at": 1.0,
                 "by": hostile.process()}  # fmt: skip
        storage.create(layout.journal_event(seq), msgspec.json.encode(entry))
    storage.replace(layout.heartbeat(1), msgspec.json.encode(hostile.beat()))
    storage.replace(layout.deadline(1), b'{"why":"x","by":1.0}')
    storage.create(layout.BATCH_SCRIPT, b"#!/bin/bash\nrm -rf x\n")
    storage.create(f"{PLANTED}.py", b"raise SystemExit(99)\n")
    storage.create(layout.output_log(1), b"hello\n")
    history = HistoryWriter(storage, 1)
    history.append({"kind": "epoch", "phase": 0, "step": 1, "epoch": 0, "time": 1.0, "logs": {}})
    mark = history.mark()
    history.close()
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    made = store.save(sample_snapshot(1), reason="step", history=mark)
    parent = hostile.one(None, made.checkpoint)
    forged = msgspec.structs.replace(made, parent=parent, writer={"outlast": PLANTED})
    storage.replace(layout.manifest(made.id), manifest.encode(forged))
    storage.replace(layout.origin(1), lineage.encode(Origin(attempt=1)))


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder in memory, with a module and a library that nobody may load, and a home."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    (folder / f"{PLANTED}.py").write_text("raise SystemExit(99)\n")
    before = Path.cwd()
    os.chdir(folder)  # as a user who works beside the jobs
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    patch.setenv("OUTLAST_SPOOL", str(folder / "spool"))
    patch.syspath_prepend(str(folder))
    yield folder
    patch.undo()
    os.chdir(before)
    shutil.rmtree(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_no_verb_does_what_a_file_says(
    place: Path,
    acts: Acts,
    asked: list[Any],
    victim: subprocess.Popen[bytes],
    capsys: pytest.CaptureFixture[str],
    data: st.DataObject,
) -> None:
    for name in ("jobs", "copy", "x.keras"):
        shutil.rmtree(place / name, ignore_errors=True)
    job = place / "jobs" / "evil"
    plant(open_storage(job), Hostile(data, victim.pid))
    acts.done.clear()
    for verb in VERBS:
        words = verb.replace("J", str(job)).replace("COPY", str(place / "copy"))
        words = words.replace("DEST", str(place / "x.keras"))
        with acts.watch(), pytest.raises(SystemExit):
            main([*words.split(), "--root", str(place / "jobs")])
        said = capsys.readouterr()
        assert acts.done == [], (verb, said.out + said.err)
        assert "unexpected" not in said.out + said.err, (verb, said.out + said.err)
    assert PLANTED not in sys.modules
    assert VARIABLE not in os.environ
    assert victim.poll() is None


def test_the_recorder_sees_what_must_not_happen(
    acts: Acts, asked: list[Any], place: Path, victim: subprocess.Popen[bytes]
) -> None:
    """Otherwise the test above could not fail."""
    tries: dict[str, Any] = {
        "os.kill": lambda: os.kill(victim.pid, signal.SIGTERM),
        "os.killpg": lambda: os.killpg(victim.pid, signal.SIGTERM),
        "subprocess.Popen": lambda: subprocess.run([sys.executable, "-c", ""], check=False),
        "os.fork": lambda: os.fork(),
        "os.system": lambda: os.system("true"),
        "import": lambda: __import__(PLANTED),
        "os.putenv": lambda: os.environ.__setitem__(VARIABLE, "x"),
        "slurm": lambda: slurm._call("cancel the job", "scancel", "1"),
        "kubernetes": lambda: kubernetes._Cluster(None).jobs.delete_namespaced_job("x"),
        "pidfd_send_signal": lambda: signal.pidfd_send_signal(1, 15),
    }
    for name, act in tries.items():
        acts.done.clear()
        with acts.watch(), suppress(Exception):  # it is refused
            act()
        assert name in [what for what, _ in acts.done], name
    os.environ.pop(VARIABLE, None)
    assert victim.poll() is None
