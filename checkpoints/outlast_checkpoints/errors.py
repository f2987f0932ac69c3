"""The error tree: every error that Outlast raises on purpose derives from `OutlastError`.

The docstring of a class is its message. Fields in braces are filled from the keyword arguments,
which you can read as attributes. The command line exits with `exit_code`.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from outlast_checkpoints.redaction import redact


class OutlastError(Exception):
    """Outlast could not continue: {reason}."""

    exit_code: ClassVar[int] = 1

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        super().__init__(self.message())
        for name, value in fields.items():  # after super(): OSError's __init__ clears errno
            setattr(self, name, value)

    def message(self) -> str:
        """Return the class docstring, with the fields filled in and credentials hidden."""
        template = " ".join(inspect.getdoc(type(self)).split())  # type: ignore[union-attr]
        try:
            return redact(template.format(**self.fields))
        except (KeyError, IndexError):
            return redact(f"{template} {self.fields}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.fields)


def _rebuild(kind: type[OutlastError], fields: dict[str, Any]) -> OutlastError:
    return kind(**fields)


def named(error: Exception) -> OutlastError:
    """Return an `OutlastError` for any error, so that the error of one job is its own."""
    if isinstance(error, OutlastError):
        return error
    said = " ".join(str(error).split())
    reason = f"unexpected {type(error).__name__}{': ' if said else ''}{said}"
    return OutlastError(reason=reason.rstrip("."))


class UsageError(OutlastError, ValueError):
    """{field}: {problem}. {hint}"""

    exit_code = 2


class InvalidName(OutlastError, ValueError):
    """{field} is {value!r}: {problem}. Use letters, digits, '.', '_' and '-'. Start with a letter
    or digit, and use at most 100 characters."""

    exit_code = 2


class StorageError(OutlastError, OSError):
    """Storage failed to {action} {path!r}: {reason}. Everything committed so far is safe. Check
    that the storage is reachable, then try again."""

    exit_code = 74


class StorageFull(StorageError):
    """No space left to {action} {path!r}: {reason}. Free some space or lower --keep. Everything
    committed so far is safe."""


class ReadOnly(StorageError):
    """{path!r} cannot be written: {scheme}:// is read-only. Use a folder or a bucket (s3://…,
    gs://…, az://…) to write to."""

    exit_code = 2


class NotFound(StorageError, FileNotFoundError):
    """{path!r} does not exist in {root!r}. Check the path."""


class AlreadyExists(StorageError, FileExistsError):
    """{path!r} already exists in {root!r}: another process was first. Nothing was overwritten."""


class CommitUnknown(StorageError):
    """The answer to writing {path!r} was lost ({reason}), so it may or may not be committed.
    Nothing is deleted; the next start finds out."""


class FormatError(OutlastError, ValueError):
    """{path!r} is not a valid Outlast file: {reason}."""

    exit_code = 65


class FormatTooNew(FormatError):
    """{path!r} has format {found}, but this Outlast reads formats up to {known}. Install a newer
    Outlast."""


class NotAuthentic(FormatError):
    """{path!r} was not written by a holder of the key: {reason}. Nothing of it was used. If you
    know that the job is good, `outlast key sign JOB --trust` signs it as it is."""


class KeyWrong(NotAuthentic):
    """{path!r} was signed with key {found}, but {file!r} holds {known}. Add the missing key to the
    key file, or use the key file of the job."""


class KeyMissing(OutlastError):
    """The job in {root!r} is signed, and no key is set, so nothing was written. Name the job's key
    file with --key-file or OUTLAST_KEY_FILE."""

    exit_code = 2


class CheckpointDamaged(OutlastError, ValueError):
    """Checkpoint {checkpoint} is damaged: {file}: {reason}. `outlast verify` shows which
    checkpoints are good."""

    exit_code = 65


class CheckpointsMissing(OutlastError, LookupError):
    """Attempt {attempt} found checkpoints in {root!r}: {found}; but {problem}. It stopped, because
    going on would train finished steps again. {hint}"""

    exit_code = 65


class NoCheckpoint(OutlastError, LookupError):
    """There is no {wanted} checkpoint in {root!r}. `outlast checkpoints` lists the existing
    ones."""

    exit_code = 66


class PlaceTaken(OutlastError, FileExistsError):
    """{root!r} cannot take a copy of this job: {problem}. Copy to an empty folder or URL, such as
    DEST/NAME."""

    exit_code = 2


class JobChanged(OutlastError, BlockingIOError):
    """The job in {root!r} changed while it was copied. Nothing is lost. Copy it again when it has
    stopped; files that have arrived are not copied twice."""

    exit_code = 5


class Superseded(OutlastError):
    """Attempt {attempt} was superseded by attempt {by}. It stops and commits nothing more."""

    exit_code = 76
