"""Metrics of any name are shown, drawn and verified; what is wrong with one job stops no other."""

from __future__ import annotations

import csv
import io
import unicodedata
import warnings
from pathlib import Path

import msgspec
import pytest

from outlast.cli import resume_all
from outlast.cli.display.tables import print_fields
from outlast.cli.job_address import Place
from outlast.job import heartbeat, process_identity
from outlast.job import spec as specs
from outlast.job.events import Launched, Started, Submitted
from outlast.job.journal import Journal
from outlast.job.spec import JobSpec
from outlast.training.state.epoch_means import numbers
from outlast_checkpoints.format import layout
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.printable import printable
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.command_line import Call

ODD = [
    "loss", 'a"b', "a\\b", "tab\tand\nline", "\x00\x1b[31m", "x$_$", "größe 数", "\u202eab", ",;'",
    "step", "kind", "epoch", "phase", "batch", "time", "logs.step", "",
]  # fmt: skip


def make(root: Path, name: str, metrics: list[str]) -> Storage:
    storage = open_storage(root / name)
    storage.create(layout.SPEC, specs.encode(JobSpec(job=name, script="train.py")))
    Journal(storage).append(Submitted())
    CheckpointStore(storage, attempt=1).begin()
    history = HistoryWriter(storage, 1)
    logs = {metric: float(number) for number, metric in enumerate(metrics)}
    for step in (1, 2):
        row = {"kind": "step", "phase": 0, "step": step, "epoch": 0, "batch": step - 1, "time": 1.0}
        history.append({**row, "logs": logs})
    history.append({"kind": "epoch", "phase": 0, "step": 2, "epoch": 0, "time": 1.0, "logs": logs})
    history.sync(history.mark())
    history.close()
    return storage


def test_metrics_of_any_name(job_root: Path, outlast: Call, tmp_path: Path) -> None:
    make(job_root, "odd", ODD)
    make(job_root, "plain", ["loss"])
    verified = outlast("verify", str(job_root), "--json")
    assert verified.code == 0, verified.err
    assert [one["history"]["entries"] for one in verified.json["jobs"]] == [3, 3]
    header, *rows = csv.reader(io.StringIO(outlast("history", "odd", "--csv").out))
    assert len(set(header)) == len(header) == 7 + len(ODD)
    assert [len(row) for row in rows] == [len(header)] * 3
    named = dict(zip(header, rows[0], strict=True))
    assert (named["kind"], named["step"], named["epoch"], named["batch"]) == ("step", "1", "0", "0")
    values = {name: float(named[name]) for name in header[7:]}
    assert values["logs.logs.step"] == ODD.index("step")
    assert values["logs.step"] == ODD.index("logs.step")
    assert values["logs.kind"] == ODD.index("kind")
    assert outlast("history", "odd", "--json").rows[0]["logs"].keys() == set(ODD)
    for shown in (outlast("history", "odd").out, outlast("history", "odd", "--steps").out):
        assert not [
            one for one in shown if unicodedata.category(one) in ("Cc", "Cf") and one != "\n"
        ]
    assert len(outlast("history", "odd").out.splitlines()) == 2
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for more in ([], ["--metric", "x$_$", "--metric", "größe 数", "--metric", "\x00\x1b[31m"]):
            drawn = outlast("history", "odd", "--plot", str(tmp_path / "x.png"), *more)
            assert drawn.code == 0, drawn.err
            assert drawn.out.count("\n") == 1


def test_an_unexpected_error_is_the_damage_of_one_job(
    job_root: Path, outlast: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bad", "good"):
        make(job_root, name, ["loss"])

    def broken(reader: HistoryReader) -> object:
        if "/bad" in reader._storage.root:
            raise ZeroDivisionError("by zero")
        return before(reader)

    before = HistoryReader.columns
    monkeypatch.setattr(HistoryReader, "columns", broken)
    answer = outlast("verify", str(job_root), "--json")
    assert answer.code == 65
    bad, good = answer.json["jobs"]
    assert good["good"]
    assert "ZeroDivisionError: by zero" in bad["history"]["damage"]
    monkeypatch.setattr(Journal, "newest", lambda journal: 1 / 0)
    listed = outlast("list", "--json")
    assert listed.code == 0
    assert {one["state"] for one in listed.json} == {"unreadable"}

    def start(place: Place) -> None:
        if place.name == "bad":
            raise ZeroDivisionError("by zero")

    monkeypatch.setattr(resume_all, "hand_over", start)
    brought = outlast("resume", "--all", "--trust", "--json")
    assert brought.code == 1
    assert {one["job"]: one["how"] for one in brought.json} == {"bad": "failed", "good": "started"}


def test_text_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("größe 数 'x'") == "größe 数 'x'"
    assert printable("a\nb\x1b[0m\u202e\udce9") == "a\\nb\\x1b[0m\\u202e\\udce9"
    print_fields({"metrics": "a\nb 1"})
    assert capsys.readouterr().out == "metrics  a\\nb 1\n"
    assert numbers({"\udce9.png": 1}) == {"\\udce9.png": 1.0}


def test_a_job_without_a_process_is_not_called_running(
    job_root: Path, outlast: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, me = make(job_root, "left", ["loss"]), process_identity.here()
    assert me.start is not None
    dead = msgspec.structs.replace(me, start=me.start - 1)  # its pid was reused
    journal = Journal(storage)
    with monkeypatch.context() as patch:
        patch.setattr(process_identity, "here", lambda: dead)
        journal.claim(dead)
        journal.append(Launched(attempt=1))
        journal.append(Started(attempt=1))
    heartbeat.HeartbeatWriter(storage, 1, heartbeat.Status(), 60.0).stop(75)
    assert outlast("status", "left", "--json").json["process_gone"] is True
    shown = outlast("status", "left").out
    assert "no process has it now; it was running" in shown
    assert "resume it with `outlast resume`" in shown
    listed = outlast("list").out.splitlines()[1]
    assert "gone" in listed
    assert "running" not in listed
