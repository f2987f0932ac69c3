"""The paths of a job's folder. They are built and parsed here and nowhere else.

Paths are relative to the job's folder and always use "/", on disk and in a bucket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from outlast_checkpoints.errors import InvalidName

SPEC = "spec.json"
MACHINE = "machine.json"  # what of the first attempt's machine decides the numbers
JOURNAL = "journal"
ATTEMPTS = "attempts"
CHECKPOINTS = "checkpoints"
AUDIT = "audit.json"  # in the temporary job of an audit: where its attempt stops
WRITTEN_FILES = "written.json"  # also there: other files that the script opened for writing
COPYING = "copying.json"  # names the job while a copy of it is incomplete; then deleted
SUPERVISOR_OUTPUT = "supervisor.log"  # the output of a detached supervisor
BATCH_SCRIPT = "batch.sh"  # the script that was submitted to a cluster

METRICS_PLOT = "metrics.png"

WEIGHTS_FILE = "model.weights.h5"
STATE_FILE = "state.h5"
MODEL_FILE = "model.json"
MANIFEST_FILE = "manifest.json"
KEPT_FILE = "kept.h5"  # files of the script, as they were

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# ASCII digits only, and at most 18: more than any counter needs.
_CHECKPOINT = re.compile(r"([0-9]{2,18})-([0-9]{12,18})\.([012])-([0-9]{4,18})")
_EVENT = re.compile(r"([0-9]{8,18})\.json")
_ATTEMPT = re.compile(r"[0-9]{4,18}")
_KEPT = re.compile(r"kept-[0-9a-f]{16}\.json")


class Stage(IntEnum):
    """Where between two steps a checkpoint was taken. Orders the checkpoints of one step.

    Attributes:
        STEP: After a step, before the end of an epoch is processed.
        EPOCH: After validation and the epoch-end callbacks.
        END: The phase is finished.
    """

    STEP = 0
    EPOCH = 1
    END = 2


@dataclass(frozen=True, slots=True, order=True)
class CheckpointId:
    """The name of a checkpoint. Names sort by place in the training, then by attempt.

    `str(checkpoint)` is the name of its folder, such as "00-000000001200.0-0003".

    Attributes:
        phase: Index of the `fit` or `Loop` in the script, from 0.
        step: Optimizer updates done in the phase.
        stage: Where between two steps it was taken.
        attempt: The attempt that wrote it, from 1.
    """

    phase: int
    step: int
    stage: Stage
    attempt: int

    @property
    def place(self) -> tuple[int, int, int]:
        """The place in the training: phase, step and stage, without the attempt."""
        return (self.phase, self.step, int(self.stage))

    def __str__(self) -> str:
        return f"{self.phase:02d}-{self.step:012d}.{int(self.stage)}-{self.attempt:04d}"

    @classmethod
    def parse(cls, text: str) -> CheckpointId | None:
        """Parse a folder name. Returns None if it is not the name of a checkpoint."""
        match = _CHECKPOINT.fullmatch(text)
        if match is None:
            return None
        phase, step, stage, attempt = map(int, match.groups())
        found = cls(phase, step, Stage(stage), attempt)
        return found if str(found) == text else None


def is_name(value: str) -> bool:
    """Return whether `value` is safe to use as one path component."""
    return _NAME.fullmatch(value) is not None


def check_name(field: str, value: str) -> str:
    """Return `value` if it is safe to use as one path component, else raise `InvalidName`."""
    if not is_name(value):
        raise InvalidName(field=field, value=value, problem="it cannot be the name of a folder")
    return value


def journal_event(seq: int) -> str:
    """Return the path of one event of the journal."""
    return f"{JOURNAL}/{seq:08d}.json"


def parse_journal_event(name: str) -> int | None:
    """Return the number in a journal file's base name, or None for any other name."""
    match = _EVENT.fullmatch(name)
    if match is None or journal_event(int(match[1])) != f"{JOURNAL}/{name}":
        return None
    return int(match[1])


def kept(digest: str) -> str:
    """Return the file with the first content of a path that the script keeps.

    digest: 16 hex digits that stand for the path.
    """
    return f"kept-{digest}.json"


def is_kept(name: str) -> bool:
    """Return whether `kept` returns this name."""
    return _KEPT.fullmatch(name) is not None


def attempt_dir(attempt: int) -> str:
    """Return the folder of an attempt."""
    return f"{ATTEMPTS}/{attempt:04d}"


def parse_attempt(name: str) -> int | None:
    """Return the number in an attempt folder's base name, or None for any other name."""
    if _ATTEMPT.fullmatch(name) is None or attempt_dir(int(name)) != f"{ATTEMPTS}/{name}":
        return None
    return int(name)


def rank_dir(attempt: int, rank: int) -> str:
    """Return the folder for one process of an attempt; process 0 uses the attempt's own folder."""
    return f"{attempt_dir(attempt)}/rank-{rank:04d}" if rank else attempt_dir(attempt)


def heartbeat(attempt: int, rank: int = 0) -> str:
    """Return the heartbeat file of an attempt."""
    return f"{rank_dir(attempt, rank)}/heartbeat.json"


def deadline(attempt: int) -> str:
    """Return the file with the deadline of an attempt."""
    return f"{attempt_dir(attempt)}/deadline.json"


def stop_note(attempt: int) -> str:
    """Return the file in a spool that asks the supervisor of an attempt to stop."""
    return f"{attempt_dir(attempt)}/stop.json"


def origin(attempt: int) -> str:
    """Return the file that says what an attempt resumed from."""
    return f"{attempt_dir(attempt)}/origin.json"


def left(attempt: int) -> str:
    """Return the file that names the phase which the script left before its end."""
    return f"{attempt_dir(attempt)}/left.json"


def attempt_log(attempt: int, rank: int = 0) -> str:
    """Return the structured log of an attempt."""
    return f"{rank_dir(attempt, rank)}/log.jsonl"


def supervisor_log(attempt: int) -> str:
    """Return the structured log of an attempt's supervisor."""
    return f"{attempt_dir(attempt)}/supervisor.jsonl"


def output_log(attempt: int) -> str:
    """Return the script's stdout and stderr."""
    return f"{attempt_dir(attempt)}/output.log"


def history(attempt: int) -> str:
    """Return the append-only history file of an attempt, for storages that can append."""
    return f"{attempt_dir(attempt)}/history.jsonl"


def history_segment(attempt: int, index: int) -> str:
    """Return one immutable history segment, for storages that cannot append."""
    return f"{attempt_dir(attempt)}/history-{index:08d}.jsonl"


def checkpoint_dir(checkpoint: CheckpointId) -> str:
    """Return the folder of a checkpoint."""
    return f"{CHECKPOINTS}/{checkpoint}"


def checkpoint_file(checkpoint: CheckpointId, name: str) -> str:
    """Return the path of a file in a checkpoint's folder."""
    return f"{checkpoint_dir(checkpoint)}/{name}"


def manifest(checkpoint: CheckpointId) -> str:
    """Return the path of a checkpoint's manifest."""
    return checkpoint_file(checkpoint, MANIFEST_FILE)
