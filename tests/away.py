"""A store elsewhere, for tests: a folder that looks like a bucket, and can be away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from checkpoints.errors import StorageError
from checkpoints.storage import Capabilities, Storage, join, open_storage
from checkpoints.testing import FaultyStorage


class Bucket(FaultyStorage):
    """A storage that is not on this machine, as far as anybody can see.

    away: while it is set every call fails, as when the network is down. on_call: called before
    each call with its operation and path. hang: while it is set calls do not come back.
    """

    def __init__(self, inner: Storage, faults: str = "") -> None:
        super().__init__(inner, faults)
        self.away = False
        self.on_call: Callable[[str, str], None] = lambda operation, path: None
        self.answers = threading.Event()
        self.answers.set()

    @classmethod
    def at(cls, folder: Path, faults: str = "") -> Bucket:
        return cls(open_storage(folder), faults)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exclusive_create=True, append=False, local=False, in_process=False)

    def local_path(self, path: str) -> Path | None:
        return None

    def link(self, source: str, path: str) -> bool:
        return False

    def _enter(self, operation: str, path: str) -> str | None:
        self.on_call(operation, path)
        assert self.answers.wait(60)
        if self.away and not self.dead:
            self.calls.append((operation, path))
            raise StorageError(action=operation, path=join(self.root, path), reason="nobody there")
        return super()._enter(operation, path)
