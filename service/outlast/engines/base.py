"""The protocol of engines, which run the supervisors of jobs."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage

Handle = dict[str, Any]


class QueueState(msgspec.Struct, frozen=True):
    """The state of a job in its engine."""

    state: Literal["queued", "running"]
    """Whether the job waits to be started, or has been started."""
    why: str = ""
    """What the job waits for, or where it runs; for people."""

    @property
    def queued(self) -> bool:
        """Whether the job has not been started yet."""
        return self.state == "queued"

    def __str__(self) -> str:
        return f"{self.state} ({self.why})" if self.why else self.state


class Engine(Protocol):
    """Runs the supervisors of jobs: on this machine, or on a cluster.

    A handle is a dict of JSON values. With it, any machine finds the job again. Its "id" is the
    name of the job in the engine's own commands. Test an implementation with the suite in
    `outlast.engines.testing`:

        class TestMine(EngineConformance):
            def make(self) -> Engine:
                return MyEngine()
    """

    def plan(self, spec: JobSpec, storage: Storage) -> str:
        """Return what `launch` would submit, for people. Nothing is started.

        Args:
            spec: Spec of the job.
            storage: Storage of the job.

        Raises:
            SpecInvalid: the engine does not know an option, or its value is invalid.
        """

    def launch(self, spec: JobSpec, storage: Storage) -> Handle:
        """Submit the job and return when it is accepted.

        Args:
            spec: Spec of the job.
            storage: Storage of the job.

        Returns:
            The handle of the job.

        Raises:
            SpecInvalid: as `plan`.
            EngineFailed: the job was not accepted.
        """

    def poll(self, handle: Handle) -> QueueState | None:
        """Return the state of the job; None when the engine no longer has it.

        Raises:
            EngineFailed: the state is unknown now.
        """

    def stop(self, handle: Handle, storage: Storage) -> None:
        """Remove the job from the engine, queued or running. Do nothing when it is gone.

        A handle comes from the job's files, so it may name somebody else's work. An engine removes
        only what carries the URL of this job's storage.

        Args:
            handle: Handle of the job.
            storage: Storage of the job.

        Raises:
            EngineFailed: the handle names another job, or the engine does not answer now.
        """

    def requeue(self, handle: Handle, storage: Storage) -> Handle | None:
        """Have the job started again; called by a supervisor that leaves before the job is done.

        Args:
            handle: Handle of the job as it runs now.
            storage: Storage of the job.

        Returns:
            The handle of the job from now on. None when the job was removed meanwhile, or when
            nothing will start it.

        Raises:
            EngineFailed: the engine refused, or does not answer now.
        """
