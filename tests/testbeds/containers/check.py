"""`make container`: the image is built, and jobs in its containers are stopped, killed and resumed.

Everything is run as deploy/README.md says, but with a root file system that cannot be written and
without an init. Not part of `make test`: it takes some minutes, most of them to build the image.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from outlast import exit_codes
from outlast.job.events import Ended
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from tests.acceptance.jobs import SCRIPTS, TOP, Training, assert_same, write_digits
from tests.testbeds.containers.engine import Engine, Lacking

pytestmark = pytest.mark.timeout(3600)

UID = 10001
SAVE = "--save-every 7,epoch --heartbeat-every 1s --lost-after 5s"
STEPS = 32  # an epoch
READ_ONLY = ("--read-only", "--tmpfs", "/tmp")


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine, with the image built. What FOLDER names is kept, for the next time."""
    kept = os.environ.get("FOLDER")
    with tempfile.TemporaryDirectory(prefix="outlast-") as temporary:
        folder = Path(kept or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            engine = Engine(folder)
        except Lacking as lacking:
            pytest.fail(str(lacking), pytrace=False)
        seconds = engine.build()
        print(f"\nthe image: {engine.size() / 1e9:.2f} GB, built in {seconds:.0f} s")
        yield engine
        engine.close()


class Contained(Training):
    """A training that each time runs in a new container; its root is a volume."""

    def __init__(self, engine: Engine, folder: Path, digits: Path, name: str) -> None:
        self._engine, self._name, self._started = engine, name, 0
        root = engine.new_volume(name)
        super().__init__(folder, "leaving", digits, options=SAVE, root=root)
        os.chown(self.control, UID, UID)

    def start(self) -> None:
        options = ["--name", self.script, "--seed", str(self.seed), *self.options]
        self._start("run", *options, f"{self.script}.py", "/control")

    def resume(self) -> None:
        self._start("resume", self.script)

    def _start(self, *told: object) -> None:
        self._started += 1
        options = [
            *("--name", self.container, *READ_ONLY, "--hostname", "one-for-all"),
            *("--stop-timeout", "60", "--volume", f"{self._name}:/jobs"),
            *("--volume", f"{SCRIPTS}:/work:ro", "--volume", f"{self.control}:/control"),
        ]
        command = self._engine.command(*options, run=tuple(map(str, told)))
        with self._output.open("ab") as output:
            self.supervisor = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self._supervisors.append(self.supervisor)

    def close(self) -> None:
        self._engine.close()
        for one in self._supervisors:
            one.wait()

    @property
    def container(self) -> str:
        return f"{self._name}-{self._started}"

    @property
    def first_process(self) -> psutil.Process:
        """The container's first process: the supervisor, as this machine sees it."""
        pid = self._engine.podman("inspect", "--format", "{{.State.Pid}}", self.container)
        return psutil.Process(int(pid))

    def hold_at(self, epoch: int) -> None:
        """Hold at the begin of an epoch; the next `until_there` waits for that."""
        (self.control / "held").unlink(missing_ok=True)
        self.hold("epoch_begin", epoch)

    def until_there(self) -> None:
        self.until("the epoch's begin", (self.control / "held").exists)

    def outcomes(self) -> list[Outcome]:
        return [e.event.outcome for e in self.journal.read() if isinstance(e.event, Ended)]

    def steps(self) -> list[int]:
        return [step for _, step in self.raw_steps()]


@pytest.fixture(scope="session")
def contained(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Contained]]:
    """Return a function that makes a training of a name; it is not started yet."""
    made: list[Contained] = []
    digits = tmp_path_factory.mktemp("digits") / "digits.npz"
    write_digits(digits)

    def contained(name: str) -> Contained:
        made.append(Contained(engine, tmp_path_factory.mktemp(name), digits, name))
        return made[-1]

    yield contained
    for training in made:
        training.close()


@pytest.fixture(scope="session")
def untouched(contained: Callable[[str], Contained]) -> Contained:
    """A training that nobody touches."""
    training = contained("untouched")
    began = time.monotonic()
    training.start()
    training.end()
    print(f"\nuntouched: {len(training.steps())} steps in {time.monotonic() - began:.0f} s")
    return training


def run_script(engine: Engine, folder: Path, code: str, *options: str, told: str = "") -> Any:
    """Run a script that needs no TensorFlow as a job."""
    (folder / "script.py").write_text(code)
    folder.chmod(0o755)
    engine.new_volume("plain")
    mounts = ("--volume", f"{folder}:/work:ro", "--volume", "plain:/jobs", *READ_ONLY)
    run = ("run", "--name", "plain", "--backoff", "0", *told.split(), "script.py")
    return engine.run(*mounts, *options, run=run)


# --- the image -----------------------------------------------------------------------------------


def test_without_arguments_it_prints_help(engine: Engine) -> None:
    done = engine.run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: outlast")


def test_it_runs_as_an_unprivileged_user(engine: Engine) -> None:
    look = ("-E", "^(Uid|Gid|Groups|CapEff)", "/proc/1/status")
    done = engine.run("--entrypoint", "grep", run=look)
    found = {line.split()[0]: set(line.split()[1:]) for line in done.stdout.splitlines()}
    only = {str(UID)}
    assert found == {"Uid:": only, "Gid:": only, "Groups:": only, "CapEff:": {"0" * 16}}


