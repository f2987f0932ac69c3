"""Errors that training raises, all in the tree of `OutlastError`."""

from __future__ import annotations

from outlast_checkpoints.errors import OutlastError, UsageError


class StateMismatch(OutlastError, ValueError):
    """The script does not match checkpoint {checkpoint}: {what}: {problem}. Nothing was changed.
    Resume with the script that wrote the checkpoint, or start a new job (another --name or
    job_dir)."""

    exit_code = 3


class DataMismatch(StateMismatch):
    """The data differs from that of checkpoint {checkpoint}, in the middle of an epoch: {what}:
    {problem}. Nothing was changed. Resume with the same data, or start a new job (another --name or
    job_dir). To go on with this data from the next batch, set {variable}=1."""


class VersionMismatch(StateMismatch):
    """The script does not match checkpoint {checkpoint}, which was written with {written}; this is
    {present}: {what}: {problem}. Nothing was changed. If the script is unchanged, install the
    versions that wrote the checkpoint. Otherwise start a new job (another --name or job_dir)."""


class CheckpointTooOld(StateMismatch):
    """Checkpoint {checkpoint} was written by an earlier build of Outlast {written}, and its state
    lacks {missing}, which this one needs. Nothing was changed. Finish the job with that build, or
    start a new job (another --name or job_dir)."""


class PhaseMismatch(StateMismatch):
    """Phase {phase} ({named}) was finished by a different {maker} than the script calls here:
    {what}: {problem}. Its result is not returned, and nothing was changed. If the script skips
    finished phases itself, give each fit and Loop a name (name=...). If you changed the script,
    start a new job (another --name or job_dir)."""


class PhaseUnfinished(OutlastError, RuntimeError):
    """The script begins a new phase {new}, but {phase} is unfinished, and a restart could not
    continue it. Nothing was changed. Run the fit or Loop of the unfinished phase first, or start a
    new job (another --name or job_dir)."""

    exit_code = 3


class PhaseLeft(OutlastError, RuntimeError):
    """The script left phase {phase} by {error}. This error must be raised again, but the script no
    longer has a class of that name. Restore the class, or start a new job (another --name or
    job_dir)."""

    exit_code = 3


class VersionUnsupported(OutlastError, ImportError):
    """{package} {found} is not supported: Outlast is tested with {package} {supported}. Install a
    supported version (pip install '{requirement}'), or set {variable}=1 to train with {found} at
    your own risk."""

    exit_code = 3


class NotSupported(UsageError):
    """{field}: {problem}. {hint}"""


class MachineMismatch(OutlastError, RuntimeError):
    """This job computes with {wanted} intra-op threads, this process with {threads}, and results
    would differ in their last digits. Start the script with {variable} in its environment."""

    exit_code = 3


class Diverged(OutlastError, ArithmeticError):
    """The loss became {value} at step {step} (epoch {epoch}), and on_nan is "stop". Resume from an
    older checkpoint with a smaller learning rate, or clip the gradients."""

    exit_code = 65


class RollbackNeeded(SystemExit):
    """Ends the script with exit code 65 at a loss that is not finite, so that the job rolls back.

    It is a `SystemExit`, so that `except Exception` in a script does not catch it.
    """

    def __init__(self) -> None:
        super().__init__(Diverged.exit_code)


class DataWorkerDied(OutlastError, RuntimeError):
    """A worker of the {kind} died: {who} {ended}, and its batch is lost. SIGKILL usually means that
    the machine ran out of memory: use fewer workers or a smaller max_queue_size."""


class StateSaved(SystemExit):
    """Ends the script with exit code 75 after a requested stop, once the state is saved.

    It is a `SystemExit`, so that `except Exception` in a script does not catch it.

    Attributes:
        reason: Why the training stops: a signal's name, for example "SIGTERM", or a word like
            "superseded".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(75)
        self.reason = reason
