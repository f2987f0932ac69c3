"""The delay before the next attempt."""

from __future__ import annotations

import random

from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec

MOST_DOUBLINGS = 64  # because more would overflow


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
    doublings = min(failures - 1, MOST_DOUBLINGS)
    jitter = random.uniform(0.0, spec.backoff)  # nosec B311  # no secret
    wait = spec.backoff * 2.0**doublings + jitter
    return min(wait, spec.backoff_max)
