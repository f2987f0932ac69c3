"""The protocol of backends, which launch attempts and control them."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from outlast.job.preload import Preload
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage

Handle = dict[str, Any]


class Exit(msgspec.Struct, frozen=True):
    """How the process of an attempt ended. Both fields are None when nobody saw it."""

    code: int | None = None
    """Exit code, if the process exited."""
    signal: int | None = None
    """Number of the signal that ended the process."""


class Backend(Protocol):
    """Launches the attempts of a job and controls them.

    A handle is a dict of JSON values. With it, any process finds the attempt again. Test an
    implementation with the suite in `outlast.backends.testing`:

        class TestMine(BackendConformance):
            def make(self) -> Backend:
                return MyBackend()
    """

    def launch(self, spec: JobSpec, storage: Storage, attempt: int) -> Handle:
        """Start `python -m outlast.attempt.main` for a job, and return without waiting for it.

        Its stdout and stderr go to the attempt's output.log.

        Args:
            spec: Spec of the job.
            storage: Storage of the job.
            attempt: Number of the attempt, from 1.

        Returns:
            The handle of the attempt.

        Raises:
            BackendFailed: the attempt certainly does not run.
            SpecInvalid: the backend cannot run this job.
        """

    def preload(self, handle: Handle) -> Preload | None:
        """Return what the attempt has imported; None while that is unknown.

        A backend reads it from its own child process, never from storage: others may write there.

        Args:
            handle: Handle of the attempt.
        """

    def prepare(self, spec: JobSpec, preload: Preload) -> None:
        """Prepare for the next attempt, which may be needed at any moment.

        The supervisor calls this repeatedly while an attempt trains, if the job wants a warm
        spare. A backend that cannot prepare anything does nothing.

        Args:
            spec: Spec of the job.
            preload: Modules to import and environment to import them in.
        """

    def close(self) -> None:
        """Discard what `prepare` has made. No further attempt is launched."""

    def poll(self, handle: Handle) -> Exit | None:
        """Return how the attempt ended; None while it is queued or running.

        Later calls return the same answer.

        Raises:
            BackendFailed: this is unknown now. The supervisor then relies on the heartbeat.
        """

    def signal(self, handle: Handle, signum: int) -> None:
        """Send a signal to the process of the attempt, but not to its children.

        Do nothing if the attempt has ended.

        Raises:
            BackendFailed: the attempt cannot be reached now.
        """

    def kill(self, handle: Handle) -> None:
        """Kill the attempt and every process that it started.

        Raises:
            BackendFailed: the attempt cannot be reached now.
        """

    def output(self, handle: Handle, start: int = 0) -> bytes:
        """Return the stdout and stderr of the attempt, from byte `start` on."""

    def finish(self, handle: Handle, storage: Storage, attempt: int) -> None:
        """Clean up after the end; publish output.log if it was not written in place."""
