"""Prints the last lines, then everything that follows: `-f` with `--lines` or `--tail`."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from outlast_checkpoints.storage.base import Storage

T = TypeVar("T")

POLL = 0.5  # seconds between two looks


def is_final(storage: Storage) -> bool:
    """Return whether the job is in a final state."""
    from outlast.job.journal import Journal

    entry = Journal(storage).newest()
    return entry is None or entry.state.final


def show_last(
    source: Callable[[Callable[[], None]], Iterable[T]],
    lines: int | None,
    show: Callable[[T], None],
) -> None:
    """Show the last existing items, then all new ones.

    Args:
        source: Yields the items. It gets a function that it calls whenever it has yielded
            everything that exists.
        lines: How many existing items to show; None for all.
        show: Shows one item.
    """
    held: deque[T] = deque(maxlen=lines)
    looked = lines is None

    def all_seen() -> None:
        nonlocal looked
        looked = True
        while held:
            show(held.popleft())
        sys.stdout.flush()

    for item in source(all_seen):
        if looked:
            show(item)
        else:
            held.append(item)
    all_seen()
