"""The delay before the next attempt."""

from __future__ import annotations

from tenacity import RetryCallState, wait_exponential_jitter

from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec


def delay(spec: JobSpec, fruitless: int, outcome: Outcome) -> float:
    """Return the seconds to wait before the next attempt.

    The delay doubles from `backoff` to `backoff_max`, with up to one `backoff` of jitter, so that
    jobs that crashed together do not restart together. It is 0 after an attempt that advanced, and
    after a preempted attempt unless earlier ones were fruitless too.

    Args:
        spec: Spec of the job.
        fruitless: Consecutive attempts without a new checkpoint.
        outcome: Outcome of the last attempt.
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
