"""Jobs in object stores: killed, moved to an empty machine, and claimed by two supervisors."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from outlast import exit_codes
from outlast.job import heartbeat, logs
from outlast.job.events import Claimed, Ended
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.remote import FsspecStorage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance.jobs import OUTLAST, PATIENCE, Training, assert_same, gone, outlast
from tests.support.command_line import answer
from tests.support.object_stores import AZURITE_KEY, KEYS, ObjectStore, use

SECRETS = [KEYS["AWS_SECRET_ACCESS_KEY"].encode(), AZURITE_KEY.encode()]

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]


class Away(Training):
    """A training whose job is in a store, on one machine after the other.

    A machine is what a process finds there: a folder for temporary files and a spool, empty at
    first.
    """

    def __init__(
        self, folder: Path, digits: Path, store: ObjectStore, patch: pytest.MonkeyPatch
    ) -> None:
        self.url = use(store, patch)
        super().__init__(folder, "mlp", digits, options="--save-every 20,epoch")
        self._folder, self._patch, self._machines = folder, patch, 0
        self.root = self.url  # type: ignore[assignment]
        self.storage: Storage = open_storage(f"{self.url}/mlp")
        self.store = CheckpointStore(self.storage)
        self.journal = Journal(self.storage)
        self.another_machine()

    def another_machine(self) -> None:
        """Let what is started from now on find nothing that was started before has left."""
        self._machines += 1
        place = self._folder / f"machine-{self._machines}"
        for variable, name in {"TMPDIR": "tmp", "OUTLAST_SPOOL": "spool"}.items():
            (place / name).mkdir(parents=True)
            self._patch.setenv(variable, str(place / name))

    def kill_machine(self, attempt: psutil.Process) -> None:
        """Kill supervisor and attempt at one blow."""
        assert self.supervisor is not None
        attempt.suspend()  # so that it sees nothing of its supervisor's end
        self.kill_supervisor()
        attempt.kill()
        self.until("the attempt is gone", lambda: gone(attempt))

    def diagnostics(self) -> str:
        return f"\n--- {self._output}\n{self.output()[-5000:]}"

    def end_all(self) -> None:
        """End what is still there."""
        for one in self._supervisors:
            if one.poll() is None:
                one.kill()
                one.wait(PATIENCE)
        for attempt in range(1, len(self.journal.read()) + 1):
            beat = heartbeat.read(self.storage, attempt)
            if beat is not None and beat.ended is None and self._is_mine(beat):
                psutil.Process(beat.pid).kill()


@pytest.fixture(scope="module", params=["seaweed", "azurite"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    found: ObjectStore = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def away(
    store: ObjectStore, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Away]:
    training = Away(tmp_path, digits, store, monkeypatch)
    yield training
    training.end_all()


def test_a_killed_job_that_moves_ends_with_the_same_bytes(
    away: Away, untouched: Callable[[str], Training], capsys: pytest.CaptureFixture[str]
) -> None:
    away.hold("epoch_end", 3)
    away.start()
    first = away.attempt(1)
    away.until_held(first, "epoch_end", 3)
    away.until("a checkpoint has arrived", away.store.ids)
    first.kill()

    away.hold("validation", 8, but=first)
    second = away.attempt(2)
    away.until_held(second, "validation", 8)
    away.kill_machine(second)

    away.another_machine()
    away.hold("never")
    away.resume()
    away.end()

    assert_same(away, untouched("mlp"))
    events = [entry.event for entry in away.journal.read()]
    outcomes = [event.outcome for event in events if isinstance(event, Ended)]
    assert outcomes == [Outcome.KILLED, Outcome.LOST, Outcome.COMPLETED]
    assert_no_secret_is_stored(away)
    assert_every_verb_works(away, capsys)


def assert_no_secret_is_stored(away: Away) -> None:
    root = open_storage(away.url)
    assert isinstance(root, FsspecStorage)
    files = root._client.files
    found = {name: files.cat_file(name) for name in files.find(root._base)}
    assert any(name.endswith("/spec.json") for name in found)
    assert any("/log-0" in name for name in found)
    found["the terminal"] = away.output().encode()
    told = [name for name, data in found.items() if any(secret in data for secret in SECRETS)]
    assert told == []


def assert_every_verb_works(away: Away, capsys: pytest.CaptureFixture[str]) -> None:
    job, root = f"{away.url}/mlp", away.url

    def say(*arguments: object) -> str:
        said = answer(capsys, *map(str, arguments))
        assert said.code == exit_codes.DONE, said.err
        return said.out

    steps = away.final().step
    assert "mlp  succeeded" in say("list", "--root", root)
    assert json.loads(say("status", "--json", job))["state"] == "succeeded"
    assert json.loads(say("status", "--json", "--root", root, "mlp"))["progress"]["step"] == steps
    assert "[3] attempt_started" in say("logs", "-f", job)
    assert "Epoch 1/" in say("logs", "--output", job)
    shown = say("history", "-f", "--json", "--steps", job).splitlines()
    assert [json.loads(row)["step"] for row in shown] == list(range(1, steps + 1))
    assert f"  {steps}  " in say("history", "--tail", 1, job)
    assert "end" in say("checkpoints", job)
    assert json.loads(say("verify", "--json", job))["good"] is True
    say("prune", job)
    assert "mlp: succeeded" in say("stop", job)
    assert say("resume", job) == ""
    for verb in (["export", job], ["history", job, "--plot"]):
        made = away.control / f"{verb[0]}.{'keras' if verb[0] == 'export' else 'png'}"
        say(*verb, made)
        assert made.stat().st_size > 1000


ENOUGH = """
import sys, time
from pathlib import Path
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
"""


@pytest.fixture
def waiting(
    tmp_path: Path, seaweed: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> tuple[Storage, Path]:
    """A job in SeaweedFS that nobody has claimed, and the file that its script waits for."""
    root = open_storage(use(seaweed, monkeypatch))
    script, enough = tmp_path / "wait.py", tmp_path / "enough"
    script.write_text(ENOUGH)
    submit(root, JobSpec(job="raced", script=str(script), args=[str(enough)], cwd=str(tmp_path)))
    return root.sub("raced"), enough


def test_two_supervisors_race_for_one_job_and_one_wins(
    waiting: tuple[Storage, Path], tmp_path: Path
) -> None:
    storage, enough = waiting
    racers = [
        subprocess.Popen(
            [*OUTLAST, "resume", storage.root], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(3)
    ]
    try:
        give_up = time.monotonic() + PATIENCE
        while sum(racer.poll() is None for racer in racers) > 1 and time.monotonic() < give_up:
            time.sleep(0.05)
        enough.touch()
        said = [racer.communicate(timeout=PATIENCE)[0].decode() for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    codes = sorted(racer.returncode for racer in racers)
    assert codes == [exit_codes.DONE, exit_codes.JOB_BUSY, exit_codes.JOB_BUSY], said
    claims = [one for one in Journal(storage).read() if isinstance(one.event, Claimed)]
    assert len(claims) == 1
    assert Journal(storage).existing_job().state is State.SUCCEEDED


def test_a_job_in_a_bucket_outlives_the_command_that_submitted_it(
    tmp_path: Path, seaweed: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = use(seaweed, monkeypatch)
    script, enough = tmp_path / "wait.py", tmp_path / "enough"
    script.write_text(ENOUGH)
    sent = outlast("submit", "--json", "--root", root, "--name", "sent", script, enough)
    assert sent.returncode == 0, sent.stderr
    supervisor = psutil.Process(json.loads(sent.stdout)["pid"])
    journal = Journal(open_storage(f"{root}/sent"))

    def wait_for(state: State) -> None:
        give_up = time.monotonic() + PATIENCE
        while journal.existing_job().state is not state and time.monotonic() < give_up:
            time.sleep(0.05)
        assert journal.existing_job().state is state

    wait_for(State.RUNNING)
    owner = journal.existing_job().owner
    assert owner is not None
    assert owner.pid == supervisor.pid
    enough.touch()
    wait_for(State.SUCCEEDED)
    psutil.wait_procs([supervisor], timeout=PATIENCE)


FAILS_ONCE = """
import sys
from pathlib import Path
failed = Path(sys.argv[1])
if not failed.exists():
    failed.touch()
    sys.exit("once")
"""


@pytest.fixture
def stored_by_rclone(rclone: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    return use(rclone, monkeypatch)


def test_a_store_that_cannot_fence_is_used_in_single_supervisor_mode_with_a_warning(
    stored_by_rclone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fails_once.py").write_text(FAILS_ONCE)
    run = ["run", "--root", stored_by_rclone, "--name", "careful", "--backoff", "0"]
    script = [str(tmp_path / "fails_once.py"), str(tmp_path / "failed")]
    done = subprocess.run(
        [*OUTLAST, *run, *script], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == exit_codes.DONE, done.stderr
    assert done.stderr.count("fencing_unsupported") == 1
    assert "ignores the condition" in done.stderr
    rows = list(logs.read(open_storage(f"{stored_by_rclone}/careful")))
    assert [row["event"] for row in rows].count("fencing_unsupported") == 1
    assert max(row["attempt"] for row in rows) == 2
    again = answer(capsys, *run, *script)
    assert again.code == exit_codes.USAGE
    assert "Job 'careful' already exists" in again.err
