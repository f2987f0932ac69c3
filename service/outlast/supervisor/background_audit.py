"""Audits beside the training: when to start one, and how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from outlast.backends.local import source_path
from outlast.exit_codes import DONE, NOT_EXACT, RESUMABLE
from outlast.job.audit_schedule import AuditEvery
from outlast.job.heartbeat import Beat
from outlast.job.log_events import LogEvent
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage

_CLOSE_WITHIN: Final = 10.0  # seconds


class BackgroundAudit:
    """Starts the audits of a job, one at a time. It never waits, except in `close`.

    The outcome of an audit is in the journal; here only failures of the audit itself are seen.

    Args:
        spec: Spec of the job.
        storage: Storage of the job.
        log: Returns the supervisor's log.
        now: Monotonic seconds.
    """

    def __init__(
        self, spec: JobSpec, storage: Storage, log: Callable[[], FilteringBoundLogger], now: float
    ) -> None:
        self._every = AuditEvery.parse(spec.audit_every)
        self._storage = storage
        self._log = log
        self._began = now
        self._checkpoint: str | None = None
        self._saved = 0  # checkpoints since the last audit began
        self._process: subprocess.Popen[str] | None = None

    @property
    def running(self) -> bool:
        """Whether an audit is under way."""
        return self._process is not None

    def look(self, beat: Beat | None, now: float) -> None:
        """Start an audit if one is due, and see whether the last one has ended.

        Args:
            beat: Newest heartbeat of the running attempt.
            now: Monotonic seconds.
        """
        self._see_end()
        if not self._every.wanted:
            return
        if beat is not None and beat.last_checkpoint not in (None, self._checkpoint):
            self._checkpoint = beat.last_checkpoint
            self._saved += 1
        if self._process is None and self._every.due(self._saved, now - self._began):
            self._began, self._saved = now, 0
            self._start()

    def stop(self) -> None:
        """Ask an audit to end, without waiting for it, and start no further one."""
        if self._process is not None and self._every.wanted:
            self._process.terminate()
        self._every = AuditEvery()

    def close(self) -> None:
        """End an audit that is under way."""
        self.stop()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=_CLOSE_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()  # its attempt notices that and leaves
            process.communicate()

    def _start(self) -> None:
        env = dict(os.environ)
        if (source := source_path()) is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [source, env.get("PYTHONPATH")]))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "outlast.audit.main", self._storage.root],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=env,
                text=True,
                process_group=0,  # Ctrl-C on the terminal reaches only the supervisor
            )
        except OSError as error:
            self._log().warning(LogEvent.AUDIT_FAILED, error=str(error))
            return
        self._log().info(LogEvent.AUDIT_STARTED, pid=self._process.pid)

    def _see_end(self) -> None:
        process = self._process
        if process is None or process.poll() is None:
            return
        self._process = None
        _, said = process.communicate()
        if process.returncode not in (DONE, NOT_EXACT, RESUMABLE):
            error = said.strip() or f"exit code {process.returncode}"
            self._log().warning(LogEvent.AUDIT_FAILED, error=error)
