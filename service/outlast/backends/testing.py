"""The conformance suite of backends: subclass `BackendConformance` and define `make`.

    class TestMine(BackendConformance):
        def make(self) -> Backend:
            return MyBackend()

The attempts are real processes that run real scripts, without TensorFlow.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outlast.backends.base import Backend, Exit, Handle
from outlast.errors import BackendFailed
from outlast.job import heartbeat
from outlast.job import spec as specs
from outlast.job.outcome import Outcome, judge
from outlast.job.process_identity import Identity
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage

# A script writes a file beside it when it is ready.
_READY = """
import pathlib, sys, time
here = pathlib.Path(__file__).parent
def ready(text=""):
    (here / ".ready").write_text(text)
    (here / ".ready").rename(here / "ready")
"""


class Launched:
    """An attempt of a small script, launched by the backend under test."""

    def __init__(self, backend: Backend, folder: Path, code: str, patience: float, **options: Any):
        folder.mkdir(parents=True)
        script = folder / "script ☂.py"
        script.write_text(_READY + code, encoding="utf-8")
        values: dict[str, Any] = {"job": "j", "script": script.name, "cwd": str(folder)}
        self.spec = JobSpec(**{**values, **options})
        self.storage: Storage = open_storage(folder / "jobs" / "j")
        self.storage.create(layout.SPEC, specs.encode(self.spec))
        self.backend = backend
        self.patience = patience
        self._ready = folder / "ready"
        self.handle: Handle = backend.launch(self.spec, self.storage, 1)

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait until `what` returns a true value, and return it."""
        until = time.monotonic() + self.patience
        while not (found := what()):
            assert time.monotonic() < until, f"not within {self.patience} s: {self.output()}"
            time.sleep(0.02)
        return found

    def ready(self) -> str:
        """Wait until the script is ready; return the text that it passed to `ready`."""
        self.until(self._ready.exists)
        return self._ready.read_text()

    def end(self) -> Exit:
        found = self.until(lambda: self.backend.poll(self.handle))
        assert isinstance(found, Exit)
        return found

    def output(self, start: int = 0) -> str:
        return self.backend.output(self.handle, start).decode()


