"""What a backend must be able to do: launch an attempt somewhere, and look after it there."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from outlast.job.preload import Preload
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage

Handle = dict[str, Any]


class Exit(msgspec.Struct, frozen=True):
    """How an attempt's process ended: by exit code, by signal, or (both None) nobody saw how."""

    code: int | None = None
    signal: int | None = None


class Backend(Protocol):
    """A place where attempts run.

    A handle is a dict of JSON values that finds the attempt again, from another process too. The
    suite in `outlast.backends.testing` says in tests what is written here in words.
    """

    def launch(self, spec: JobSpec, storage: Storage, attempt: int) -> Handle:
        """Start `python -m outlast.attempt.main` for the job in `storage`; come back at once.

        Its stdout and stderr go to the attempt's output.log. Raises `BackendFailed` when it
        certainly does not run.
        """

    def prepare(self, spec: JobSpec, preload: Preload) -> None:
        """Make ready for the next attempt of the job, which may be needed at any moment.

        Called again and again while an attempt trains, when the job asks for a warm spare. A
        backend that can do nothing in advance does nothing.
        """

    def close(self) -> None:
        """Give up what `prepare` has made ready: no further attempt is launched."""

    def poll(self, handle: Handle) -> Exit | None:
        """Return how the attempt ended, None while it is queued or runs. Same answer again later.

        Raises `BackendFailed` when this cannot be known now; the supervisor then goes by the
        heartbeat.
        """

    def signal(self, handle: Handle, signum: int) -> None:
        """Send a signal to the attempt's own process, not to its children; nothing if it ended.

        Raises `BackendFailed` when it cannot be reached now.
        """

    def kill(self, handle: Handle) -> None:
        """End the attempt and all that it started, at once, whatever it is doing.

        Raises `BackendFailed` when it cannot be reached now.
        """

    def output(self, handle: Handle, start: int = 0) -> bytes:
        """Return what the attempt has written to stdout and stderr from byte `start` on."""

    def finish(self, handle: Handle, storage: Storage, attempt: int) -> None:
        """Tidy up after the end: publish output.log where it was not written in place."""
