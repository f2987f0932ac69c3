"""Errors of the training room, in the one tree."""

from __future__ import annotations

from outlast_checkpoints.errors import OutlastError, UsageError


class StateMismatch(OutlastError, ValueError):
    """The training in the script does not match checkpoint {checkpoint}: {what}: {problem}.
    Nothing was changed. Go on with the script that made the checkpoint, or start a new job (another
    --name or job_dir) for the new one."""

    exit_code = 3


class VersionMismatch(StateMismatch):
    """The training in the script does not match checkpoint {checkpoint}, which was written with
    {written}; this is {present}: {what}: {problem}. Nothing was changed. If the script is still the
    same, install the versions that wrote the checkpoint; else start a new job (another --name or
    job_dir)."""


class VersionUnsupported(OutlastError, ImportError):
    """{package} {found} is not supported: Outlast is tested with {package} {supported}. Install one
    of these (pip install '{requirement}'), or set {variable}=1 to train with it at your own
    risk."""

    exit_code = 3


class NotSupported(UsageError):
    """{field}: {problem}. {hint}"""


class MachineMismatch(OutlastError, RuntimeError):
    """This job computes with {wanted} intra-op threads, this process with {threads}, and results
    would differ in their last digits. Start the script with {variable} in its environment."""

    exit_code = 3


class Diverged(OutlastError, ArithmeticError):
    """The loss became {value} at step {step} (epoch {epoch}) and on_nan is "stop". Resume from an
    older checkpoint with a smaller learning rate, or clip the gradients."""

    exit_code = 65


class DataWorkerDied(OutlastError, RuntimeError):
    """A worker process of the {kind}, {who}, {ended}, and a batch was lost with it. SIGKILL mostly
    means that the machine had no memory left: use fewer workers, or a smaller max_queue_size."""


class StateSaved(SystemExit):
    """Raised out of `fit` after a stop was asked for and the state is safe; exits with 75.

    It is a SystemExit, so that `except Exception` in a script does not swallow it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(75)
        self.reason = reason
