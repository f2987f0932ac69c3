"""`PhaseExit`: how the script leaves a phase, at its end, or earlier by an error or `break`."""

from __future__ import annotations

from collections.abc import Callable

from outlast.training.job import TrainingJob
from outlast.training.phase import Phase
from outlast.training.state import raised_error
from outlast.training.state.raised_error import Plain


class PhaseExit:
    """Tells the job how one phase ends.

    Attributes:
        began: Whether a checkpoint represents the state of the training.
        left: How the script left the phase before its end, as plain data for the checkpoint, or
            `None` if it did not.
    """

    def __init__(self, job: TrainingJob) -> None:
        self.began = False
        self.left: Plain | None = None
        self._job = job
        self._index: int | None = None
        self._ended = False
        self._record: Callable[[], None] | None = None

    def enter(self, index: int) -> None:
        """Note which phase this is."""
        self._index = index

    def begin(self) -> None:
        """Note that the first checkpoint is about to be saved."""
        assert self._index is not None
        self.began = True
        self._job.order.begun(self._index)

    def end(self) -> None:
        """Note that the phase is finished."""
        assert self._index is not None
        self.began = self._ended = True
        self._job.order.end(self._index)

    def repeat(self, left: Plain | None) -> None:
        """End the phase as an earlier attempt did. Raises the error that left it, if any."""
        self.end()
        if left not in (None, raised_error.BREAK):
            assert left is not None
            assert self._index is not None
            raise raised_error.rebuild(left, self._index)

    def hold(self, phase: Phase, epoch: int, left: Plain | None) -> None:
        """Hold the state at which the script leaves, which is saved if the script continues."""
        self.left = left
        if left is not None:
            self._record = phase.ending(epoch)

    def note(self, error: BaseException) -> None:
        """Tell the job which error left the phase; the script may catch it.

        Does nothing if the phase is over.
        """
        if self._index is None:
            return
        if not self.began:
            self._job.withdraw_phase(self._index)
        elif self._ended:
            return
        elif not isinstance(error, GeneratorExit):
            why = type(error).__name__
            self._job.leave_phase(self._index, why, error=error, record=self._record)
        else:
            why = "`break`" if self._record is not None else "an error in the loop's body"
            self._job.leave_phase(self._index, why, record=self._record)
