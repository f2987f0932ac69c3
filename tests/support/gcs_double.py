"""A small double of Google Cloud Storage: the part of its JSON API that our storage uses.

Objects have generations and writes honour `ifGenerationMatch`, which the public emulators leave
out. Uploads are multipart or resumable, downloads take ranges, listings prefix and delimiter and
come in pages. There are no versions, no metadata of one's own and no accounts.
"""

from __future__ import annotations

import base64
import datetime
import email.parser
import email.policy
import hashlib
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 1000
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)")
_LISTING = re.compile(r"/storage/v1/b/([^/]+)/o")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


@dataclass(frozen=True)
class Stored:
    data: bytes
    generation: int
    updated: datetime.datetime = field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC), compare=False
    )


@dataclass
class Upload:
    """A resumable upload that is not finished."""

    bucket: str
    name: str
    condition: str | None
    data: bytearray = field(default_factory=bytearray)


class Refused(Exception):
    """An error answer of the service."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Buckets:
    """The stored objects. Every method is atomic, as in the service."""

    def __init__(self, names: list[str]) -> None:
        self._buckets: dict[str, dict[str, Stored]] = {name: {} for name in names}
        self._generations = itertools.count(1_700_000_000_000_000)
        self._lock = threading.Lock()

    def put(self, bucket: str, name: str, data: bytes, condition: str | None) -> Stored:
        with self._lock:
            there = self._bucket(bucket)
            if condition is not None:
                generation = there[name].generation if name in there else 0
                if generation != int(condition):
                    raise Refused(412, "At least one of the pre-conditions did not hold.")
            there[name] = Stored(data, next(self._generations))
            return there[name]

    def get(self, bucket: str, name: str) -> Stored:
        with self._lock:
            return self._found(bucket, name)

    def delete(self, bucket: str, name: str) -> None:
        with self._lock:
            self._found(bucket, name)
            del self._bucket(bucket)[name]

    def names(self, bucket: str) -> list[tuple[str, Stored]]:
        with self._lock:
            return sorted(self._bucket(bucket).items())

    def _bucket(self, bucket: str) -> dict[str, Stored]:
        if bucket not in self._buckets:
            raise Refused(404, "The specified bucket does not exist.")
        return self._buckets[bucket]

    def _found(self, bucket: str, name: str) -> Stored:
        there = self._bucket(bucket)
        if name not in there:
            raise Refused(404, f"No such object: {bucket}/{name}")
        return there[name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    server: Server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._post)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _answer(self, act: Any) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            act(url.path, query, body)
        except Refused as refused:
            error = {"code": refused.status, "message": str(refused)}
            self._send(refused.status, json.dumps({"error": error}).encode())

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _get(self, path: str, query: dict[str, str], body: bytes) -> None:
        if match := _OBJECT.fullmatch(path):
            bucket, name = map(unquote, match.groups())
            found = self.server.buckets.get(bucket, name)
            if query.get("alt") == "media":
                self._send_content(found)
            else:
                self._send(200, _described(bucket, name, found))
        elif match := _LISTING.fullmatch(path):
            self._send(200, self._listing(unquote(match[1]), query))
        else:
            raise Refused(404, f"This double knows no {path}")

    def _send_content(self, found: Stored) -> None:
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None:
            self._send(200, found.data)
            return
        start = int(match[1])
        end = min(int(match[2]) + 1 if match[2] else len(found.data), len(found.data))
        if start >= len(found.data):
            raise Refused(416, "Request range not satisfiable")
        about = f"bytes {start}-{end - 1}/{len(found.data)}"
        self._send(206, found.data[start:end], Content_Range=about)

    def _listing(self, bucket: str, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, bytes | None] = {}  # a prefix has no content
        for name, stored in self.server.buckets.names(bucket):
            if not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                entries[prefix + rest.partition(delimiter)[0] + delimiter] = None
            else:
                entries[name] = _described(bucket, name, stored)
        after = query.get("pageToken", "")
        names = sorted(name for name in entries if name > after)
        page = names[: min(int(query.get("maxResults", PAGE)), PAGE)]
        answer: dict[str, Any] = {"kind": "storage#objects"}
        if found := [json.loads(item) for name in page if (item := entries[name]) is not None]:
            answer["items"] = found
        if prefixes := [name for name in page if entries[name] is None]:
            answer["prefixes"] = prefixes
        if len(page) < len(names):
            answer["nextPageToken"] = page[-1]
        return json.dumps(answer).encode()

    def _post(self, path: str, query: dict[str, str], body: bytes) -> None:
        match = _UPLOAD.fullmatch(path)
        if match is None:
            raise Refused(404, f"This double knows no {path}")
        bucket, condition = unquote(match[1]), query.get("ifGenerationMatch")
        if "upload_id" in query:
            self._send_chunk(query["upload_id"], body)
        elif query.get("uploadType") == "resumable":
            self.server.buckets.names(bucket)  # refused at once where there is no such bucket
            number = self.server.begin(Upload(bucket, query["name"], condition))
            here = f"http://{self.headers['Host']}{path}?uploadType=resumable&upload_id={number}"
            self._send(200, Location=here)
        else:
            described, data = self._parts(body)
            name = json.loads(described)["name"]
            stored = self.server.buckets.put(bucket, name, data, condition)
            self._send(200, _described(bucket, name, stored))

    def _parts(self, body: bytes) -> tuple[bytes, bytes]:
        """Return description and content of a multipart/related body."""
        parser = email.parser.HeaderParser(policy=email.policy.default)
        boundary = parser.parsestr(f"Content-Type: {self.headers['Content-Type']}").get_boundary()
        first, second = body.split(f"--{boundary}".encode())[1:3]
        described = re.split(rb"\r?\n\r?\n", first, maxsplit=1)[1]
        data = re.split(rb"\r?\n\r?\n", second, maxsplit=1)[1]
        return described, data.removesuffix(b"\n").removesuffix(b"\r")

    def _send_chunk(self, number: str, body: bytes) -> None:
        upload = self.server.uploads.get(number)
        match = _CONTENT_RANGE.fullmatch(self.headers.get("Content-Range", ""))
        if upload is None or match is None:
            raise Refused(404, "No such upload")
        if match[1] is not None:
            if int(match[1]) != len(upload.data):
                raise Refused(400, f"Expected the chunk from byte {len(upload.data)} on")
            upload.data += body
        if match[3] == str(len(upload.data)):
            del self.server.uploads[number]
            stored = self.server.buckets.put(
                upload.bucket, upload.name, bytes(upload.data), upload.condition
            )
            self._send(200, _described(upload.bucket, upload.name, stored))
        else:
            self._send(308, Range=f"bytes=0-{len(upload.data) - 1}")

    def _delete(self, path: str, query: dict[str, str], body: bytes) -> None:
        if _UPLOAD.fullmatch(path):
            self.server.uploads.pop(query.get("upload_id", ""), None)
            self._send(204)
        elif match := _OBJECT.fullmatch(path):
            bucket, name = map(unquote, match.groups())
            self.server.buckets.delete(bucket, name)
            self._send(204)
        else:
            raise Refused(404, f"This double knows no {path}")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """Ignore a client that has hung up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*args)

    def __init__(self, buckets: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.buckets = Buckets(buckets)
        self.uploads: dict[str, Upload] = {}
        self._numbers = itertools.count(1)

    def begin(self, upload: Upload) -> str:
        number = str(next(self._numbers))
        self.uploads[number] = upload
        return number

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def _described(bucket: str, name: str, stored: Stored) -> bytes:
    described = {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(stored.data)),
        "generation": str(stored.generation),
        "updated": stored.updated.isoformat().replace("+00:00", "Z"),
        "md5Hash": base64.b64encode(hashlib.md5(stored.data).digest()).decode(),
    }
    return json.dumps(described).encode()


@contextmanager
def serve(*buckets: str) -> Iterator[Server]:
    """Run the double in a thread until the block is left."""
    with Server(list(buckets)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
