"""What an engine must be able to do: take a job, and see to it that a supervisor runs it."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

from outlast.job.spec import JobSpec
from outlast_checkpoints.storage.base import Storage

Handle = dict[str, Any]


class Standing(msgspec.Struct, frozen=True):
    """How a job stands with its engine. why: what it waits for, or where it runs; for people."""

    state: Literal["queued", "running"]
    why: str = ""

    @property
    def queued(self) -> bool:
        """Whether it has not been started yet."""
        return self.state == "queued"

    def __str__(self) -> str:
        return f"{self.state} ({self.why})" if self.why else self.state


class Engine(Protocol):
    """A place where supervisors run. What they do there is the same everywhere.

    A handle is a dict of JSON values that finds the job again, from another machine too; its "id"
    is what the engine's own commands call it. The suite in `outlast.engines.testing` says in tests
    what is written here in words.
    """

    def plan(self, spec: JobSpec, storage: Storage) -> str:
        """Return what `launch` would hand over, for people; nothing is started.

        Raises `SpecInvalid` for options that the engine does not know.
        """

    def launch(self, spec: JobSpec, storage: Storage) -> Handle:
        """Hand the job over; come back when it is accepted.

        Raises `SpecInvalid` as `plan` does, and `EngineFailed` when it was not accepted.
        """

    def poll(self, handle: Handle) -> Standing | None:
        """Return how it stands, None when the engine has nothing of it any more.

        Raises `EngineFailed` when that cannot be known now.
        """

    def stop(self, handle: Handle) -> None:
        """Take it back, queued or running; nothing when it is gone. Raises `EngineFailed`."""

    def again(self, handle: Handle, storage: Storage) -> Handle | None:
        """Asked by a supervisor that leaves with work undone: have the job started once more.

        Returns where it is found from then on; None when it was taken back meanwhile, or when
        nobody starts it. Raises `EngineFailed`.
        """
