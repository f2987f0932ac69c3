"""Speed of a training in wall-clock time, including callbacks, validation and saves."""

from __future__ import annotations

from collections import deque

EVERY = 1.0  # seconds between two samples
LOOKS = 12  # samples over which the speed is measured


class Speed:
    """Steps per second over the last seconds. Reads no clock."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=LOOKS)  # when, step

    def note(self, now: float, step: int, steps: int, seconds: float) -> None:
        """Note that `step` is reached.

        Args:
            now: Monotonic seconds.
            step: Steps done in the phase.
            steps: Steps done since the last call.
            seconds: How long these took.
        """
        looks = self._looks
        if not looks:
            looks.append((now - seconds, step - steps))
        if len(looks) < 2 or now - looks[-2][0] >= EVERY:
            looks.append((now, step))
        else:
            looks[-1] = now, step

    @property
    def steps_per_second(self) -> float | None:
        """The speed, or None before the first step."""
        if not self._looks:
            return None
        (began, first), (now, last) = self._looks[0], self._looks[-1]
        return (last - first) / max(now - began, 1e-9)
