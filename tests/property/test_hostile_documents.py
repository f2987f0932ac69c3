"""Hostile documents end in one of our errors or a documented skip, never in a crash.

Tested are garbage, changed bytes, other types, endless numbers, endless nesting, and oversized
files.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outlast.job import heartbeat, listing, logs, spec
from outlast.job.events import Claimed, Launched, Started, Submitted
from outlast.job.heartbeat import Beat
from outlast.job.journal import Journal
from outlast.job.process_identity import Identity
from outlast.job.spec import JobSpec
from outlast.job.submission import load_spec
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.format.sealed_json import checksum
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot

ME = Identity(host="a", pid=1, boot_id="x", start=1)
HUGE = 3 << 30  # bytes of a sparse file

# What nobody expects to find: of other types, too large for what takes it, of no number at all.
VALUES: list[Any] = [
    None, True, -1, 10**400, 2**64, 1.5, math.nan, "x", "", "\ud800", [], {}, [1], {"a": [[1]]},
]  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> Iterator[Storage]:
    """A job with one of each document."""
    memory = Path("/dev/shm")  # thousands of changes, and none of them has to last
    folder = tempfile.mkdtemp(dir=memory if memory.is_dir() else None)
    storage = open_storage(Path(folder) / "job")
    storage.create(layout.SPEC, spec.encode(JobSpec(job="job", script="train.py", seed=1)))
    journal = Journal(storage)
    for event in (
        Submitted(),
        Claimed(attempt=1, owner=ME),
        Launched(attempt=1),
        Started(attempt=1),
    ):
        journal.append(event)
    storage.replace(layout.heartbeat(1), msgspec.json.encode(Beat(attempt=1, pid=1, host="a")))
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    history = HistoryWriter(storage, 1)
    for step in (1, 2):
        history.append({"kind": "step", "phase": 0, "step": step, "logs": {"loss": 0.5}})
    history.close()
    store.save(sample_snapshot(2), reason="step", history=HistoryMark(1, history.mark().mark))
    storage.replace(layout.attempt_log(1), b'{"time":1,"level":"info","event":"x"}\n')
    yield storage
    shutil.rmtree(folder)


PATHS = {
    "spec": lambda storage: layout.SPEC,
    "event": lambda storage: layout.journal_event(3),
    "heartbeat": lambda storage: layout.heartbeat(1),
    "origin": lambda storage: layout.origin(1),
    "manifest": lambda storage: layout.manifest(CheckpointStore(storage).ids()[0]),
    "history": lambda storage: layout.history(1),
    "log": lambda storage: layout.attempt_log(1),
}


def readings(storage: Storage, what: str) -> list[Callable[[], Any]]:
    """Return every way to read a document."""
    root = open_storage(Path(storage.root).parent)
    reader = CheckpointStore(storage)
    histories = [
        lambda: list(HistoryReader(storage).rows()),
        lambda: list(HistoryReader(storage).columns()),
        lambda: HistoryReader(storage).tail(3, "step"),
    ]
    stores = [
        lambda: reader.latest(verify=False),
        lambda: [reader.verify(found) for found in reader.ids()],
        lambda: CheckpointStore(storage, attempt=2).latest(),
    ]
    return {
        "spec": [lambda: load_spec(storage)],
        "event": [
            lambda: Journal(storage).job(),
            lambda: Journal(storage).newest(),
            lambda: listing.listed(root),
        ],
        "heartbeat": [lambda: heartbeat.read(storage, 1), lambda: listing.listed(root)],
        "origin": [*stores, *histories],
        "manifest": [*stores, histories[2]],
        "history": histories,
        "log": [lambda: [logs.render(row) for row in logs.read(storage)]],
    }[what]


def look(storage: Storage, what: str) -> None:
    """Read a document in every way. Only our errors may be raised."""
    for reading in readings(storage, what):
        with suppress(OutlastError):
            reading()


@contextmanager
def changed(storage: Storage, path: str, content: bytes) -> Iterator[None]:
    before = storage.read(path)
    storage.replace(path, content, durable=False)
    try:
        yield
    finally:
        storage.replace(path, before, durable=False)


def sealed(body: bytes) -> bytes:
    return b'{"checksum":"' + checksum(body).encode() + b'","body":' + body + b"}"


def body_of(path: str, content: bytes) -> Any:
    """Return a document's body, sealed or not."""
    found = json.loads(content.splitlines()[0] if path.endswith(".jsonl") else content)
    return found["body"] if "checksum" in found else found


def written(path: str, content: bytes, body: bytes) -> bytes:
    """Return the document with another body, sealed if it was sealed."""
    if content.startswith(b'{"checksum"'):
        return sealed(body)
    return body + b"\n" + content if path.endswith(".jsonl") else body


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*at, index))


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = put(value[at[0]], at[1:], new)
    return copy


@pytest.mark.parametrize("what", sorted(PATHS))
def test_other_values_in_a_document(whole: Storage, what: str) -> None:
    """Well-formed, correctly sealed documents with other values."""
    path = PATHS[what](whole)
    content = whole.read(path)
    body = body_of(path, content)
    for at in places(body):
        for value in VALUES:
            text = json.dumps(put(body, at, value)).encode()
            with changed(whole, path, written(path, content, text)):
                look(whole, what)


@pytest.mark.parametrize("what", sorted(PATHS))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_changed_bytes_and_garbage(whole: Storage, what: str, data: st.DataObject) -> None:
    path = PATHS[what](whole)
    content = bytearray(whole.read(path))
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 30)))
    content[start:end] = data.draw(st.binary(max_size=30))
    with changed(whole, path, bytes(content)):
        look(whole, what)


DEEP = [
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b"[" * 200_000 + b"]" * 200_000,
    b'{"format":1,"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
]


@pytest.mark.parametrize("what", sorted(PATHS))
@pytest.mark.parametrize("deep", range(len(DEEP)))
def test_nesting_without_end(whole: Storage, what: str, deep: int) -> None:
    path = PATHS[what](whole)
    content = whole.read(path)
    with changed(whole, path, written(path, content, DEEP[deep])):
        look(whole, what)


@pytest.mark.parametrize("what", sorted(PATHS))
def test_nesting_where_anything_may_stand(whole: Storage, what: str) -> None:
    path = PATHS[what](whole)
    content = whole.read(path)
    body = json.dumps(body_of(path, content)).encode()
    deep = b"[" * 5_000 + b"]" * 5_000
    free = (b'"handle": {}', b'"engine_options": {}', b'"metrics": {}', b'"logs": {"loss": 0.5}')
    for old in free:
        name = old.partition(b":")[0]
        if old in body:
            text = body.replace(old, name + b': {"a": ' + deep + b"}")
            with changed(whole, path, written(path, content, text)):
                look(whole, what)


@pytest.mark.parametrize("what", ["spec", "event", "heartbeat", "origin", "manifest"])
def test_a_document_of_gigabytes_is_not_read(whole: Storage, what: str) -> None:
    """It is refused by its size: reading it would exhaust the memory."""
    path = PATHS[what](whole)
    local = whole.local_path(path)
    assert local is not None
    with changed(whole, path, b"{"):
        os.truncate(local, HUGE)
        taken = memory()
        look(whole, what)
        assert memory() - taken < 200 << 20


def memory() -> int:
    """Return the peak memory of this process so far, in bytes."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) << 10
