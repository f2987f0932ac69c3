"""What a training reports: the values of its heartbeat, and the lines of its log."""

from __future__ import annotations

import structlog
from structlog.testing import capture_logs

from outlast.job.heartbeat import Status
from outlast.training.progress_reporter import ProgressReporter
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.snapshot import Progress
from outlast_checkpoints.store.spool_sender import Backlog


def made() -> tuple[ProgressReporter, Status]:
    status = Status()
    return ProgressReporter(status, structlog.get_logger()), status


def progress(step: int, epoch: int, batch: int) -> Progress:
    return Progress(
        phase=1,
        phase_name="tune",
        step=step,
        epoch=epoch,
        batch=batch,
        stage=Stage.STEP,
        epochs=5,
        steps_per_epoch=10,
        seed=1,
    )


def test_steps_give_position_metrics_speed_and_the_steps_of_the_whole_phase() -> None:
    reporter, status = made()
    reporter.activity("compiling")
    assert (status.activity, status.progress) == ("compiling", 1)
    reporter.phase_begins(1, "tune", epochs=5, steps_per_epoch=10)
    reporter.resumed(progress(23, 2, 3))
    assert (status.step, status.epoch, status.batch) == (23, 2, 3)
    logs = {"loss": 0.5, "several": [1.0, 2.0]}
    reporter.steps(4, step=27, epoch=2, batch=7, logs=logs, seconds=0.5)
    assert (status.step, status.epoch, status.batch, status.steps_done) == (27, 2, 7, 4)
    assert (status.activity, status.logs) == ("training", {"loss": 0.5})
    # Epochs 2, 3 and 4 are left, without the seven batches that are done.
    assert status.total_steps == 27 + 3 * 10 - 7
    assert status.steps_per_second is not None
    assert round(status.steps_per_second) == 8
    # The speed of a new phase is measured anew, and its end is unknown without its size.
    reporter.phase_begins(2, None, epochs=None, steps_per_epoch=None)
    reporter.steps(1, step=1, epoch=0, batch=1, logs=logs, seconds=0.25)
    assert round(status.steps_per_second) == 4
    assert (status.phase, status.phase_name, status.steps_done) == (2, None, 5)
    assert status.total_steps is None


def test_a_save_is_counted_and_its_checkpoint_is_the_newest_when_it_is_durable() -> None:
    reporter, status = made()
    reporter.resumes_from("00-000000000012.0-0001", 12)
    assert status.restored_from == reporter.last_checkpoint == "00-000000000012.0-0001"
    reporter.save_begun(0.25)
    assert (status.saves, round(status.spent["saving"], 2)) == (1, 0.25)
    assert [reporter.save_postponed(), reporter.save_postponed()] == [1, 2]
    before = status.progress
    with capture_logs() as lines:
        fields = {"checkpoint": "00-000000000020.0-0002", "seconds": 0.123456}
        reporter.writer_event("saved", fields, None)
        reporter.writer_event("pruned", {"checkpoints": 1}, None)
        reporter.writer_event("save_failed", {"error": OSError("full")}, None)
    assert (reporter.last_checkpoint, status.last_checkpoint_at_step) == (
        "00-000000000020.0-0002",
        20,
    )
    assert status.restored_from == "00-000000000012.0-0001"
    assert status.progress == before + 1
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("saved", "info"),
        ("pruned", "info"),
        ("save_failed", "warning"),
    ]
    assert (lines[0]["seconds"], lines[2]["error"]) == (0.1235, "full")


def test_a_waiting_checkpoint_is_a_warning_only_while_the_storage_is_away() -> None:
    reporter, status = made()
    fields = {"checkpoint": "00-000000000020.0-0002", "seconds": 0.5}
    with capture_logs() as lines:
        for since in (None, 1000.0):
            backlog = Backlog(count=2, size=64, path="/spool", away_since=since, reason="")
            reporter.writer_event("spooled", fields, backlog)
    assert [(line["log_level"], line["path"]) for line in lines] == [
        ("info", "/spool"),
        ("warning", "/spool"),
    ]
    assert (status.spooled, status.spooled_bytes, status.away_since) == (2, 64, 1000.0)
