"""What stands in the files of a job never controls the terminal of who looks at it."""

from __future__ import annotations

import ast
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import outlast.cli
from outlast.cli import main
from outlast.cli.commands.logs import logs
from outlast.job import heartbeat, process_identity
from outlast.job import spec as specs
from outlast.job.events import Ended, Launched, Started, Submitted
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.printable import printable
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore

# A window title, the clipboard, a cleared screen, hidden text, C1, and text from right to left.
HOSTILE = "\x1b]0;owned\x07\x1b]52;c;eA==\x07\x1b[2J\x1b[8m\x9b1;1H\u202ex\u2066\x08\x00\x7f"
FORMULA = "=HYPERLINK(0)"
VERBS = ["list", "status x", "logs x", "history x", "checkpoints x", "verify x", "verify"]


@pytest.fixture
def hostile(job_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job with control characters wherever a file holds text. Its root is the default."""
    monkeypatch.setenv("OUTLAST_ROOT", str(job_root))
    storage = open_storage(job_root / "x")
    spec = JobSpec(job="x", script=f"{HOSTILE}.py", args=[HOSTILE.replace("\0", "")], created=1e9)
    storage.create(layout.SPEC, specs.encode(spec).replace(b"\\u0000", b""))
    journal = Journal(storage)
    journal.append(Submitted())
    journal.claim(process_identity.here())
    journal.append(Launched(attempt=1))
    journal.append(Started(attempt=1))
    logs = {HOSTILE: 1.0, FORMULA: 2.0}
    history = HistoryWriter(storage, 1)
    history.append(
        {"kind": "phase", "phase": 0, "step": 0, "name": HOSTILE, "params": {HOSTILE: HOSTILE}}
    )
    for kind in ("step", "epoch"):
        row = {"kind": kind, "phase": 0, "step": 1, "epoch": 0, "batch": 0, "time": 1e9}
        history.append({**row, "logs": logs, "batch_loss": 1.0})
    mark = history.mark()
    history.close()
    store = CheckpointStore(storage, attempt=1, writer={HOSTILE: HOSTILE})
    store.begin()
    store.save(
        Snapshot(
            Progress(phase=0, step=1, epoch=0, batch=1, stage=Stage.STEP, epochs=2),
            files={"model.weights.h5": ArrayFile({})},
            documents={"notes.json": b"{}"},
            metrics=logs,
        ),
        reason="step",
        history=mark,
    )
    status = heartbeat.Status()
    status.phase, status.step, status.logs = 0, 1, logs
    status.phase_name = status.activity = HOSTILE
    heartbeat.HeartbeatWriter(storage, 1, status, 60.0).stop(0)
    row = {"time": 1e9, "level": "error", "event": HOSTILE, HOSTILE: HOSTILE, "exception": HOSTILE}
    storage.replace(layout.attempt_log(1), json.dumps({**row, "attempt": HOSTILE}).encode() + b"\n")
    storage.replace(layout.output_log(1), HOSTILE.encode() + b"\r50%\r\x1b[1m100%\x1b[0m\n")
    ended = Ended(attempt=1, outcome=Outcome.CRASHED, reason=HOSTILE, advanced=True, signal=None)
    journal.append(ended)
    return job_root


def out_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main(list(arguments))
    printed = capsys.readouterr()
    return printed.out + printed.err


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_verb_prints_a_control_character(
    hostile: Path, capsys: pytest.CaptureFixture[str], verb: str, more: list[str]
) -> None:
    text = out_of(capsys, *verb.split(), *more)
    assert printable(text, keep="\n") == text
    assert "unexpected" not in text
    if more:
        assert text.isascii()


def test_a_table_of_numbers_holds_no_formula(
    hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.reader(io.StringIO(out_of(capsys, "history", "x", "--csv"))))
    assert f"'{FORMULA}" in rows[0]
    for row in rows:
        for cell in row:
            assert printable(cell) == cell
            assert not cell.startswith(("=", "+", "@"))


def test_a_terminal_gets_output_without_controls_and_a_pipe_gets_all(
    hostile: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed(*more: str) -> str:
        logs.main(["x", "--output", *more], standalone_mode=False)
        sys.stdout.flush()
        text: str = capfdbinary.readouterr().out.decode()
        return text

    stored = open_storage(hostile / "x").read(layout.output_log(1)).decode()
    assert printed() == stored
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert printed() == "100%\n"
    assert printed("--raw") == stored


def test_the_command_line_prints_through_one_door() -> None:
    """Elsewhere is printed only what a user asked for raw, or what has been made printable."""
    doors = {"say.py": 1, "tables.py": 0, "logs.py": 1, "submit.py": 1}
    for path in Path(outlast.cli.__file__).parent.rglob("*.py"):
        calls = [
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and (name := ast.unparse(node.func)) in ("click.echo", "click.secho", "print")
        ]
        assert len(calls) == doors.get(path.name, 0), (path, calls)
