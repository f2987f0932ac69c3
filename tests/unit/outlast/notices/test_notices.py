"""Preemption notices of clouds, read from servers that behave like theirs."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from outlast.notices import aws, azure, base, detect, gce, last_to_leave
from outlast.notices.base import Cloud, Notice, Unanswered
from outlast.notices.listener import Listener, watch
from outlast.notices.metadata_server import Metadata
from tests.support.metadata_servers import AwsServer, AzureServer, GceServer, MetadataServer

Server = TypeVar("Server", bound=MetadataServer)
Serve = Callable[[Server], Server]
Told = tuple[str, Mapping[str, Any]]
PATIENCE = 60.0


@pytest.fixture
def serve() -> Iterator[Serve[Any]]:
    with ExitStack() as stack:

        def serve(server: MetadataServer) -> MetadataServer:
            stack.enter_context(server.serving())
            return server

        yield serve


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no other training of this machine be in the way of the last one that leaves."""
    monkeypatch.setattr(last_to_leave, "_FOLDER", tmp_path)


class Listening:
    """A listener, and what it has told."""

    def __init__(self, cloud: Cloud) -> None:
        self.notices: queue.Queue[Notice] = queue.Queue()
        self.told: queue.Queue[Told] = queue.Queue()
        self.listener = Listener(
            cloud, self.notices.put, lambda event, fields: self.told.put((event, fields))
        )

    def __enter__(self) -> Listening:
        self.listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.stop()

    def notice(self) -> Notice:
        return self.notices.get(timeout=PATIENCE)

    def events(self) -> list[str]:
        return [self.told.get()[0] for _ in range(self.told.qsize())]


def test_every_user_of_a_machine_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_to_leave, "_FOLDER", tmp_path)
    before = os.umask(0o077)
    try:
        first = last_to_leave.take_part()
    finally:
        os.umask(before)
    (lock,) = tmp_path.iterdir()
    assert lock.stat().st_mode & 0o777 == 0o644  # another user can open it for reading
    lock.chmod(0o444)
    second = last_to_leave.take_part()
    assert None not in (first, second)
    assert not last_to_leave.last_to_leave(first)
    assert last_to_leave.last_to_leave(second)


# --- Google ---------------------------------------------------------------------------------------


def test_gce_reports_a_preemption_immediately(serve: Serve[GceServer]) -> None:
    server = serve(GceServer())
    with Listening(gce.Gce({"GCE_METADATA_HOST": server.host})) as listening:
        server.until(2, "instance/preempted")  # it waits for news now
        started = time.monotonic()
        server.say(preempted="TRUE")
        notice = listening.notice()
    assert time.monotonic() - started < gce.WAIT
    assert (notice.cloud, notice.within) == ("gce", 30.0)
    assert notice.description.startswith("gce: the machine is preempted, by 20")
    waiting = [path for _, path in server.asked if "wait_for_change=true" in path]
    assert waiting
    assert "last_etag=" in waiting[0]
    assert listening.events() == []


def test_gce_reports_a_preemption_that_came_before_the_first_request(
    serve: Serve[GceServer],
) -> None:
    server = serve(GceServer())
    server.say(preempted="TRUE")
    notice = gce.Gce({"OUTLAST_METADATA_URL": server.url}).look(lambda *_: None)
    assert notice is not None
    assert len(server.asked) == 1


def test_gce_logs_a_migration_and_acts_on_a_termination(serve: Serve[GceServer]) -> None:
    server = serve(GceServer())
    server.waits = False  # a server that answers at once is not asked all the time
    told: list[Told] = []
    cloud = gce.Gce({"OUTLAST_METADATA_URL": server.url})
    server.say(maintenance="MIGRATE_ON_HOST_MAINTENANCE")
    for _ in range(3):
        assert cloud.look(lambda event, fields: told.append((event, fields))) is None
    assert cloud.pause == 1.0
    assert [event for event, _ in told] == ["host_maintenance_announced"]  # once
    server.say(maintenance="TERMINATE_ON_HOST_MAINTENANCE")
    notice = cloud.look(lambda *_: None)
    assert notice is not None
    assert notice.within == 60.0


def test_an_answer_without_the_header_of_gce_is_rejected(serve: Serve[GceServer]) -> None:
    server = serve(GceServer())
    cloud = gce.Gce({"OUTLAST_METADATA_URL": server.url})
    cloud._server = Metadata(server.url)  # as somebody would ask who is not of this machine
    with pytest.raises(Unanswered, match="status 403"):
        cloud.look(lambda *_: None)
    server.say(trouble="foreign")  # somebody's portal says "TRUE" to everything
    with pytest.raises(Unanswered):
        gce.Gce({"OUTLAST_METADATA_URL": server.url}).look(lambda *_: None)


# --- Amazon ---------------------------------------------------------------------------------------


