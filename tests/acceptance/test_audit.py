"""`outlast audit` under the real command line: what it finds, and what it leaves alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outlast.job import logs
from outlast.job.events import Audited
from tests.acceptance import forked
from tests.acceptance.jobs import PATH, PATIENCE, Training, gone, outlast
from tests.support.object_stores import ObjectStore

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

# By phase of the script "planted": where the first difference is, and which value it is.
PLANTED = [
    None,
    ("weights", "layers/dense"),
    ("callbacks", "callbacks[0].last"),
    ("variables", "variables/000001 (loss/total)"),
    ("weights", "layers/dense"),
    ("variables", "variables/weight/0"),
    ("weights", "layers/dense"),
    None,
]
RACE = 3


def audit(
    training: Training, *options: object, url: str | None = None, **variables: str
) -> tuple[int, dict[str, Any]]:
    """Audit a training in forks; return the exit code and what --json prints."""
    output = training.folder.parent / "audit.log"
    output.unlink(missing_ok=True)
    arguments = ["audit", "--json", *map(str, options), url or str(training.folder)]
    environment = {**os.environ, "PYTHONPATH": PATH, **variables}
    process = forked.start(arguments, output, training.control, environment)
    code = process.wait(PATIENCE)
    text = output.read_text()
    return code, json.loads(text[text.index("{") :]) if code in (0, 67) else {"said": text}


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return every file below a folder with its time and size."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}


def test_planted_faults_are_found_and_named(train: Callable[..., Training]) -> None:
    training = train("planted", options="--save-every 5 --keep all", forked=True)
    training.start()
    training.end()
    before = files_of(training.folder)
    for phase, wanted in enumerate(PLANTED):
        code, found = audit(training, "--at", f"phase:{phase}")
        assert found.get("steps"), found
        assert not found["first"].split("-")[1].startswith("000000000000."), "from the start"
        print(phase, found["first"], found["last"], found["differences"][:1], found["seconds"])
        if wanted is None:
            assert (code, found["exact"], found["differences"]) == (0, True, [])
            assert found["compared"] > 60
            continue
        assert (code, found["exact"]) == (67, False)
        first = found["differences"][0]
        assert (first["part"], first["path"][: len(wanted[1])]) == wanted, found["differences"][:3]
        if phase == RACE:
            # The order of a sum shows in the last digits, and in no weight.
            assert float(first["how"].rpartition(" ")[2]) < 1e-2
    after = files_of(training.folder)
    new = [path.parent.name for path in after.keys() - before.keys()]
    assert new == ["journal"] * len(PLANTED)
    assert before.items() <= after.items()
    # An iterator is named already when the training saves; the audit shows what that leads to.
    code, found = audit(training, "--at", "phase:2", "--ignore", "callbacks[0].last")
    assert (code, found["exact"]) == (0, True)


@pytest.mark.parametrize("script", ["mlp", "cnn", "transformer", "gan"])
def test_nothing_is_found_where_nothing_is(
    script: str, untouched: Callable[[str], Training]
) -> None:
    training = untouched(script)
    result = training.control / "history.json"
    before = result.stat().st_mtime_ns
    code, found = audit(training)
    assert (code, found.get("differences")) == (0, []), found
    assert result.stat().st_mtime_ns == before  # the script did not run to its end


def test_a_job_in_a_bucket(
    untouched: Callable[[str], Training], gcs: ObjectStore, tmp_path: Path
) -> None:
    training = untouched("mlp")
    environment = {**os.environ, **gcs.environment}
    copied = outlast("copy", training.folder, f"{gcs.folder()}/", "--json", env=environment)
    url = json.loads(copied.stdout)["url"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code, found = audit(training, url=url, TMPDIR=str(temporary), **gcs.environment)
    assert (code, found.get("differences")) == (0, []), found
    assert list(temporary.glob("outlast-*")) == []
    status = json.loads(outlast("status", "--json", url, env=environment).stdout)
    assert (status["audit"]["exact"], status["audit"]["last"]) == (True, found["last"])


def test_a_running_job_is_audited_beside_its_training(train: Callable[..., Training]) -> None:
    """Also after a kill, and by a command of its own while it trains."""
    training = train("mlp", options="--save-every 7,epoch --audit-every 1")
    training.hold("epoch_end", 4)
    training.start()
    process = training.attempt(1)
    training.until_held(process, "epoch_end", 4)
    process.kill()
    training.until("its end", lambda: gone(process))
    training.hold("epoch_end", 8)
    process = training.attempt(2)
    training.until_held(process, "epoch_end", 8)
    out = outlast("audit", training.folder)
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith("exact    mlp  steps ")

    def audits() -> list[Audited]:
        found = [entry.event for entry in training.journal.read()]
        return [event for event in found if isinstance(event, Audited)]

    for epoch in range(12, 40, 4):  # an audit needs two checkpoints that a heartbeat has shown
        training.hold("epoch_end", epoch)
        training.until_held(process, "epoch_end", epoch)
        until = time.monotonic() + 20
        while len(audits()) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        if len(audits()) >= 2:
            break
    training.hold("never")
    training.end()  # it waits for an audit that has begun
    assert len(audits()) >= 2
    assert all(one.exact for one in audits()), audits()
    told = [row["event"] for row in logs.read(training.storage)]
    assert "audit_started" in told
    assert told.count("audit_passed") == len(audits())
    assert "audit_failed" not in told
    assert "audit" in training.output()
    status = json.loads(outlast("status", "--json", training.folder).stdout)
    assert status["audit"]["exact"] is True
    assert not list(training.folder.glob("outlast-*"))
