"""Formats numbers, times and sizes for people. Pure, except for the local time zone."""

from __future__ import annotations

import datetime
import math
import time


def duration(seconds: float) -> str:
    """Return a duration as "0.4 s", "12 s", "3:25", "2:03:25" or "4 d 02:03"."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    hour, minute = divmod(minutes, 60)
    if hour == 0:
        return f"{minute}:{second:02d}"
    day, hour_of_day = divmod(hour, 24)
    if day == 0:
        return f"{hour}:{minute:02d}:{second:02d}"
    return f"{day} d {hour_of_day:02d}:{minute:02d}"


def size(count: float) -> str:
    """Return a number of bytes as "812 B", "3.4 MB", …, in powers of 1000."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} PB"


def count(number: int, what: str) -> str:
    """Return "1 checkpoint", "3 checkpoints"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def number(count: float) -> str:
    """Return a whole number with thousands separators: "1,234,567"."""
    return f"{count:,.0f}"


def metric(value: float) -> str:
    """Return a metric with four significant digits; "nan", "inf" or "-inf" if not finite."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return f"{value:.4g}"


def rate(steps_per_second: float) -> str:
    """Return a speed as "512 steps/s", or as "2.1 s/step" when it is slow."""
    if steps_per_second <= 0 or not math.isfinite(steps_per_second):
        return ""
    if steps_per_second < 1:
        return f"{1 / steps_per_second:.3g} s/step"
    if steps_per_second < 10:
        return f"{steps_per_second:.1f} steps/s"
    return f"{number(steps_per_second)} steps/s"


def when(unix: float) -> str:
    """Return a moment in local time: "2026-03-01 14:05:59"."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def moment(unix: float) -> str:
    """Return a moment as ISO 8601 in UTC: "2026-03-01T13:05:59.123Z"."""
    utc = datetime.datetime.fromtimestamp(unix, datetime.UTC)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local(iso: str) -> str:
    """Return a `moment` in local time, for people."""
    return when(datetime.datetime.fromisoformat(iso).timestamp())
