"""`Stored`: the checkpoint from which a phase resumes, read and verified but not yet restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from outlast.job.log_events import LogEvent
from outlast.training.errors import PhaseMismatch, StateMismatch, VersionMismatch
from outlast.training.job import TrainingJob
from outlast.training.keras_internals import versions
from outlast.training.state import document, random_state
from outlast.training.state.fingerprint import OF_KERAS, RATE, first_difference, without
from outlast_checkpoints.format.layout import STATE_FILE, CheckpointId
from outlast_checkpoints.format.snapshot import Progress


class Stored:
    """A phase's checkpoint in memory.

    Attributes:
        checkpoint: Name of the checkpoint.
        progress: Progress of the training when it was taken.
        files: Arrays by file name and path.
        plain: Plain data in `state.h5`; see `document`.
        variables: Arrays of variables in `state.h5`, by name.
        written: Versions of Keras and TensorFlow that wrote it, by package, if they differ from
            the installed ones.
    """

    def __init__(self, job: TrainingJob, checkpoint: CheckpointId) -> None:
        loaded = job.load(checkpoint)
        self.checkpoint = str(checkpoint)
        self.progress: Progress = loaded.manifest.progress
        self.files: Mapping[str, Mapping[str, Any]] = loaded.files
        writer, here = loaded.manifest.writer, versions.installed()
        self.written = {
            name: writer[name] for name in here if name in writer and writer[name] != here[name]
        }
        # Under a supervisor the generators are seeded: equal trainings differ in what they draw.
        self._seeded = job.ctx.supervised and self.progress.phase_name is None
        self._drawn: int | None = None
        self.plain, self.variables = document.unpack(
            loaded.files[STATE_FILE], f"{checkpoint}/{STATE_FILE}"
        )

    @classmethod
    def of(cls, job: TrainingJob, phase: int, by: str) -> Stored | None:
        """Return the checkpoint from which the phase resumes, or None if it starts anew.

        `by` is the caller, "fit" or "Loop". Raises `StateMismatch` if the other one wrote it.
        """
        checkpoint = job.checkpoint_of(phase)
        if checkpoint is None:
            return None
        stored = cls(job, checkpoint)
        maker = "Loop" if "state" in stored.plain else "fit"
        if maker != by:
            raise StateMismatch(
                checkpoint=stored.checkpoint,
                what=f"phase {phase}",
                problem=f"{maker} wrote the checkpoint, but the script calls {by}",
            )
        if stored.written:
            job.ctx.log.warning(
                LogEvent.VERSIONS_CHANGED,
                checkpoint=stored.checkpoint,
                written_with=_named(stored.written),
                here=_named(versions.installed()),
                why="another version may round differently; the state is complete, but further "
                "results may differ in their last digits",
            )
        return stored

    @contextmanager
    def naming_versions(self) -> Iterator[None]:
        """Turn `StateMismatch` into `VersionMismatch` if other versions wrote the checkpoint."""
        try:
            yield
        except StateMismatch as error:
            if not self.written:
                raise
            present = {name: versions.installed()[name] for name in self.written}
            raise VersionMismatch(
                **error.fields, written=_named(self.written), present=_named(present)
            ) from error

    def note_seed(self, given: int | None) -> None:
        """Note the seed that this fit would have as a new one, if nothing but it can tell."""
        if given is None and self._seeded:
            self._drawn = random_state.derived_seed()

    def release(self) -> None:
        """Release the arrays, which are in the model now."""
        self.files, self.variables, self.plain = {}, {}, {}

    def is_over(self, job: TrainingJob, epochs: int, *, stopped: bool) -> bool:
        """Return whether the phase has nothing left to train.

        A finished phase continues if `epochs` is higher than before and no later phase has begun.
        """
        if not self.progress.finished:
            return False
        left = self.plain["left"] is not None
        if left or stopped or job.order.later_than(self.progress.phase):
            return True
        return self.progress.epoch >= epochs

    def check_data(self, log: Any, facts: Mapping[str, Any]) -> None:
        """Raise `StateMismatch` if the data changed in the middle of an epoch."""
        stored = self.plain["data"]
        if stored == facts:
            return
        field = next((k for k in facts if stored.get(k) != facts[k]), "kind")
        problem = f"the checkpoint has {stored.get(field)!r}, the script has {facts.get(field)!r}"
        if self.progress.batch > 0:
            raise StateMismatch(checkpoint=self.checkpoint, what=field, problem=problem)
        log.warning(LogEvent.DATA_CHANGED, field=field, difference=problem)

    def check_fingerprint(
        self, log: Any, here: Mapping[str, Any], *, epochs: int, stopped: bool, finished: bool
    ) -> None:
        """Raise `StateMismatch` if the checkpoint belongs to a different training.

        With `finished`, the phase's result is about to be returned, and every difference counts. A
        training that continues may have another learning rate and, at an epoch's border, other data
        and arguments.
        """
        ignored = OF_KERAS if self.written else set()
        stored, here = without(self.plain["fingerprint"], ignored), without(here, ignored)
        if finished:
            self._require_same(stored, here)
            early = stopped or self.plain["left"] is not None
            if self.progress.epochs != epochs and not (early and epochs >= self.progress.epoch):
                self._refuse("epochs", self.progress.epochs, epochs)
            return
        may = {RATE, "arguments", "initial_epoch"}
        found = first_difference(without(stored, may), without(here, may))
        data = first_difference(
            *(without(each.get("arguments", {}), {"initial_epoch"}) for each in (stored, here))
        )
        if found is None and self.progress.batch > 0:
            found = data
        if found is not None:
            problem = _difference(found[1:])
            raise StateMismatch(checkpoint=self.checkpoint, what=found[0], problem=problem)
        if data is not None:
            log.warning(LogEvent.DATA_CHANGED, field=data[0], difference=_difference(data[1:]))

    def _require_same(self, stored: Any, here: Any) -> None:
        found = first_difference(stored, here)
        if found is not None:
            self._refuse(*found)
        if self._drawn not in (None, self.progress.seed):
            self._refuse("seed", self.progress.seed, self._drawn)

    def _refuse(self, what: str, stored: Any, here: Any) -> NoReturn:
        name = self.progress.phase_name
        raise PhaseMismatch(
            checkpoint=self.checkpoint,
            phase=self.progress.phase,
            named="without a name" if name is None else f"named {name!r}",
            maker="Loop" if "state" in self.plain else "fit",
            what=what,
            problem=_difference((stored, here)),
        )


def _difference(values: tuple[Any, Any]) -> str:
    return f"the checkpoint has {values[0]!r}, the script has {values[1]!r}"


def _named(packages: Mapping[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in packages.items())


def choose_seed(stored: Stored | None, given: int | None) -> int:
    """Return the phase's data seed: the stored one, the given one, or one derived from Python's.

    Raises `StateMismatch` if the given seed differs from the stored one.
    """
    known = stored.progress.seed if stored is not None else None
    if stored is not None:
        stored.note_seed(given)
    if stored is None or known is None:
        return random_state.derived_seed() if given is None else given
    if given is not None and given != known:
        problem = f"the checkpoint has {known}, the script has {given}"
        raise StateMismatch(checkpoint=stored.checkpoint, what="seed", problem=problem)
    return known
