"""How long to wait before the next attempt."""

from __future__ import annotations

from tenacity import RetryCallState, wait_exponential_jitter

from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec


def delay(spec: JobSpec, fruitless: int, outcome: Outcome) -> float:
    """Return the seconds to wait after `fruitless` attempts in a row without a new checkpoint.

    Doubles from `backoff` up to `backoff_max`, with up to one `backoff` of jitter so that jobs
    that crashed together do not come back together. After an attempt that came further there is
    nothing to wait for, nor after a preempted one unless it was fruitless before.
    """
    failures = fruitless - 1 if outcome is Outcome.PREEMPTED else fruitless
    if failures <= 0 or spec.backoff == 0:
        return 0.0
    wait = wait_exponential_jitter(
        initial=spec.backoff, max=spec.backoff_max, exp_base=2, jitter=spec.backoff
    )
    state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
    state.attempt_number = failures
    return float(wait(state))
