"""Each request of a save, a claim, a history flush and a restore is broken once, on real servers.

It ends in success or in an error that says what failed, and the same deed done again succeeds, with
exactly one commit. Each call is a single try here: what a store's own patience makes good is seen
at the end.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from outlast.errors import InvalidTransition
from outlast.job.events import Claimed, Submitted
from outlast.job.journal import Journal
from outlast.job.process_identity import Identity
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage, s3_parts
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.retry_budget import patience
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot
from tests.support.fault_proxy import DONE, NOT_DONE, FaultProxy
from tests.support.object_stores import ObjectStore

pytestmark = pytest.mark.crash

ME = Identity(host="a", pid=1, boot_id="x", start=1)
SLOW = 0.3  # seconds; the client's patience with an answer


@dataclass
class Network:
    """A store behind a proxy. open: returns a new folder in it, with client options."""

    proxy: FaultProxy
    open: Callable[..., Storage]
    meant: frozenset[str] = frozenset()  # faults that are true answers there


@pytest.fixture(scope="module", params=["moto"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    store: ObjectStore = request.getfixturevalue(request.param)
    port = re.search(r"127\.0\.0\.1:(\d+)", str(store.environment))
    assert port is not None
    options: dict[str, Any] = {
        "moto": {"config_kwargs": {"read_timeout": SLOW}},
        "azurite": {"read_timeout": SLOW},
        "gcs": {"timeout": SLOW},
    }[request.param]
    with FaultProxy(int(port[1]), slow=3 * SLOW) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value.replace(port[0], f"127.0.0.1:{proxy.port}"))
        # Azure's 409 says that the file exists; that of S3 says that a request met another one.
        meant = frozenset({"409"} if request.param == "azurite" else ())
        open_folder = lambda **given: open_storage(store.folder(), **given or options)  # noqa: E731
        yield Network(proxy, open_folder, meant)


def tried(deed: Callable[[], object]) -> bool:
    """Run a deed without retries; return whether it succeeded. Only our errors may be raised."""
    with patience(0):
        try:
            deed()
        except StorageError:
            return False
        return True


WRITING = (NOT_DONE, DONE)
READING = ((*NOT_DONE, *DONE),)  # whether the server has heard of it makes no difference


def each_request(
    network: Network,
    deed: Callable[[str, int], bool],
    least: int,
    kinds: Iterable[Sequence[str]] = WRITING,
) -> None:
    """Run a deed once for each of its requests, with that request broken.

    kinds: each request meets one fault of each of these, in turn all that there are.
    """
    failed = 0
    for at in range(1, 99):
        spoiled = []
        kinds = [[fault for fault in kind if fault not in network.meant] for kind in kinds]
        faults = [kind[at % len(kind)] for kind in kinds]
        for fault in (*faults, *(["slow"] if at % 5 == 1 else [])):
            failed += not deed(fault, at)
            spoiled.append(network.proxy.spoiled)
        if spoiled[0] is None:
            break
    print(f"{at - 1} requests, {failed} failed deeds")
    assert at > least
    assert failed > 0


EACH = pytest.mark.parametrize("network", ["moto", "azurite", "gcs"], indirect=True)


@EACH
def test_a_save(network: Network) -> None:
    storage = network.open()
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    steps = iter(range(1, 999))

    def save(fault: str, at: int) -> bool:
        snapshot = sample_snapshot(next(steps), numbers=2)
        with network.proxy.fault(fault, at):
            done = tried(lambda: store.save(snapshot, reason="step"))
        if at % 2:
            network.proxy.deliver()
        made = store.save(snapshot, reason="step")
        network.proxy.deliver()
        place = CheckpointId(0, snapshot.progress.step, Stage.STEP, 1)
        assert made.id == place
        assert CheckpointStore(storage).verify(place) == [], (fault, network.proxy.spoiled)
        return done

    each_request(network, save, 8)
    assert len(store.ids()) == next(steps) - 1
    assert store.orphans() == []


@EACH
def test_a_claim(network: Network) -> None:
    def claim(fault: str, at: int) -> bool:
        storage = network.open()
        Journal(storage).append(Submitted())
        journal = Journal(storage)
        with network.proxy.fault(fault, at):
            done = tried(lambda: journal.append(Claimed(attempt=1, owner=ME)))
        if at % 2:
            network.proxy.deliver()
        if not done:
            journal.append(Claimed(attempt=1, owner=ME))
        network.proxy.deliver()
        events = [entry.event for entry in Journal(storage).read()]
        assert events == [Submitted(), Claimed(attempt=1, owner=ME)], network.proxy.spoiled
        with pytest.raises(InvalidTransition):
            journal.append(Claimed(attempt=1, owner=ME))
        return done

    each_request(network, claim, 2)


@EACH
def test_a_flush_of_history(network: Network) -> None:
    storage = network.open()
    CheckpointStore(storage, attempt=1).begin()
    history = HistoryWriter(storage, 1)
    steps = iter(range(1, 999))

    def flush(fault: str, at: int) -> bool:
        history.append({"kind": "step", "phase": 0, "step": next(steps)})
        with network.proxy.fault(fault, at):
            done = tried(history.sync)
        if at % 2:
            network.proxy.deliver()
        history.append({"kind": "step", "phase": 0, "step": next(steps)})
        history.sync()
        network.proxy.deliver()
        found = [row["step"] for row in HistoryReader(storage).rows()]
        assert found == list(range(1, len(found) + 1)), (fault, network.proxy.spoiled)
        return done

    each_request(network, flush, 1)
    assert len(list(HistoryReader(storage).rows())) == next(steps) - 1


@EACH
def test_a_restore(network: Network) -> None:
    storage = network.open()
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    store.save(sample_snapshot(2, numbers=2), reason="step")
    want = sample_snapshot(2, numbers=2).files["state.h5"].arrays["rng/key"].tobytes()

    def restore(fault: str, at: int) -> bool:
        mine = CheckpointStore(storage, attempt=2)
        found = []

        def begin() -> None:
            manifest, damages = mine.begin()
            assert manifest is not None
            assert damages == [], "what is out of reach is not damaged"
            found.append(mine.load(manifest.id))

        with network.proxy.fault(fault, at):
            done = tried(begin)
        if at % 2:
            network.proxy.deliver()
        if not done:
            begin()
        network.proxy.deliver()
        assert found[0].manifest.progress.step == 2, (fault, network.proxy.spoiled)
        assert found[0].files["state.h5"]["rng/key"].tobytes() == want
        storage.delete_tree("attempts/0002")  # each begins as the first that resumes
        return done

    each_request(network, restore, 8, READING)


@EACH
def test_a_broken_request_is_retried(network: Network) -> None:
    """With the usual retries a single failure is never visible, whichever request it hits."""
    storage = network.open()
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    for at, fault in enumerate([*NOT_DONE, *DONE], 1):
        with network.proxy.fault(fault, at + 3):
            made = store.save(sample_snapshot(at, numbers=2), reason="step")
        assert network.proxy.spoiled is not None
        network.proxy.deliver()
        assert store.verify(made.id) == []


def test_only_the_failed_part_of_a_large_file_is_sent_again(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_parts, "PART_SIZE", 5 << 20)
    storage = network.open(config_kwargs={"read_timeout": 60})  # a part takes its time
    content = random.Random(1).randbytes((10 << 20) + 3)
    names = map(str, itertools.count())

    def parts(fault: str = "", at: int = 0) -> list[int]:
        """Upload a file; return which requests sent a part."""
        path = next(names)
        with network.proxy.fault(fault, at), storage.stage(path) as local:
            local.write_bytes(content)
        sent = [at for at, told in enumerate(network.proxy.told, 1) if "partNumber=" in told]
        network.proxy.deliver()
        assert storage.read(path) == content, (fault, network.proxy.spoiled)
        return sent

    parts()  # the first of all also asks what the store can do
    whole = parts()
    assert len(whole) == 3
    for at in whole:
        for fault in ("drop", "500", "503", *DONE):
            # The tag of a part may stand in the half of an answer that arrives.
            tries = (3, 4) if fault == "half" else (4,)
            assert len(parts(fault, at)) in tries, (fault, at)


def test_only_the_failed_part_of_a_large_file_is_read_again(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_parts, "PART_SIZE", 5 << 20)
    storage = network.open(config_kwargs={"read_timeout": 60})
    content = random.Random(2).randbytes((10 << 20) + 3)
    storage.create("file", content)

    def parts(fault: str = "", at: int = 0) -> int:
        """Read the file; return how many requests that took."""
        buffer = memoryview(bytearray(len(content)))
        with network.proxy.fault(fault, at):
            assert storage.read_into("file", buffer) == len(content)
        network.proxy.deliver()
        assert buffer == content, (fault, network.proxy.spoiled)
        return len(network.proxy.told)

    assert parts() == 3
    for at in (1, 2, 3):
        for fault in ("drop", "500", "503", *DONE):
            assert parts(fault, at) == 4, (fault, at)


@EACH
def test_a_spurious_precondition_failure_commits_nothing_twice(network: Network) -> None:
    """A refusal is checked by reading: another writer may not exist."""
    storage = network.open()
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    with network.proxy.fault("", 0):
        store.save(sample_snapshot(1, numbers=2), reason="step")
    puts = [at for at, told in enumerate(network.proxy.told, 1) if told.startswith("PUT")]
    for step, at in enumerate(puts, 2):
        snapshot = sample_snapshot(step, numbers=2)
        with network.proxy.fault("412", at):
            tried(lambda snapshot=snapshot: store.save(snapshot, reason="step"))
        made = store.save(snapshot, reason="step")
        assert CheckpointStore(storage).verify(made.id) == []
    assert len(store.ids()) == 1 + len(puts)
