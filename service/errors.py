"""The service's part of the error tree: jobs, specs, scripts, backends."""

from __future__ import annotations

from checkpoints.errors import HoldfastError
from service import exit_codes


class SpecInvalid(HoldfastError, ValueError):
    """The job's {field} is not valid: {problem}"""

    exit_code = exit_codes.REJECTED


class ScriptRejected(HoldfastError):
    """The script {script!r} cannot be started: {problem}"""

    exit_code = exit_codes.REJECTED


class JobUnknown(HoldfastError, LookupError):
    """There is no job in {root!r}. `holdfast list` shows the jobs that there are."""

    exit_code = exit_codes.JOB_UNKNOWN


class JobNotFound(JobUnknown):
    """There is no job {job!r} in {root!r}.{hint} `holdfast list` shows the jobs that there are."""


class JobExists(HoldfastError, FileExistsError):
    """There is a job {job!r} in {root!r} already. `holdfast resume {job}` goes on with it;
    another --name starts a new one."""

    exit_code = exit_codes.USAGE


class JobBusy(HoldfastError, BlockingIOError):
    """Job {job!r} is {state}: process {pid} on {host} has it (attempt {attempt}). `holdfast stop`
    ends it, `holdfast logs -f` shows what it does."""

    exit_code = exit_codes.JOB_BUSY


class InvalidTransition(HoldfastError):
    """{event} does not fit a job that is {state} (attempt {attempt}).{story}"""


class BackendUnknown(HoldfastError, LookupError):
    """There is no backend {backend!r}; there are: {known}."""

    exit_code = exit_codes.USAGE


class BackendFailed(HoldfastError, RuntimeError):
    """Backend {backend} could not {action}: {reason}"""


class DaemonFailed(HoldfastError, RuntimeError):
    """The detached supervisor ended at once (exit code {code}): {output}"""


class NotSent(HoldfastError, OSError):
    """{count} checkpoints ({size} bytes) could not be sent to {root!r}: {reason}. The state is in
    {path!r}, nothing is lost: run `holdfast resume {job}` on this machine when the storage is
    back."""

    exit_code = exit_codes.STORAGE_FAILED


class ExtraMissing(HoldfastError, ImportError):
    """{feature} needs {package}, which is not installed: pip install 'holdfast[{extra}]'"""

    exit_code = exit_codes.USAGE
