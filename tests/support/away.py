"""Unreachable storages: a folder that poses as a bucket, and a server port that can be cut."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Capabilities, Storage, join
from outlast_checkpoints.testing import FaultyStorage


class Bucket(FaultyStorage):
    """A storage that poses as one on another machine.

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


class Cable:
    """A forwarded port of a local server. While it is cut, nothing answers."""

    def __init__(self, port: int) -> None:
        self._server = port
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.mend()

    def cut(self) -> None:
        """Break open connections and refuse new ones."""
        with self._lock:
            listener, self._listener = self._listener, None
            broken, self._sockets = self._sockets, set()
        for one in [listener, *broken]:
            if one is not None:
                with suppress(OSError):  # it may be closed already
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def mend(self) -> None:
        """Accept connections again, at the same port."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._listen, args=(listener,), daemon=True).start()

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                if self._listener is not listener:
                    return
                continue
            with self._lock:
                if self._listener is not listener:
                    near.close()
                    far.close()
                    return
                self._sockets |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
            with self._lock:
                self._sockets.discard(one)