class BackendConformance:
    """Tests what the supervisor requires of a backend."""

    patience = 120.0  # seconds for anything to happen; a queue may need more

    def make(self) -> Backend:
        """Return a new object of the backend under test."""
        raise NotImplementedError

    @pytest.fixture
    def launch(self, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
        """Return a function that launches the code of a script; the end kills it."""
        made: list[Launched] = []

        def launch(code: str, name: str = "it's $(a) job", **options: Any) -> Launched:
            found = Launched(self.make(), tmp_path / name, code, self.patience, **options)
            made.append(found)
            return found

        yield launch
        for launched in made:
            launched.backend.kill(launched.handle)
            launched.end()

    @pytest.mark.parametrize("code", [0, 1, 3, 65, 75, 200])
    def test_the_exit_code_is_reported(self, launch: Callable[..., Launched], code: int) -> None:
        launched = launch(f"sys.exit({code})")
        assert launched.end() == Exit(code=code)
        assert launched.end() == Exit(code=code)
        beat = heartbeat.read(launched.storage, 1)
        assert beat is not None
        assert beat.ended == code

    def test_it_runs_as_python_would_run_it(self, launch: Callable[..., Launched]) -> None:
        launched = launch(
            "import json, os\n"
            "print(json.dumps([__name__, sys.argv, os.getcwd(), sys.path[0],\n"
            "                  os.environ['OUTLAST_X'], sys.stdin.read()]))",
            args=["--lr", "1e-3", "two words", "☂", ""],
            env={"OUTLAST_X": "it's $HOME"},
        )
        assert launched.end() == Exit(code=0)
        name, argv, cwd, first, variable, stdin = json.loads(launched.output())
        assert name == "__main__"
        assert argv == [launched.spec.script, "--lr", "1e-3", "two words", "☂", ""]
        assert cwd == first == launched.spec.cwd
        assert (variable, stdin) == ("it's $HOME", "")

    def test_launch_returns_before_the_end(self, launch: Callable[..., Launched]) -> None:
        launched = launch("ready(); time.sleep(1000)")
        launched.ready()
        assert launched.backend.poll(launched.handle) is None
        launched.backend.kill(launched.handle)
        end = launched.end()
        assert judge(end.code, end.signal, None)[0] is Outcome.KILLED

    def test_output_is_there_while_it_runs(self, launch: Callable[..., Launched]) -> None:
        launched = launch(
            "print('first ☂'); print('second', file=sys.stderr); ready()\n"
            "while not (here / 'go on').exists(): time.sleep(0.01)\n"
            "print('third')"
        )
        launched.ready()
        launched.until(lambda: "second" in launched.output())
        first = launched.output()
        assert first.splitlines() == ["first ☂", "second"]
        (Path(launched.spec.cwd) / "go on").touch()
        launched.end()
        assert launched.output(len(first.encode())) == "third\n"
        launched.backend.finish(launched.handle, launched.storage, 1)
        stored = launched.storage.read(layout.output_log(1)).decode()
        assert stored == first + "third\n"

    def test_a_signal_asks_it_to_leave(self, launch: Callable[..., Launched]) -> None:
        launched = launch(
            "from outlast.attempt import context\n"
            "stop = context.current().stop\n"
            "ready()\n"
            "while not stop.requested: time.sleep(0.01)\n"
            "print(stop.reason)\n"
            "context.current().leave()\n"
        )
        launched.ready()
        launched.backend.signal(launched.handle, signal.SIGTERM)
        assert launched.end() == Exit(code=75)
        assert launched.output() == "SIGTERM\n"

    def test_its_children_get_no_signal_but_end_with_it(
        self, launch: Callable[..., Launched]
    ) -> None:
        launched = launch(
            "import json, os, signal, subprocess\n"
            "import msgspec\n"
            "from outlast.attempt import context\n"
            "from outlast.job import process_identity\n"
            "child = subprocess.Popen(['sleep', '1000'])\n"
            "ready(msgspec.json.encode(process_identity.of_process(child.pid)).decode())\n"
            "while not context.current().stop.requested: time.sleep(0.01)\n"
            "print('asked', child.poll())\n"
            "while True: time.sleep(1)\n"
        )
        child = Identity(**json.loads(launched.ready()))
        launched.backend.signal(launched.handle, signal.SIGTERM)
        launched.until(lambda: launched.output() == "asked None\n")
        assert launched.backend.poll(launched.handle) is None  # it does not want to go
        launched.backend.kill(launched.handle)
        launched.end()
        if child.local:
            launched.until(child.gone)

    def test_children_of_a_dead_attempt_are_ended(self, launch: Callable[..., Launched]) -> None:
        launched = launch(
            "import os, signal, subprocess, msgspec\n"
            "from outlast.job import process_identity\n"
            "child = subprocess.Popen(['sleep', '1000'])\n"
            "ready(msgspec.json.encode(process_identity.of_process(child.pid)).decode())\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        child = Identity(**json.loads(launched.ready()))
        end = launched.end()
        assert judge(end.code, end.signal, None)[0] is Outcome.KILLED
        if child.local:
            launched.until(child.gone)

    def test_the_handle_finds_it_from_anywhere(self, launch: Callable[..., Launched]) -> None:
        launched = launch("print('here'); ready(); time.sleep(1000)")
        launched.ready()
        handle = json.loads(json.dumps(launched.handle))
        other = self.make()
        assert other.poll(handle) is None
        assert other.output(handle) == b"here\n"
        other.kill(handle)
        launched.end()
        assert isinstance(other.poll(handle), Exit)

    def test_calls_after_the_end_do_nothing(self, launch: Callable[..., Launched]) -> None:
        launched = launch("")
        end = launched.end()
        launched.backend.signal(launched.handle, signal.SIGTERM)
        launched.backend.kill(launched.handle)
        launched.backend.finish(launched.handle, launched.storage, 1)
        launched.backend.finish(launched.handle, launched.storage, 1)
        assert launched.end() == end

    def test_a_failed_start_is_reported(self, tmp_path: Path) -> None:
        with pytest.raises(BackendFailed, match="no-such-python"):
            Launched(self.make(), tmp_path / "a", "", 1.0, python="/no-such-python")
