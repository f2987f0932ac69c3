"""The metadata services of three clouds, on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

Trouble = Literal["", "error", "garbage", "hang", "foreign"]


class MetadataServer:
    """A metadata server that behaves like its cloud's. Tests set its answers.

    trouble: "error": status 500, "garbage": nonsense with status 200, "hang": no answer at all,
    "foreign": somebody else's page, as a captive portal shows it. asked: (method, path) of each
    request so far.
    """

    def __init__(self) -> None:
        self.trouble: Trouble = ""
        self.asked: list[tuple[str, str]] = []
        self.changed = threading.Condition()
        self.closing = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def answer(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, str, dict[str, str]]:
        """Return status, text and headers of the answer to a request."""
        raise NotImplementedError

    def say(self, **changes: Any) -> None:
        """Change an answer, and wake the clients that wait for a change."""
        with self.changed:
            for name, value in changes.items():
                assert hasattr(self, name), name
                setattr(self, name, value)
            self.changed.notify_all()

    def until(self, count: int, path: str = "") -> None:
        """Wait until `count` requests with `path` in them have arrived."""
        with self.changed:
            assert self.changed.wait_for(
                lambda: sum(path in asked for _, asked in self.asked) >= count, 60
            ), self.asked

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with server.changed:
                    server.asked.append((self.command, self.path))
                    server.changed.notify_all()
                    if server.trouble == "hang":
                        server.changed.wait_for(lambda: server.closing or not server.trouble)
                        return
                status, text, headers = server.in_trouble() or server.answer(self, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            do_PUT = do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # whoever asked has gone, as a training may

        return Handler

    def in_trouble(self) -> tuple[int, str, dict[str, str]] | None:
        if self.trouble == "error":
            return 500, "Internal Server Error", {}
        if self.trouble == "garbage":
            return 200, "\x00}{ nonsense", {"ETag": "0", "Metadata-Flavor": "Google"}
        if self.trouble == "foreign":
            return 200, "TRUE", {}
        return None

    @contextmanager
    def serving(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self.say(closing=True)
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class GceServer(MetadataServer):
    """Google's: requires its header, and can delay an answer until a value changes."""

    def __init__(self) -> None:
        super().__init__()
        self.preempted = "FALSE"
        self.maintenance = "NONE"
        self.waits = True

    def answer(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, str, dict[str, str]]:
        if request.headers.get("Metadata-Flavor") != "Google":
            return 403, "Your client does not have permission", {}
        url = urlsplit(request.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        key = url.path.removeprefix("/computeMetadata/v1/instance/")
        name = {"preempted": "preempted", "maintenance-event": "maintenance"}.get(key)
        if name is None:
            return 404, "", {}
        with self.changed:
            if asked.get("wait_for_change") == "true" and self.waits:
                self.changed.wait_for(
                    lambda: self.closing or etag(getattr(self, name)) != asked["last_etag"],
                    float(asked["timeout_sec"]),
                )
            value = getattr(self, name)
        return 200, value, {"ETag": etag(value), "Metadata-Flavor": "Google"}


def etag(value: str) -> str:
    return value.encode().hex()[:16]


class AwsServer(MetadataServer):
    """Amazon's: nothing without a token, which has to be fetched with PUT and expires."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0
        self.valid = ""
        self.action = ""
        self.rebalance = ""

    def interrupt(self, action: str = "terminate", within: float = 120.0) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + within))
        self.say(action=json.dumps({"action": action, "time": at}))

    def answer(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, str, dict[str, str]]:
        if (request.command, request.path) == ("PUT", "/latest/api/token"):
            life = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if not (life.isdecimal() and 1 <= int(life) <= 21600):
                return 400, "Bad Request", {}
            self.tokens += 1
            self.valid = f"token-{self.tokens}=="
            return 200, self.valid, {}
        if request.headers.get("X-aws-ec2-metadata-token") != self.valid:
            return 401, "Unauthorized", {}
        said = {
            "/latest/meta-data/spot/instance-action": self.action,
            "/latest/meta-data/events/recommendations/rebalance": self.rebalance,
        }.get(request.path, "")
        return (200, said, {}) if said else (404, "Not Found", {})


class AzureServer(MetadataServer):
    """Azure's: requires its header; StartRequests starts an event at once."""

    def __init__(self, machine: str = "train-0") -> None:
        super().__init__()
        self.machine = machine
        self.events: list[dict[str, Any]] = []
        self.started: list[str] = []

    def schedule(
        self,
        kind: str = "Preempt",
        resources: list[str] | None = None,
        within: float | None = 30.0,
        event_id: str = "f020ba2e-3bc0-4c40-a10b-86575a9eabd5",
    ) -> None:
        event = {
            "EventId": event_id,
            "EventType": kind,
            "ResourceType": "VirtualMachine",
            "Resources": [self.machine] if resources is None else resources,
            "EventStatus": "Scheduled" if within is not None else "Started",
            "NotBefore": "" if within is None else formatdate(time.time() + within, usegmt=True),
            "Description": "",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        }
        self.say(events=[*self.events, event])

    def answer(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, str, dict[str, str]]:
        if request.headers.get("Metadata") != "true":
            return 400, '{"error": "Bad request. Required metadata header not specified"}', {}
        url = urlsplit(request.path)
        version = parse_qs(url.query).get("api-version")
        if url.path == "/metadata/instance/compute/name" and version:
            return 200, self.machine, {}
        if url.path != "/metadata/scheduledevents" or version != ["2020-07-01"]:
            return 400, '{"error": "Bad request"}', {}
        if request.command == "POST":
            started = [one["EventId"] for one in json.loads(body)["StartRequests"]]
            self.say(started=[*self.started, *started])
            return 200, "", {}
        return 200, json.dumps({"DocumentIncarnation": 1, "Events": self.events}), {}
