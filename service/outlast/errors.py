"""Errors of jobs, specs, scripts, backends and engines."""

from __future__ import annotations

from outlast import exit_codes
from outlast_checkpoints.errors import OutlastError


class SpecInvalid(OutlastError, ValueError):
    """Invalid value for {field}: {problem}"""

    exit_code = exit_codes.REJECTED


class ScriptRejected(OutlastError):
    """The script {script!r} cannot be started: {problem}"""

    exit_code = exit_codes.REJECTED


class JobUnknown(OutlastError, LookupError):
    """There is no job in {root!r}. List the existing jobs with `outlast list`."""

    exit_code = exit_codes.JOB_UNKNOWN


class JobRemoved(JobUnknown):
    """The job in {root!r} is deleted in part, because `outlast rm` was interrupted. Repeat it."""


class RootUnknown(JobUnknown):
    """There is no folder or bucket {root!r}. Choose the root of your jobs with --root, or start a
    job there with `outlast run`."""


class JobNotFound(JobUnknown):
    """There is no job {job!r} in {root!r}.{hint} List the existing jobs with `outlast list`."""


class JobForeign(OutlastError, PermissionError):
    """Job {job!r} is not yours: {path!r} belongs to {owner}, and you are {me}. A job folder is a
    program, so nothing of it was run, stopped or deleted. Ask its owner, or submit the training in
    a root of your own."""

    exit_code = exit_codes.REJECTED


class JobNotTrusted(OutlastError, PermissionError):
    """Job {job!r} was not submitted by you on this machine, so nothing was started. A job folder
    is a program: whoever wrote it decides what runs as you. It would run:
    {what}
    If you trust everybody who can write there: outlast {command} --trust"""

    exit_code = exit_codes.REJECTED


class JobExists(OutlastError, FileExistsError):
    """Job {job!r} already exists in {root!r}. Resume it with `outlast resume {job}`, or choose
    another --name."""

    exit_code = exit_codes.USAGE


class JobBusy(OutlastError, BlockingIOError):
    """Job {job!r} is {state}: process {pid} on {host} has it (attempt {attempt}). Stop it with
    `outlast stop {job}`, or follow it with `outlast logs -f {job}`."""

    exit_code = exit_codes.JOB_BUSY


class JobNotEnded(OutlastError, BlockingIOError):
    """Job {job!r} is {state} and has not ended, so nothing of it was deleted. Stop it first, with
    `outlast stop {job}`."""

    exit_code = exit_codes.JOB_BUSY


class InvalidTransition(OutlastError):
    """Event {event} is not allowed while the job is {state} (attempt {attempt}).{recent_events}"""


class PluginUnknown(OutlastError, LookupError):
    """There is no {kind} {name!r}. Use one of these: {known}."""

    exit_code = exit_codes.USAGE


class BackendFailed(OutlastError, RuntimeError):
    """Backend {backend} could not {action}: {reason}"""


class EngineFailed(OutlastError, RuntimeError):
    """Engine {engine} could not {action}: {reason}. Correct the cause and try again. If
    `outlast list` shows the job, use `outlast resume JOB`."""


class DaemonFailed(OutlastError, RuntimeError):
    """The detached supervisor ended immediately (exit code {code}): {output}"""


class NotSent(OutlastError, OSError):
    """{count} checkpoints ({size} bytes) could not be sent to {root!r}: {reason}. Nothing is
    lost: they are in {path!r}. Run `outlast resume {job}` on this machine when the storage is
    back."""

    exit_code = exit_codes.STORAGE_FAILED


class AuditImpossible(OutlastError, LookupError):
    """Job {job!r} cannot be audited: {problem}. {hint}"""

    exit_code = exit_codes.NO_CHECKPOINT


class AuditFailed(OutlastError, RuntimeError):
    """The audit of {job!r} could not train the interval again: {reason}. Nothing is known about its
    exactness. Correct the cause, then audit it again.{output}"""


class ExtraMissing(OutlastError, ImportError):
    """{feature} requires {package}, which is not installed. Run: pip install 'outlast[{extra}]'"""

    exit_code = exit_codes.USAGE
