"""An outage of the storage: few retries, nothing lost, order kept."""

from __future__ import annotations

import pytest

from outlast.job.heartbeat import Beat, Watch
from outlast.supervisor.storage_outage import StorageOutage
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage.retry_budget import BRIEF, seconds


class Store:
    """Takes words, while it is there."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0
        self.said: list[str] = []
        self.now = 0.0
        self.outage = StorageOutage(lambda: self.now)

    def take(self, word: str) -> None:
        self.asked += 1
        assert seconds() == BRIEF
        if self.away:
            raise StorageError(action="take", path=word, reason="nobody there")
        self.said.append(word)

    def pass_time(self, until: float) -> None:
        while self.now < until:
            self.now += 0.25
            self.outage.catch_up()


def test_events_that_cannot_be_written_are_written_later_in_order() -> None:
    store = Store()
    store.outage.do(lambda: store.take("one"))
    store.away = True
    store.now = 7.0
    store.outage.do(lambda: store.take("two"))
    store.outage.do(lambda: store.take("three"))
    assert store.said == ["one"]
    assert (store.outage.waiting, store.outage.since) == (True, 7.0)
    assert "nobody there" in str(store.outage.error)
    store.pass_time(100.0)
    assert 5 < store.asked < 25  # at first soon, then more seldom
    store.away = False
    store.pass_time(120.0)
    assert store.said == ["one", "two", "three"]
    assert (store.outage.waiting, store.outage.since, store.outage.error) == (False, None, None)


def test_a_failed_read_is_not_repeated_before_it_is_due() -> None:
    store = Store()
    store.away = True
    assert not store.outage.ask(lambda: store.take("a"))
    assert not store.outage.due
    assert not store.outage.ask(lambda: store.take("b"))
    assert store.asked == 1
    store.away = False
    store.now += 1.0
    assert store.outage.ask(lambda: store.take("c"))
    assert store.said == ["c"]
    assert store.outage.since is None


def test_a_readable_storage_is_still_away_for_writes() -> None:
    store = Store()
    store.away = True
    store.outage.do(lambda: store.take("event"))
    store.now += 1.0
    assert store.outage.ask(lambda: None)
    assert store.outage.since == 0.0


def test_other_errors_are_raised_immediately() -> None:
    store = Store()

    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.outage.do(broken)
    assert not store.outage.waiting


def test_an_action_may_add_further_actions() -> None:
    store = Store()

    def first() -> None:
        store.take("first")
        store.outage.do(lambda: store.take("second"))

    store.outage.do(first)
    assert store.said == ["first", "second"]


def test_time_without_reads_is_not_counted_as_silence() -> None:
    watch = Watch(0.0)
    beat = Beat(attempt=1, count=1, progress=1)
    watch.observe(beat, 1.0)
    for now in (2.0, 50.0, 101.0):
        watch.unseen(now)
    assert watch.observe(beat, 103.0) == (2.0, 2.0)
    assert watch.observe(beat, 110.0) == (9.0, 9.0)
