"""Saves in child processes that a test kills or traces: `python saver.py`.

Reads one JSON line a child from stdin ({"folder", "deed", "socket"}), forks, and answers with one
JSON line when the child has ended. Everything was imported before the fork, so all that a child
does to the disk is the deed. A child connects to `socket`, says "ready", waits for "go" and
reports there, by `sendto`, a call that no test tampers with.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from outlast.job.events import Claimed, Ended, Launched, Released, Started
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.process_identity import here
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.crash.example import row, snapshot

PR_SET_PTRACER = 0x59616D61
PR_SET_PDEATHSIG = 1
SIGKILL = 9

Step = Callable[[], Any]
Steps = Iterator[tuple[str, Step]]


def save(folder: str, steps: Sequence[int] = (3, 4), *, frozen: bool = False) -> Steps:
    """As attempt 2, resume from attempt 1, save two steps and prune, like the training's writer."""
    storage = open_storage(folder)
    store = CheckpointStore(storage, attempt=2)
    history = HistoryWriter(storage, 2)
    keep = Keep(last=1)

    resumed: list[Any] = []
    yield "begin", lambda: resumed.append(store.begin()[0])
    done = resumed[0].progress.step if resumed[0] else 0
    for step in steps:
        for missing in range(done + 1, step + 1):
            history.append(row(missing))
        done = step
        mark = history.mark()
        commit = partial(store.save, snapshot(step, frozen=frozen), reason="step", history=mark)
        yield f"sync {step}", partial(history.sync, mark)
        yield f"save {step}", commit
        yield f"prune {step}", partial(store.prune, keep)
    yield "close", history.close


def events(folder: str) -> Steps:
    """Record that attempt 1 ended, then claim and start attempt 2."""
    journal = Journal(open_storage(folder))
    ended = Ended(attempt=1, outcome=Outcome.PREEMPTED, reason="test", exit_code=75)
    planned = [
        ended,
        Released(reason="test"),
        Claimed(attempt=2, owner=here()),
        Launched(attempt=2),
        Started(attempt=2),
    ]
    for event in planned:
        yield type(event).__name__, partial(journal.append, event)


DEEDS: dict[str, Callable[[str], Steps]] = {
    "save": save,
    # The first save is whole, the second one has what did not change in a file of its own, and the
    # third one links that.
    "tune": partial(save, steps=(3, 4, 5), frozen=True),
    "events": events,
}


def child(folder: str, deed: str, address: str) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL)
    libc.prctl(PR_SET_PTRACER, -1)  # where only parents may trace: anybody may trace this one
    wire = socket.socket(socket.AF_UNIX)  # closed by the kernel: a close would be a call
    wire.connect(address)
    wire.send(json.dumps({"pid": os.getpid()}).encode())
    wire.recv(16)
    failed = []
    steps = DEEDS[deed](folder)
    name, do = next(steps)
    while True:
        try:
            do()
            name, do = next(steps)
        except StopIteration:
            break
        except OutlastError as error:
            failed.append({"step": name, "kind": type(error).__name__, "text": str(error)})
            if len(failed) > 3:
                break
        except BaseException:  # noqa: BLE001  (told to the test, which fails)
            failed.append({"step": name, "kind": "bug", "text": traceback.format_exc()})
            break
    wire.send(json.dumps({"failed": failed}).encode())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:  # what is imported late is imported here
        for _, do in save(folder):
            do()
        store = CheckpointStore(open_storage(folder))
        assert store.verify(store.ids()[-1]) == []
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(**wanted)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
