"""The error tree: every error that Outlast raises on purpose descends from `OutlastError`.

The docstring of a class is its message: fields in braces are filled from the keyword arguments,
which stay readable as attributes. `exit_code` is what the command line exits with.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from outlast_checkpoints.redaction import redact


class OutlastError(Exception):
    """Outlast could not go on: {reason}."""

    exit_code: ClassVar[int] = 1

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(self.message())
        for name, value in fields.items():  # afterwards: OSError's own __init__ clears errno
            setattr(self, name, value)

    def message(self) -> str:
        """Return the class docstring with this error's fields filled in, credentials hidden."""
        template = " ".join(inspect.getdoc(type(self)).split())  # type: ignore[union-attr]
        try:
            return redact(template.format(**self.fields))
        except (KeyError, IndexError):
            return redact(f"{template} {self.fields}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.fields)


def _rebuild(kind: type[OutlastError], fields: dict[str, Any]) -> OutlastError:
    return kind(**fields)


class UsageError(OutlastError, ValueError):
    """{field}: {problem}. {hint}"""

    exit_code = 2


class InvalidName(OutlastError, ValueError):
    """{field} is {value!r}: {problem}. Use letters, digits, '.', '_' and '-', starting with a
    letter or digit, at most 100 characters."""

    exit_code = 2


class StorageError(OutlastError, OSError):
    """Storage failed to {action} {path!r}: {reason}. Nothing that was committed is lost."""

    exit_code = 74


class StorageFull(StorageError):
    """No space left to {action} {path!r}: {reason}. Free some space or lower --keep; what was
    committed before stays good."""


class ReadOnly(StorageError):
    """{path!r} cannot be written: {scheme}:// is for reading. Name a folder or a bucket (s3://…,
    gs://…, az://…) to write to."""

    exit_code = 2


class NotFound(StorageError, FileNotFoundError):
    """{path!r} does not exist in {root!r}."""


class AlreadyExists(StorageError, FileExistsError):
    """{path!r} exists already in {root!r}: somebody else was first."""


class CommitUnknown(StorageError):
    """The answer to writing {path!r} was lost ({reason}): it may or may not be committed. It is
    looked for again at the next start and never deleted."""


class FormatError(OutlastError, ValueError):
    """{path!r} is not what Outlast writes: {reason}."""

    exit_code = 65


class FormatTooNew(FormatError):
    """{path!r} has format {found}, this Outlast reads up to {known}. Install a newer Outlast."""


class CheckpointDamaged(OutlastError, ValueError):
    """Checkpoint {checkpoint} is damaged: {file}: {reason}."""

    exit_code = 65


class NoCheckpoint(OutlastError, LookupError):
    """There is no {wanted} checkpoint in {root!r}. `outlast checkpoints` lists what there is."""

    exit_code = 66


class PlaceTaken(OutlastError, FileExistsError):
    """{root!r} cannot take a copy of this job: {problem}. Name a folder or URL that is the copy's
    own, such as DEST/NAME."""

    exit_code = 2


class JobChanged(OutlastError, BlockingIOError):
    """The job in {root!r} went on while it was copied. Nothing is lost; copy it again when it
    stands still: what has arrived is not copied twice."""

    exit_code = 5


class Superseded(OutlastError):
    """Attempt {attempt} was superseded by attempt {by}: it stops and commits nothing more."""

    exit_code = 76
