"""`LoadedCheckpoint`: the checkpoint from which a phase resumes, verified but not yet restored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from outlast.job.log_events import LogEvent
from outlast.training.call_site import CallSite
from outlast.training.errors import (
    CheckpointTooOld,
    DataMismatch,
    PhaseMismatch,
    StateMismatch,
    VersionMismatch,
)
from outlast.training.job import TrainingJob
from outlast.training.keras_internals import versions
from outlast.training.state import document, random_state
from outlast.training.state.fingerprint import OF_KERAS, RATE, first_difference, without
from outlast_checkpoints.format.layout import STATE_FILE, CheckpointId
from outlast_checkpoints.format.snapshot import Progress

ACCEPT_OTHER_DATA: Final = "OUTLAST_ACCEPT_OTHER_DATA"
# What a document must have. A key that comes later gets a default where it is read instead.
_NEEDED: Final = frozenset(
    {
        *("called", "contents", "data", "doubts", "drawn", "feed", "fingerprint", "generators"),
        *("left", "logs"),
    }
)
_NEEDED_BY_FIT: Final = frozenset(
    {
        *("callbacks", "epoch_begun", "epoch_trained", "hook_effects", "model", "objects"),
        *("parts", "program", "stop_training", "training_logs", "validation"),
    }
)
_NEEDED_BY_LOOP: Final = frozenset(
    {"begun", "epochs", "epochs_of", "history", "means", "state", "stopped", "trained"}
)


class LoadedCheckpoint:
    """A phase's checkpoint in memory.

    Attributes:
        checkpoint: Name of the checkpoint.
        progress: Progress of the training when it was taken.
        files: Arrays by file name and path.
        plain: Plain data in `state.h5`; see `document`.
        variables: Arrays of variables in `state.h5`, by name.
        written: Versions of Keras, TensorFlow, NumPy and Python that wrote it, by name, if they
            differ from the installed ones.
        strict: Whether a training that continues must be the same in every respect.
    """

    def __init__(self, job: TrainingJob, checkpoint: CheckpointId) -> None:
        loaded = job.load(checkpoint)
        self.checkpoint = str(checkpoint)
        self.progress: Progress = loaded.manifest.progress
        self.files: Mapping[str, Mapping[str, Any]] = loaded.files
        writer, here = loaded.manifest.writer, versions.recorded()
        self.written = {
            name: writer[name] for name in here if name in writer and writer[name] != here[name]
        }
        # Under a supervisor the generators are seeded: equal trainings differ in what they draw.
        self._seeded = job.ctx.supervised and self.progress.phase_name is None
        self._drawn: int | None = None
        self.strict = False
        self.plain, self.variables = document.unpack(
            loaded.files[STATE_FILE], f"{checkpoint}/{STATE_FILE}"
        )
        needed = _NEEDED | (_NEEDED_BY_LOOP if "state" in self.plain else _NEEDED_BY_FIT)
        if missing := sorted(needed - self.plain.keys()):
            raise CheckpointTooOld(
                checkpoint=self.checkpoint,
                written=writer.get("outlast", "of an unknown version"),
                missing=", ".join(missing),
            )

    @classmethod
    def of(cls, job: TrainingJob, phase: int, by: str) -> LoadedCheckpoint | None:
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
            job.reporter.log.warning(
                LogEvent.VERSIONS_CHANGED,
                checkpoint=stored.checkpoint,
                written_with=_named(stored.written),
                here=_named({name: versions.recorded()[name] for name in stored.written}),
                why="another version may round differently; the state is complete, but further "
                "results may differ in their last digits",
            )
        return stored

    @property
    def stopped(self) -> bool:
        """Whether the training ended early, by `stop_training` or `stop`."""
        return bool(self.plain["stopped" if "state" in self.plain else "stop_training"])

    @contextmanager
    def naming_versions(self) -> Iterator[None]:
        """Turn `StateMismatch` into `VersionMismatch` if other versions wrote the checkpoint."""
        try:
            yield
        except StateMismatch as error:
            present = {n: v for n, v in versions.installed().items() if n in self.written}
            if not present:  # nothing else decides what variables a model has
                raise
            written = {name: self.written[name] for name in present}
            raise VersionMismatch(
                **error.fields, written=_named(written), present=_named(present)
            ) from error

    def note_seed(self, given: int | None) -> None:
        """Note the seed that this fit would have as a new one, if nothing but it can tell."""
        if given is None and self._seeded:
            self._drawn = random_state.derived_seed()

    def release(self) -> None:
        """Release the arrays, which are in the model now."""
        self.files, self.variables, self.plain = {}, {}, {}

    def is_over(self, job: TrainingJob, epochs: int) -> bool:
        """Return whether the phase has nothing left to train.

        A finished phase continues if `epochs` is higher than before and no later phase has begun.
        """
        if not self.progress.finished:
            return False
        left = self.plain["left"] is not None
        if left or self.stopped or job.order.later_than(self.progress.phase):
            return True
        return self.progress.epoch >= epochs

    def check_data(self, log: Any, facts: Mapping[str, Any]) -> None:
        """Raise `StateMismatch` if the data changed in the middle of an epoch."""
        stored = self.plain["data"]
        if stored == facts:
            return
        field = next((k for k in facts if stored.get(k) != facts[k]), "kind")
        problem = f"the checkpoint has {stored.get(field)!r}, the script has {facts.get(field)!r}"
        self._data_differs(log, field, problem)

    def check_contents(
        self, log: Any, contents: Mapping[str, Any], drawn: Mapping[str, Any]
    ) -> None:
        """Raise `DataMismatch` if tf.data changed in the middle of an epoch. Log other seeds."""
        found = first_difference(self.plain["contents"], contents)
        other = first_difference(self.plain["drawn"], drawn)
        if found is not None:
            self._data_differs(log, f"contents, {found[0]}", _difference(found[1:]))
        elif other is not None and other[1] is not None:
            log.warning(
                LogEvent.DATA_CHANGED,
                field=other[0],
                difference="its seeds or first batches are not those of the checkpoint: the data "
                "has changed, or each process draws it anew",
                instead="seed what draws it, for example with keras.utils.set_random_seed at the "
                "top of the script",
            )

    def _data_differs(self, log: Any, field: str, problem: str) -> None:
        """Refuse other data within an epoch, unless the variable allows it. Log it otherwise."""
        if self.progress.batch > 0 and os.environ.get(ACCEPT_OTHER_DATA) != "1":
            raise DataMismatch(
                checkpoint=self.checkpoint, what=field, problem=problem, variable=ACCEPT_OTHER_DATA
            )
        log.warning(LogEvent.DATA_CHANGED, field=field, difference=problem)

    def is_other(self, here: Mapping[str, Any]) -> bool:
        """Return whether the checkpoint is that of a different training."""
        return first_difference(self.plain["fingerprint"], here) is not None

    def mismatch(
        self,
        here: Mapping[str, Any],
        site: CallSite,
        contents: Callable[[], Mapping[str, Any]],
        *,
        epochs: int,
    ) -> PhaseMismatch | None:
        """Return why the finished phase is not this call's; `None` if it is.

        Every difference counts. `contents` returns digests of tf.data pipelines; it takes time.
        """
        ignored = OF_KERAS if self.written else set()
        stored, here = without(self.plain["fingerprint"], ignored), without(here, ignored)
        found = first_difference(stored, here)
        if found is not None:
            return self._other(*found)
        other = None if self.progress.phase_name else site.difference(self.plain["called"])
        if other is not None:
            return self._other(*other)
        if self._drawn not in (None, self.progress.seed):
            return self._other("seed", self.progress.seed, self._drawn)
        early = self.stopped or self.plain["left"] is not None
        if self.progress.epochs != epochs and not (early and epochs >= self.progress.epoch):
            return self._other("epochs", self.progress.epochs, epochs)
        known = {name: one for name, one in self.plain["contents"].items() if one is not None}
        if known and not self.written:
            digests = contents()
            found = first_difference(known, {name: digests.get(name) for name in known})
        return None if found is None else self._other(f"contents, {found[0]}", *found[1:])

    def check_fingerprint(self, log: Any, here: Mapping[str, Any]) -> None:
        """Raise `StateMismatch` if the unfinished phase belongs to a different training.

        Unless it is `strict`, it may have another learning rate and, at an epoch's border, other
        data and arguments.
        """
        ignored = OF_KERAS if self.written else set()
        stored, here = without(self.plain["fingerprint"], ignored), without(here, ignored)
        may: set[str] = set() if self.strict else {RATE, "arguments", "initial_epoch"}
        found = first_difference(without(stored, may), without(here, may))
        data = first_difference(
            *(without(each.get("arguments", {}), {"initial_epoch"}) for each in (stored, here))
        )
        if found is not None:
            problem = _difference(found[1:])
            raise StateMismatch(checkpoint=self.checkpoint, what=found[0], problem=problem)
        if data is not None:
            self._data_differs(log, f"arguments, {data[0]}", _difference(data[1:]))

    def _other(self, what: str, stored: Any, here: Any) -> PhaseMismatch:
        name = self.progress.phase_name
        return PhaseMismatch(
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


def choose_seed(stored: LoadedCheckpoint | None, given: int | None) -> int:
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
