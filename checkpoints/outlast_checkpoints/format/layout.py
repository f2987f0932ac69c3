"""Every path of a job directory, built and parsed in one place.

Paths are relative to the job's folder and always use "/", on disk as in a bucket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from outlast_checkpoints.errors import InvalidName

SPEC = "spec.json"
JOURNAL = "journal"
ATTEMPTS = "attempts"
CHECKPOINTS = "checkpoints"
COPYING = "copying.json"  # whose copy is on its way here; gone when it is whole
SUPERVISOR_OUTPUT = "supervisor.log"  # what a detached supervisor itself says
BATCH_SCRIPT = "batch.sh"  # what was handed to a cluster

METRICS_PLOT = "metrics.png"

WEIGHTS_FILE = "model.weights.h5"
STATE_FILE = "state.h5"
MODEL_FILE = "model.json"
MANIFEST_FILE = "manifest.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Of digits only ASCII's, and no more than numbers have that count something.
_CHECKPOINT = re.compile(r"([0-9]{2,18})-([0-9]{12,18})\.([012])-([0-9]{4,18})")
_EVENT = re.compile(r"([0-9]{8,18})\.json")
_ATTEMPT = re.compile(r"[0-9]{4,18}")


class Stage(IntEnum):
    """Where between two steps a checkpoint was taken; orders checkpoints of one step."""

    STEP = 0  # after a step, before the epoch's end is worked through
    EPOCH = 1  # after validation and the epoch-end callbacks
    END = 2  # the phase is finished


@dataclass(frozen=True, slots=True, order=True)
class CheckpointId:
    """The name of a checkpoint; ordered by place in the training, then by attempt."""

    phase: int
    step: int
    stage: Stage
    attempt: int

    @property
    def place(self) -> tuple[int, int, int]:
        """The place in the training, whichever attempt reached it."""
        return (self.phase, self.step, int(self.stage))

    def __str__(self) -> str:
        return f"{self.phase:02d}-{self.step:012d}.{int(self.stage)}-{self.attempt:04d}"

    @classmethod
    def parse(cls, text: str) -> CheckpointId | None:
        """Return the id that `text` spells, or None when it is no checkpoint's name."""
        match = _CHECKPOINT.fullmatch(text)
        if match is None:
            return None
        phase, step, stage, attempt = map(int, match.groups())
        found = cls(phase, step, Stage(stage), attempt)
        return found if str(found) == text else None


def is_name(value: str) -> bool:
    """Return whether `value` can safely be one path component."""
    return _NAME.fullmatch(value) is not None


def check_name(field: str, value: str) -> str:
    """Return `value` when it can safely be one path component, else raise `InvalidName`."""
    if not is_name(value):
        raise InvalidName(field=field, value=value, problem="not a name that can be a folder's")
    return value


def journal_event(seq: int) -> str:
    return f"{JOURNAL}/{seq:08d}.json"


def parse_journal_event(name: str) -> int | None:
    """Return the sequence number of a journal file's base name, or None for anything else."""
    match = _EVENT.fullmatch(name)
    if match is None or journal_event(int(match[1])) != f"{JOURNAL}/{name}":
        return None
    return int(match[1])


def attempt_dir(attempt: int) -> str:
    return f"{ATTEMPTS}/{attempt:04d}"


def parse_attempt(name: str) -> int | None:
    if _ATTEMPT.fullmatch(name) is None or attempt_dir(int(name)) != f"{ATTEMPTS}/{name}":
        return None
    return int(name)


def rank_dir(attempt: int, rank: int) -> str:
    """Where one of an attempt's processes writes of itself; the first is the attempt's voice."""
    return f"{attempt_dir(attempt)}/rank-{rank:04d}" if rank else attempt_dir(attempt)


def heartbeat(attempt: int, rank: int = 0) -> str:
    return f"{rank_dir(attempt, rank)}/heartbeat.json"


def departure(attempt: int) -> str:
    return f"{attempt_dir(attempt)}/departure.json"


def origin(attempt: int) -> str:
    return f"{attempt_dir(attempt)}/origin.json"


def attempt_log(attempt: int, rank: int = 0) -> str:
    return f"{rank_dir(attempt, rank)}/log.jsonl"


def supervisor_log(attempt: int) -> str:
    return f"{attempt_dir(attempt)}/supervisor.jsonl"


def output_log(attempt: int) -> str:
    return f"{attempt_dir(attempt)}/output.log"


def history(attempt: int) -> str:
    """The one append-only file of an attempt's history, where the store can append."""
    return f"{attempt_dir(attempt)}/history.jsonl"


def history_segment(attempt: int, index: int) -> str:
    """One immutable piece of an attempt's history, where the store cannot append."""
    return f"{attempt_dir(attempt)}/history-{index:08d}.jsonl"


def checkpoint_dir(checkpoint: CheckpointId) -> str:
    return f"{CHECKPOINTS}/{checkpoint}"


def checkpoint_file(checkpoint: CheckpointId, name: str) -> str:
    return f"{checkpoint_dir(checkpoint)}/{name}"


def manifest(checkpoint: CheckpointId) -> str:
    return checkpoint_file(checkpoint, MANIFEST_FILE)