def test_it_has_no_compiler_no_sources_and_no_tests_of_ours(engine: Engine) -> None:
    look = (
        "for tool in gcc cc make git; do command -v $tool; done\n"
        "ls /work /jobs\n"
        "ls -d /src; find / -xdev -path '*/.cache/*' -o -name slurm_cluster.py\n"
    )
    done = engine.run("--entrypoint", "sh", run=("-c", look))
    assert done.stdout == "/jobs:\n\n/work:\n"


def test_all_installed_packages_are_compatible(engine: Engine) -> None:
    done = engine.run("--entrypoint", "pip", *READ_ONLY, run=("check",))
    assert done.returncode == 0, done.stdout


def test_clients_of_stores_and_matplotlib_can_be_imported(engine: Engine) -> None:
    program = "import s3fs, gcsfs, adlfs, matplotlib.pyplot"
    done = engine.run(*READ_ONLY, "--entrypoint", "python", run=("-c", program))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_custom_image_is_built_as_documented(engine: Engine, tmp_path: Path) -> None:
    page = (TOP / "deploy/README.md").read_text()
    written = re.search(r"^```dockerfile\n(.+?)^```$", page, re.M | re.S)
    assert written is not None
    (tmp_path / "Dockerfile").write_text(written[1])
    seconds = engine.build_from(tmp_path, "localhost/own")
    print(f"\nan image of one's own: built in {seconds:.0f} s")
    program = "import os, sklearn; print(os.getuid())"
    done = engine.run("--entrypoint", "python", image="localhost/own", run=("-c", program))
    assert done.stdout == f"{UID}\n", done.stderr


# --- jobs in it ----------------------------------------------------------------------------------


def test_a_stopped_training_continues_in_a_new_container(
    engine: Engine, contained: Callable[[str], Contained], untouched: Contained
) -> None:
    training = contained("stopped")
    training.hold_at(6)
    training.start()
    training.until_there()
    began = time.monotonic()
    engine.podman("stop", training.container)
    took = time.monotonic() - began
    training.end(exit_codes.RESUMABLE)
    job = training.job()
    assert (job.state, job.owner, job.outcome) == (State.PENDING, None, Outcome.PREEMPTED)
    last = max(training.steps())
    assert last >= 6 * STEPS
    newest = training.folders(1)[-1]
    assert newest.step == last
    assert training.committed(newest)
    print(f"\nstopped at step {last} within {took:.1f} s: exit code {exit_codes.RESUMABLE}")
    began = time.monotonic()
    training.resume()
    training.end()
    print(f"resumed: exit code 0 after {time.monotonic() - began:.0f} s")
    assert training.outcomes() == [Outcome.PREEMPTED, Outcome.COMPLETED]
    steps = training.steps()
    assert steps == list(range(1, len(steps) + 1))  # none was trained twice
    assert_same(training, untouched)
    assert (training.folder / "spec.json").stat().st_uid == UID


def test_a_killed_training_continues_in_a_new_container(
    engine: Engine, contained: Callable[[str], Contained], untouched: Contained
) -> None:
    """First the attempt, which its supervisor starts again; then the whole container."""
    training = contained("killed")
    training.hold_at(4)
    training.start()
    training.until_there()
    (attempt,) = training.first_process.children()
    attempt.kill()
    training.hold_at(8)
    training.until_there()
    engine.podman("kill", "--signal", "KILL", training.container)
    training.end(128 + signal.SIGKILL)
    print(f"\nkilled at step {max(training.steps())}: exit code {128 + signal.SIGKILL}")
    training.hold("never")
    began = time.monotonic()
    training.resume()
    training.end()
    print(f"resumed: exit code 0 after {time.monotonic() - began:.0f} s")
    assert training.outcomes() == [Outcome.KILLED, Outcome.LOST, Outcome.COMPLETED]
    assert_same(training, untouched)


def test_two_containers_never_have_the_same_job(
    engine: Engine, contained: Callable[[str], Contained]
) -> None:
    """They have the same process numbers, and here the same host's name."""
    training = contained("both")
    training.hold_at(1)
    training.start()
    training.until_there()
    first = training.release_supervisor()
    training.resume()
    training.end(exit_codes.JOB_BUSY)
    assert first.poll() is None
    training.close()


def test_the_first_process_reaps_all_children(engine: Engine, tmp_path: Path) -> None:
    done = run_script(
        engine,
        tmp_path,
        "import os, signal, subprocess, time\n"
        "from pathlib import Path\n"
        "from outlast.attempt import context\n"
        "def dead():\n"
        "    stats = [path.read_text() for path in Path('/proc').glob('[0-9]*/stat')]\n"
        "    return [stat for stat in stats if stat.rpartition(')')[2].split()[0] == 'Z']\n"
        "if context.current().attempt < 4:\n"
        "    subprocess.Popen(['sleep', '1000'])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "until = time.monotonic() + 60\n"
        "while dead():\n"
        "    assert time.monotonic() < until, dead()\n"
        "    time.sleep(0.1)\n",
    )
    assert done.returncode == exit_codes.DONE, done.stdout + done.stderr


def test_too_little_memory_is_reported(engine: Engine, tmp_path: Path) -> None:
    hog = "held = []\nwhile True:\n    held.append(b'x' * (1 << 24))\n"
    limit = ("--memory", "300m", "--memory-swap", "300m")
    done = run_script(engine, tmp_path, hog, *limit, told="--max-retries 1")
    assert done.returncode == exit_codes.FAILED, done.stdout + done.stderr
    assert "killed by SIGKILL, perhaps out of memory" in done.stdout + done.stderr
    assert "2 killed" in done.stdout + done.stderr
