"""A proxy on loopback between a client and a real server. It breaks one chosen request.

It speaks the part of HTTP/1.1 that clients of object stores use. Faults:

- "drop": the connection ends before the request is forwarded
- "cut": it is forwarded, and the connection ends instead of the answer
- "half": half of the answer is sent, then the connection ends
- "slow": it is forwarded, and its answer comes only after the client's patience
- "late": the connection ends, and the request is forwarded at `deliver`
- a number: the server would answer with that status, and does nothing
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

NOT_DONE = ("drop", "500", "503", "429", "409", "408")  # the server has not heard of the request
DONE = ("cut", "half", "late")  # it carries it out, sooner or later, and nobody is told

_CODES = {
    "408": "RequestTimeout",
    "409": "ConditionalRequestConflict",
    "412": "PreconditionFailed",
    "429": "TooManyRequests",
    "500": "InternalError",
    "503": "SlowDown",
}


class FaultProxy:
    """A proxy for the server at `port`. Inside `fault` the k-th request is broken.

    slow: seconds that a slow answer takes. told: method and path of each request since `fault`.
    """

    def __init__(self, port: int, slow: float = 2.0) -> None:
        self._server = port
        self._slow = slow
        self._fault = ""
        self._at = 0
        self._cut = False
        self._late: list[bytes] = []
        self._serving: set[asyncio.Task[None]] = set()
        self.told: list[str] = []
        self.spoiled: str | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        self.port = listening.result(30)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @contextmanager
    def fault(self, fault: str, at: int) -> Iterator[None]:
        """Break the `at`-th request (from 1) in the block; 0 only counts requests."""
        self.told, self.spoiled = [], None
        self._fault, self._at = fault, at
        try:
            yield
        finally:
            self._fault, self._at = "", 0

    def deliver(self) -> None:
        """Forward the late requests."""
        while self._late:
            request = self._late.pop(0)
            answer = asyncio.run_coroutine_threadsafe(self._ask(request), self._loop)
            answer.result(30)

    async def _listen(self) -> int:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def _end(self) -> None:
        self._listener.close()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)  # asyncio itself does not hold on to it
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while (request := await _request(reader, writer)) is not None:
                    answer = await self._answer(request)
                    if answer is None:
                        break
                    writer.write(answer)
                    await writer.drain()
                    if self._cut:
                        break
        finally:
            writer.close()
            self._serving.discard(task)

    async def _answer(self, request: bytes) -> bytes | None:
        """Return the answer for the client, or None to close the connection."""
        self.told.append(request.partition(b" HTTP/")[0].decode())
        self._cut = False
        if not self._at or len(self.told) != self._at:
            return await self._ask(request)
        self.spoiled = self.told[-1]
        match self._fault:
            case "drop":
                return None
            case "late":
                self._late.append(request)
                return None
            case "cut":
                await self._ask(request)
                return None
            case "half":
                answer = await self._ask(request)
                self._cut = True
                return answer[: len(answer) // 2]
            case "slow":
                answer = await self._ask(request)
                await asyncio.sleep(self._slow)
                return answer
            case status:
                return _refusal(status, request)

    async def _ask(self, request: bytes) -> bytes:
        """Return the server's whole answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server)
        try:
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            bodiless = request.startswith(b"HEAD ") or re.match(rb"HTTP/1.1 (204|304)", head)
            return head if bodiless else head + await _body(reader, head, whole=True)
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    if re.search(rb"(?i)\r\nexpect: *100-continue", head):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = re.sub(rb"(?i)\r\nexpect: *100-continue", b"", head)
    return head + await _body(reader, head, whole=False)


async def _body(reader: asyncio.StreamReader, head: bytes, *, whole: bool) -> bytes:
    """Return a body unchanged. whole: a body without a length extends to the end."""
    if re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
        found = b""
        while not found.endswith(b"0\r\n\r\n"):
            line = await reader.readuntil(b"\r\n")
            found += line + await reader.readexactly(int(line.split(b";")[0], 16) + 2)
        return found
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if length is not None:
        return await reader.readexactly(int(length[1]))
    return await reader.read() if whole else b""


def _refusal(status: str, request: bytes) -> bytes:
    body = f"<Error><Code>{_CODES[status]}</Code><Message>injected</Message></Error>".encode()
    head = f"HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\n"
    head += f"x-ms-error-code: {_CODES[status]}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if request.startswith(b"HEAD ") else body)
