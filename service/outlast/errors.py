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


class RootUnknown(JobUnknown):
    """There is no folder or bucket {root!r}. Choose the root of your jobs with --root, or start a
    job there with `outlast run`."""


class JobNotFound(JobUnknown):
    """There is no job {job!r} in {root!r}.{hint} List the existing jobs with `outlast list`."""


class JobExists(OutlastError, FileExistsError):
    """Job {job!r} already exists in {root!r}. Resume it with `outlast resume {job}`, or choose
    another --name."""

    exit_code = exit_codes.USAGE


class JobBusy(OutlastError, BlockingIOError):
    """Job {job!r} is {state}: process {pid} on {host} has it (attempt {attempt}). Stop it with
    `outlast stop {job}`, or follow it with `outlast logs -f {job}`."""

    exit_code = exit_codes.JOB_BUSY


class InvalidTransition(OutlastError):
    """Event {event} is not allowed while the job is {state} (attempt {attempt}).{story}"""


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


class ExtraMissing(OutlastError, ImportError):
    """{feature} requires {package}, which is not installed. Run: pip install 'outlast[{extra}]'"""

    exit_code = exit_codes.USAGE
