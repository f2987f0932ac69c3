"""Watches what could grow: memory, descriptors, threads, temporary files, logs; and judges it."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from pathlib import Path

import psutil

WARM_UP = 0.25  # of the time; until then caches fill and lists reach their size
# What may be added without a doubt, as the middle of two thirds of the time is compared.
ALLOWED = {"MB": 6.0, "descriptors": 3.0, "threads": 2.0, "files": 12.0, "B/epoch": 100.0}
SHARE = 0.05  # of the earlier value, likewise


class Watch:
    """Series of what was measured, each of one kind of quantity."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        self._began = time.monotonic()

    def note(self, what: str, kind: str, value: float) -> None:
        self.series[what, kind].append((time.monotonic() - self._began, value))

    def process(self, what: str, pid: int | None) -> None:
        """Note memory, descriptors and threads of a process; nothing when it has gone."""
        if pid is None:
            return
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                found = {
                    "MB": process.memory_info().rss / 2**20,
                    "descriptors": process.num_fds(),
                    "threads": process.num_threads(),
                }
        except psutil.Error:
            return
        for kind, value in found.items():
            self.note(what, kind, value)

    def files(self, what: str, folder: Path) -> None:
        self.note(what, "files", sum(1 for path in folder.rglob("*") if path.is_file()))

    def table(self) -> tuple[list[str], list[str]]:
        """Return the lines of a table, and what grows."""
        lines, growing = [f"{'':34} {'':12} {'first':>9} {'last':>9} {'most':>9}"], []
        for (what, kind), points in sorted(self.series.items()):
            if (found := judge(points, kind)) is None:
                lines.append(f"{what:34} {kind:12} too few values")
                continue
            first, last, grows = found
            most = max(value for _, value in points)
            word = "grows" if grows else "flat"
            lines.append(f"{what:34} {kind:12} {first:9.1f} {last:9.1f} {most:9.1f}  {word}")
            growing += [f"{what}: {kind}"] if grows else []
        return lines, growing


def judge(points: list[tuple[float, float]], kind: str) -> tuple[float, float, bool] | None:
    """Return the medians of two thirds after the warm-up, the first and the last; does it grow?"""
    if not points:
        return None
    end = points[-1][0]
    settled = [value for at, value in points if at >= WARM_UP * end]
    third = len(settled) // 3
    if third < 3:
        return None
    first, last = statistics.median(settled[:third]), statistics.median(settled[-third:])
    return first, last, last - first > max(ALLOWED[kind], SHARE * first)
