"""The service's part of the error tree: jobs, specs, scripts, backends."""

from __future__ import annotations

from outlast import exit_codes
from outlast_checkpoints.errors import OutlastError


class SpecInvalid(OutlastError, ValueError):
    """The job's {field} is not valid: {problem}"""

    exit_code = exit_codes.REJECTED


class ScriptRejected(OutlastError):
    """The script {script!r} cannot be started: {problem}"""

    exit_code = exit_codes.REJECTED


class JobUnknown(OutlastError, LookupError):
    """There is no job in {root!r}. `outlast list` shows the jobs that there are."""

    exit_code = exit_codes.JOB_UNKNOWN


class JobNotFound(JobUnknown):
    """There is no job {job!r} in {root!r}.{hint} `outlast list` shows the jobs that there are."""


class JobExists(OutlastError, FileExistsError):
    """There is a job {job!r} in {root!r} already. `outlast resume {job}` goes on with it;
    another --name starts a new one."""

    exit_code = exit_codes.USAGE


class JobBusy(OutlastError, BlockingIOError):
    """Job {job!r} is {state}: process {pid} on {host} has it (attempt {attempt}). `outlast stop`
    ends it, `outlast logs -f` shows what it does."""

    exit_code = exit_codes.JOB_BUSY


class InvalidTransition(OutlastError):
    """{event} does not fit a job that is {state} (attempt {attempt}).{story}"""


class PluginUnknown(OutlastError, LookupError):
    """There is no {kind} {name!r}. Known {kind}s: {known}."""

    exit_code = exit_codes.USAGE


class BackendFailed(OutlastError, RuntimeError):
    """Backend {backend} could not {action}: {reason}"""


class EngineFailed(OutlastError, RuntimeError):
    """Engine {engine} could not {action}: {reason}"""


class DaemonFailed(OutlastError, RuntimeError):
    """The detached supervisor ended at once (exit code {code}): {output}"""


class NotSent(OutlastError, OSError):
    """{count} checkpoints ({size} bytes) could not be sent to {root!r}: {reason}. The state is in
    {path!r}, nothing is lost: run `outlast resume {job}` on this machine when the storage is
    back."""

    exit_code = exit_codes.STORAGE_FAILED


class ExtraMissing(OutlastError, ImportError):
    """{feature} needs {package}, which is not installed: pip install 'outlast[{extra}]'"""

    exit_code = exit_codes.USAGE
