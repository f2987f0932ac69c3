"""How an attempt ended, judged from its exit code, its signal and its last heartbeat. Pure."""

from __future__ import annotations

import signal as signals
from enum import StrEnum
from typing import Final

from outlast import exit_codes


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    """The script ran to its end."""
    REJECTED = "rejected"
    """The attempt could not start: bad spec, or the script cannot be imported. Not retried."""
    PREEMPTED = "preempted"
    """The attempt was asked to leave and saved its state. Retried without using up budget."""
    STOPPED = "stopped"
    """A user stopped or interrupted the attempt."""
    CRASHED = "crashed"
    """The script failed, or a signal such as SIGSEGV ended the process."""
    KILLED = "killed"
    """SIGKILL from outside ended the process; it may have run out of memory."""
    STALLED = "stalled"
    """The attempt made no progress within the stall timeout."""
    LOST = "lost"
    """The process is gone, and nobody saw how it ended."""
    DIVERGED = "diverged"
    """The loss became NaN, or the data is damaged. Not retried."""
    ROLLED_BACK = "rolled-back"
    """The loss became NaN, and the job continues before that. Retried without using up budget."""
    REWOUND = "rewound"
    """The attempt trained nothing: a user made the job continue from another checkpoint."""


FATAL: Final = frozenset({Outcome.REJECTED, Outcome.DIVERGED})
FREE: Final = frozenset({Outcome.PREEMPTED, Outcome.ROLLED_BACK})

_BY_CODE: Final = {
    exit_codes.DONE: (Outcome.COMPLETED, "the script ran to its end"),
    exit_codes.USAGE: (Outcome.REJECTED, "wrong arguments (exit code 2)"),
    exit_codes.REJECTED: (Outcome.REJECTED, "it cannot be started (exit code 3)"),
    exit_codes.DIVERGED: (Outcome.DIVERGED, "diverged, or its data is damaged (exit code 65)"),
    exit_codes.NO_CHECKPOINT: (Outcome.REJECTED, "its checkpoint is missing (exit code 66)"),
    exit_codes.STORAGE_FAILED: (Outcome.CRASHED, "storage failed (exit code 74)"),
    exit_codes.RESUMABLE: (Outcome.PREEMPTED, "asked to leave, state saved"),
    exit_codes.INTERRUPTED: (Outcome.STOPPED, "interrupted"),
}


def judge(code: int | None, signum: int | None, error: str | None) -> tuple[Outcome, str]:
    """Return the outcome and the reason of an attempt that ended without the supervisor's doing.

    Args:
        code: Exit code of the process. None with `signum` None: nobody saw how it ended.
        signum: Signal that ended the process.
        error: Error that the attempt's last heartbeat reports.
    """
    if signum is not None:
        return _judge_signal(signum, error)
    if code is None:
        return Outcome.LOST, error or "the process is gone, and nobody saw how it ended"
    outcome, reason = _BY_CODE.get(code, (Outcome.CRASHED, f"exit code {code}"))
    return outcome, reason if code == exit_codes.DONE else (error or reason)


def _judge_signal(signum: int, error: str | None) -> tuple[Outcome, str]:
    try:
        name = signals.Signals(signum).name
    except ValueError:
        name = f"signal {signum}"
    if signum == signals.SIGKILL:
        return Outcome.KILLED, "killed by SIGKILL, perhaps out of memory"
    if signum in (signals.SIGTERM, signals.SIGINT, signals.SIGHUP):
        return Outcome.PREEMPTED, f"ended by {name} before it could save"
    known = {
        signals.SIGSEGV: "segmentation fault",
        signals.SIGBUS: "bus error",
        signals.SIGABRT: "abort",
        signals.SIGFPE: "arithmetic fault",
        signals.SIGILL: "illegal instruction",
    }
    what = known.get(signum, "killed")  # type: ignore[call-overload]
    return Outcome.CRASHED, f"{what} ({name})" + (f": {error}" if error else "")
