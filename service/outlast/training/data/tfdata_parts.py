"""`Parts`: what a pass over a tf.data pipeline draws and caches, and when.

A shuffle draws the seed of its order from a counter that lives as long as the dataset, each time
that it is opened. Datasets made from one shuffle share its counter. A cache behind a shuffle keeps
the order of the pass that filled it. So a resume must open each shuffle as often as before, and
fill each cache in the same pass.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import Any, Final

import tensorflow as tf

from outlast.training.data.tfdata_ops import OPS, Opens, kind_of
from outlast.training.keras_internals import pipelines

_filled: weakref.WeakSet[Any] = weakref.WeakSet()
"""Caches in memory that a pass of this process has filled."""

_ORDER: Final = [Opens.AT_ONCE, Opens.FIRST, Opens.LATER]


@dataclass(frozen=True)
class Draw:
    """A part that draws a seed in each pass, once per path through the pipeline.

    part: the shuffle, or None if a function makes it. opens: when it draws. caches: the caches that
    stand between it and the pipeline's end.
    """

    part: Any
    opens: Opens
    caches: tuple[Any, ...]


class Parts:
    """The parts of a dataset.

    Attributes:
        all: All parts, each once, from the pipeline's end to its sources.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self.all: list[Any] = []
        self.draws: list[Draw] = []
        self._above: dict[int, tuple[Any, ...]] = {}  # the caches above a part
        self._drained: list[Any] = []  # caches that a pass reads to their end
        self._walk(dataset, Opens.AT_ONCE, (), drained=True)

    def draws_within(self, part: Any) -> None:
        """Note that a function of `part` opens a shuffle."""
        self.draws.append(Draw(None, Opens.LATER, self._above[id(part)]))

    @property
    def must_be_read(self) -> bool:
        """Whether a pass must be read, not only opened, to leave the same state behind."""
        return any(
            draw.opens is Opens.LATER or draw.caches for draw in self.draws if not _is_past(draw)
        )

    def begin(self) -> None:
        """Draw what a pass draws for its first element, without reading one."""
        for draw in self.draws:
            if draw.opens is Opens.FIRST and not _is_past(draw):
                iter(draw.part)

    def end(self, iterator: Any) -> None:
        """Read over the end of a pass, so that the caches it has filled are complete for certain.

        Keras reads no further than the last batch; a cache ends with the read after it, which
        TensorFlow makes ahead of time, in a thread.
        """
        filling = {c for d in self.draws for c in d.caches if not _is_filled(c)}
        if not filling:
            return
        try:
            next(iterator)
        except (StopIteration, tf.errors.OpError):
            _filled.update(c for c in self._drained if c in filling)

    def cache_files(self) -> list[str]:
        """Return the path prefixes of the caches in files."""
        files = (pipelines.cache_file_of(p) for p in self.all if _kind(p) == "cache")
        return [name for name in files if name]

    def shared_later(self, other: Parts) -> list[str]:
        """Return the kinds of parts that both pipelines draw from, and one at a time of its own."""
        mine = {id(draw.part): draw for draw in self.draws if draw.part is not None}
        both = [(mine[id(d.part)], d) for d in other.draws if id(d.part) in mine]
        return sorted(
            {_kind(one.part) for one, two in both if Opens.LATER in (one.opens, two.opens)}
        )

    def read_past_a_file(self, other: Parts) -> bool:
        """Return whether a shuffle feeds a cache in a file, and is also read past that cache."""
        by_part: dict[int, list[tuple[Any, ...]]] = {}
        for draw in [*self.draws, *other.draws]:
            by_part.setdefault(id(draw.part), []).append(draw.caches)
        return any(
            cache not in others
            for above in by_part.values()
            for cache in {cache for caches in above for cache in caches}
            for others in above
            if pipelines.cache_file_of(cache)
        )

    def _walk(self, part: Any, opens: Opens, caches: tuple[Any, ...], *, drained: bool) -> None:
        kind = _kind(part)
        if id(part) not in self._above:
            self.all.append(part)
            self._above[id(part)] = caches
        if pipelines.draws_anew(part):
            own = Opens.LATER if kind == "shuffleandrepeat" else opens
            self.draws.append(Draw(part, own, caches))
        if kind == "cache":
            caches = (*caches, part)
            if drained and part not in self._drained:
                self._drained.append(part)
        op = OPS.get(kind)
        below = Opens.LATER if op is None else op.opens
        if kind == "repeat" and pipelines.count_of(part) == 1:
            below = Opens.AT_ONCE
        inputs = pipelines.inputs_of(part)
        for i, one in enumerate(inputs):
            when = Opens.LATER if kind == "concatenate" and i else below
            later = max(when, opens, key=_ORDER.index)
            self._walk(one, later, caches, drained=drained and op is not None and op.drains)


def remove_stale_locks(files: list[str], before: float) -> list[str]:
    """Remove the lock files of caches that an attempt left when it was killed.

    `before` is a time in seconds since the epoch: a newer lock is left alone. Returns the paths.
    """
    removed = []
    for prefix in files:
        for path in tf.io.gfile.glob(f"{prefix}_*.lockfile"):
            if tf.io.gfile.stat(path).mtime_nsec / 1e9 < before:
                tf.io.gfile.remove(path)
                removed.append(os.fspath(path))
    return removed


def _kind(part: Any) -> str:
    return kind_of(type(part).__name__)


def _is_past(draw: Draw) -> bool:
    """Return whether a filled cache keeps the part from being opened."""
    return any(_is_filled(cache) for cache in draw.caches)


def _is_filled(cache: Any) -> bool:
    file = pipelines.cache_file_of(cache)
    return tf.io.gfile.exists(f"{file}.index") if file else cache in _filled
