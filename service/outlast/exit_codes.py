"""The exit codes of `outlast` and of training processes."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
FAILED: Final = 1  # the script raised an error, or the job failed
USAGE: Final = 2  # bad options or arguments; argparse uses it too
REJECTED: Final = 3  # bad spec, script missing or not importable, or job not trusted: not retried
JOB_UNKNOWN: Final = 4
JOB_BUSY: Final = 5  # another process has the job
DIVERGED: Final = 65  # NaN, damaged data, or data that no holder of the key wrote: not retried
NO_CHECKPOINT: Final = 66
NOT_EXACT: Final = 67  # an audit found a difference
STORAGE_FAILED: Final = 74
RESUMABLE: Final = 75  # state saved, can be resumed (preempted or stopped)
SUPERSEDED: Final = 76  # a newer attempt has the job
INTERRUPTED: Final = 130  # killed by a second Ctrl-C

MEANINGS: Final[dict[int, str]] = {
    DONE: "done",
    FAILED: "the script or the job failed",
    USAGE: "usage error",
    REJECTED: "rejected: bad spec, the script cannot be imported, or the job is not trusted",
    JOB_UNKNOWN: "no such job",
    JOB_BUSY: "another process has the job",
    DIVERGED: "diverged (NaN), or data is damaged or not authentic",
    NO_CHECKPOINT: "no such checkpoint",
    NOT_EXACT: "an audit found a difference",
    STORAGE_FAILED: "storage failed",
    RESUMABLE: "state saved, can be resumed",
    SUPERSEDED: "superseded by a newer attempt",
    INTERRUPTED: "killed on request",
}
