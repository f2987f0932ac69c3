"""A signed job under real processes: the attempts know the key's path, and nobody shows the key."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import key_file
from outlast_checkpoints.storage.documents import unsigned
from tests.acceptance.plain import Make

pytestmark = pytest.mark.acceptance

# It is killed once, then shows its environment and arguments and ends.
SCRIPT = """
if ctx.attempt == 1:
    go_on_for_ever()
print("ENVIRONMENT", sorted(os.environ.items()))
for pid in ("self", os.getppid()):
    print("ARGUMENTS", pathlib.Path(f"/proc/{pid}/cmdline").read_bytes())
    print("ENVIRONMENT", pathlib.Path(f"/proc/{pid}/environ").read_bytes())
"""


def test_a_killed_signed_job_goes_on(
    job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    key_file.create(path)
    key = path.read_text().strip()
    monkeypatch.setenv(key_file.KEY_FILE, str(path))
    training = job(SCRIPT)
    supervisor = training.start()
    beat = training.training()
    os.kill(beat.pid, signal.SIGKILL)
    assert training.end(supervisor) == 0, training.diagnostics()
    assert str(path) in training.output(2)
    for file in Path(training.storage.root).rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert key.encode() not in data, file
            assert bytes.fromhex(key) not in data, file
    for stored in (layout.SPEC, layout.journal_event(5), layout.heartbeat(2)):
        assert b'"mac":"hmac-sha256:' in unsigned(training.storage).read(stored)


def test_an_attempt_refuses_what_was_changed_meanwhile(
    job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody edits an event while the supervisor is away; the next one does not start."""
    path = tmp_path / "key"
    key_file.create(path)
    monkeypatch.setenv(key_file.KEY_FILE, str(path))
    training = job("go_on_for_ever()")
    supervisor = training.start()
    training.training()
    supervisor.terminate()
    assert training.end(supervisor) == 75
    event = Path(training.storage.root, layout.journal_event(2))
    before = event.read_bytes()
    event.write_bytes(Path(training.storage.root, layout.journal_event(3)).read_bytes())
    again = training.start()
    assert training.end(again) == 65
    assert again.stdout is not None
    assert "was not written by a holder of the key" in again.stdout.read()
    event.write_bytes(before)  # the fixture reads it at the end