def test_aws_needs_a_token_and_fetches_a_new_one_when_it_expires(serve: Serve[AwsServer]) -> None:
    server = serve(AwsServer())
    cloud = aws.Aws({"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url})
    for _ in range(2):
        assert cloud.look(lambda *_: None) is None  # 404 is: nothing is going to happen
    assert server.tokens == 1
    server.valid = "another"
    assert cloud.look(lambda *_: None) is None
    assert server.tokens == 2
    server.interrupt(within=90)
    notice = cloud.look(lambda *_: None)
    assert notice is not None
    assert notice.within is not None
    assert 80 < notice.within <= 90
    assert notice.why == "the spot instance will terminate"


def test_aws_logs_a_recommendation_and_a_hibernation_once(
    serve: Serve[AwsServer],
) -> None:
    server = serve(AwsServer())
    told: list[Told] = []
    cloud = aws.Aws({"OUTLAST_METADATA_URL": server.url})
    server.say(rebalance='{"noticeTime": "2026-01-01T00:00:00Z"}')
    server.interrupt("hibernate", within=0)
    for _ in range(2):
        assert cloud.look(lambda event, fields: told.append((event, fields))) is None
    assert sorted(event for event, _ in told) == ["rebalance_recommended", "spot_action_announced"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"action": "stop", "time": "1970-01-01T00:02:00Z"}', 60.0),
        ('{"action": "stop", "time": "1970-01-01T00:02:00"}', 60.0),
        ('{"action": "stop", "time": "1970-01-01T00:00:00Z"}', 0.0),
        ('{"action": "stop", "time": "1971-01-01T00:00:00Z"}', 120.0),  # this clock is off
    ],
)
def test_aws_notices_have_their_deadline(text: str, left: float) -> None:
    assert aws.parse_action(text, now=60.0) == ("stop", left)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '{"action": "stop"}', '{"action": "stop", "time": "soon"}', "{" * 99]
)
def test_malformed_answers_of_aws_are_no_notice(text: str) -> None:
    with pytest.raises(Unanswered):
        aws.parse_action(text, now=0.0)


# --- Azure ----------------------------------------------------------------------------------------


def test_azure_acts_on_events_of_this_machine_and_acknowledges_them(
    serve: Serve[AzureServer],
) -> None:
    server = serve(AzureServer("train-0"))
    told: list[Told] = []

    def look() -> Notice | None:
        return cloud.look(lambda event, fields: told.append((event, fields)))

    cloud = azure.Azure({"OUTLAST_METADATA_URL": server.url})
    assert look() is None
    server.schedule("Preempt", ["train-1"], event_id="other")  # all of a group are told
    server.schedule("Freeze", event_id="freeze")
    assert (look(), look()) == (None, None)
    assert [event for event, _ in told] == ["event_scheduled"]
    server.schedule("Preempt", ["_TRAIN-0"], within=30, event_id="mine")
    notice = look()
    assert notice is not None
    assert notice.within is not None
    assert 20 < notice.within <= 30
    assert server.started == []
    assert cloud.acknowledge()
    assert server.started == ["mine"]


def test_azure_is_not_acknowledged_while_other_machines_are_affected(
    serve: Serve[AzureServer],
) -> None:
    server = serve(AzureServer())
    one, two = (azure.Azure({"OUTLAST_METADATA_URL": server.url}) for _ in range(2))
    server.schedule(event_id="both")
    assert one.look(lambda *_: None) is not None
    assert two.look(lambda *_: None) is not None
    assert not one.acknowledge()  # the other training has not saved yet
    assert server.started == []
    assert two.acknowledge()
    assert server.started == ["both"]
    server.say(events=[])
    server.schedule(resources=["train-0", "train-1"], event_id="several")
    three = azure.Azure({"OUTLAST_METADATA_URL": server.url})
    assert three.look(lambda *_: None) is not None
    assert not three.acknowledge()
    assert server.started == ["both"]


def test_azure_events_without_time_or_name_count(serve: Serve[AzureServer]) -> None:
    server = serve(AzureServer(machine=""))
    server.schedule("Terminate", ["train-7"], within=None)
    notice = azure.Azure({"OUTLAST_METADATA_URL": server.url}).look(lambda *_: None)
    assert notice is not None
    assert (notice.within, notice.deadline) == (None, None)
    assert notice.description == "azure: the machine is deleted"


@pytest.mark.parametrize("text", ["", "[]", '{"Events": 3}', '{"Events": [{"EventType": "x"}]}'])
def test_malformed_answers_of_azure_are_no_notice(text: str) -> None:
    with pytest.raises(Unanswered):
        azure.parse_events(text)


