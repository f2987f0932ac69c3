"""Exit codes are protocol: between attempt and supervisor, and between `outlast` and the shell."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
FAILED: Final = 1  # the script raised, or the job failed
USAGE: Final = 2  # bad options or arguments; also what argparse exits with
REJECTED: Final = 3  # bad spec, script missing or not importable: no use in trying again
JOB_UNKNOWN: Final = 4
JOB_BUSY: Final = 5  # somebody else has the job
DIVERGED: Final = 65  # NaN, or data that is damaged: no use in trying again
NO_CHECKPOINT: Final = 66
STORAGE_FAILED: Final = 74
RESUMABLE: Final = 75  # state saved, to be resumed (preempted or stopped)
SUPERSEDED: Final = 76  # a newer attempt has the job
INTERRUPTED: Final = 130  # at once, by a second Ctrl-C

MEANINGS: Final[dict[int, str]] = {
    DONE: "done",
    FAILED: "the script or the job failed",
    USAGE: "usage error",
    REJECTED: "rejected: bad spec, or the script cannot be imported",
    JOB_UNKNOWN: "there is no such job",
    JOB_BUSY: "somebody else has the job",
    DIVERGED: "diverged (NaN), or data is damaged",
    NO_CHECKPOINT: "there is no such checkpoint",
    STORAGE_FAILED: "storage failed",
    RESUMABLE: "state saved, to be resumed",
    SUPERSEDED: "superseded by a newer attempt",
    INTERRUPTED: "interrupted at once",
}