def test_an_event_of_azure_with_odd_times() -> None:
    text = '{"Events": [{"EventId": "1", "EventType": "Reboot", "NotBefore": null}]}'
    event = azure.parse_events(text)[0]
    assert event.within(0.0) is None
    assert event.affects("anybody")
    later = azure.Event(event_id="1", event_type="x", not_before="Thu, 01 Jan 1970 00:01:00 GMT")
    assert (later.within(20.0), later.within(90.0)) == (40.0, 0.0)


# --- servers that do not do as they should --------------------------------------------------------


@pytest.mark.parametrize("kind", [GceServer, AwsServer, AzureServer])
def test_a_failing_server_is_retried_and_logged_once(
    kind: type[MetadataServer], serve: Serve[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outlast.notices.listener.LONGEST", 0.02)
    server = serve(kind())
    server.say(trouble="error")
    cloud = detect.CLOUDS[{GceServer: "gce", AwsServer: "aws", AzureServer: "azure"}[kind]](
        {"OUTLAST_METADATA_URL": server.url}
    )
    cloud.pause = 0.02
    with Listening(cloud) as listening:
        server.until(3)
        server.say(trouble="garbage")
        server.until(len(server.asked) + 3)
        assert listening.notices.empty()
        match server:
            case GceServer():
                server.say(trouble="", preempted="TRUE")
            case AwsServer():
                server.say(trouble="")
                server.interrupt()
            case AzureServer():
                server.say(trouble="")
                server.schedule()
        assert listening.notice().cloud == cloud.name
    assert listening.events() == ["metadata_failed"]


def test_a_hanging_server_blocks_nothing(serve: Serve[GceServer]) -> None:
    server = serve(GceServer())
    server.say(trouble="hang")
    with pytest.raises(Unanswered, match=r"[Tt]ime"):
        Metadata(server.url).ask("anything", timeout=0.1)
    with Listening(gce.Gce({"OUTLAST_METADATA_URL": server.url})) as listening:
        server.until(2)
    assert listening.listener._thread.is_alive()  # it is still waiting: to stop did not
    assert listening.notices.empty()


def test_a_missing_server_or_invalid_address_is_survived() -> None:
    for url in ("http://127.0.0.1:1", "http://", "http://[::1", "http://127.0.0.1:none"):
        with pytest.raises(Unanswered):
            gce.Gce({"OUTLAST_METADATA_URL": url}).look(lambda *_: None)


def test_proxies_and_redirects_are_ignored(
    serve: Serve[AwsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(AwsServer())
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert aws.Aws({"OUTLAST_METADATA_URL": server.url}).look(lambda *_: None) is None


# --- where this is --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("firmware", "cloud"),
    [
        ({"product_name": "Google Compute Engine", "sys_vendor": "Google"}, "gce"),
        ({"sys_vendor": "Amazon EC2", "product_name": "g5.xlarge"}, "aws"),
        ({"sys_vendor": "Xen", "bios_version": "4.11.amazon"}, "aws"),
        (
            {
                "sys_vendor": "Microsoft Corporation",
                "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
            },
            "azure",
        ),
        ({"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "1234"}, None),  # Hyper-V
        ({"sys_vendor": "QEMU", "product_name": "Standard PC"}, None),
        ({}, None),
    ],
)
def test_the_firmware_names_the_cloud(
    firmware: dict[str, str], cloud: str | None, tmp_path: Path
) -> None:
    for name, said in firmware.items():
        (tmp_path / name).write_text(f"{said}\n")
    assert detect.found_in(tmp_path) == cloud
    chosen = detect.choose("auto", tmp_path)
    assert (None if chosen is None else chosen.name) == cloud


def test_without_a_cloud_nothing_is_requested(
    tmp_path: Path, serve: Serve[GceServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(GceServer())
    monkeypatch.setenv("OUTLAST_METADATA_URL", server.url)
    told: list[str] = []
    before = threading.active_count()
    for choice in ("none", "auto"):
        monkeypatch.setattr(detect.choose, "__defaults__", (tmp_path,))
        assert watch(choice, lambda _: None, lambda event, _: told.append(event)) is None
    assert (told, server.asked, threading.active_count()) == ([], [], before)


# --- how long is left -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("within", "grace", "limit", "time_to_leave"),
    [
        (30.0, 30.0, False, 28.0),  # a reserve is left for the supervisor's own end
        (30.0, 120.0, True, 28.0),
        (120.0, 30.0, False, 118.0),  # prolonged
        (120.0, 30.0, True, 30.0),  # --grace was given
        (1.0, 30.0, False, 0.0),
        (None, 30.0, False, 30.0),
    ],
)
def test_the_time_to_leave(
    within: float | None, grace: float, limit: bool, time_to_leave: float
) -> None:
    notice = Notice("x", "y", within, heard_at=100.0, deadline=None)
    assert notice.time_to_leave(100.0, grace, limit=limit) == time_to_leave
    if within is not None:
        assert notice.left(101.0) == max(0.0, within - base.RESERVE - 1.0)
