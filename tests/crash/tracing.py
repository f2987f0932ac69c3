"""Runs children of `saver.py` under strace, which kills them or makes a call fail."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_INJECTED = "(INJECTED)"


@dataclass(frozen=True)
class Told:
    """The result of a child.

    code: its exit code, negative for a signal. failed: which steps raised what. calls: the traced
    calls, each ending in "(INJECTED)" when it was tampered with.
    """

    code: int
    failed: list[dict[str, str]]
    calls: list[str]

    @property
    def tampered(self) -> str | None:
        """The call that failed on purpose, as strace shows it."""
        return next((call for call in self.calls if _INJECTED in call), None)


class Saver:
    """A running `saver.py`."""

    def __init__(self, folder: Path, strace: str) -> None:
        self._strace = strace
        self._address = folder / "wire"
        self._log = folder / "strace.log"
        self._wire = socket.socket(socket.AF_UNIX)
        self._wire.bind(str(self._address))
        self._wire.listen()
        self._wire.settimeout(60)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.saver"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._wire.close()
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def do(self, deed: str, folder: Path, calls: str, inject: str | None = None) -> Told:
        """Let a child run a deed in `folder`, tracing `calls` and injecting faults by `inject`."""
        wanted = {"folder": str(folder), "deed": deed, "address": str(self._address)}
        print(json.dumps(wanted), file=self._process.stdin, flush=True)
        wire, _ = self._wire.accept()
        with wire:
            wire.settimeout(60)
            pid = json.loads(wire.recv(1 << 16))["pid"]
            with traced(self._strace, pid, self._log, calls, inject):
                wire.send(b"go")
                try:
                    answer = wire.recv(1 << 20)
                except ConnectionResetError:
                    answer = b""
                code = json.loads(self._process.stdout.readline())["code"]
        failed = json.loads(answer)["failed"] if answer else []
        return Told(code, failed, self._log.read_text().splitlines())


@contextlib.contextmanager
def traced(
    strace: str,
    pid: int,
    log: Path,
    calls: str,
    inject: str | None = None,
    path: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Trace a process with all its threads; on leaving wait for its end.

    Gives the tracer; interrupted by SIGINT, it lets the process go.
    inject: how to tamper, as strace's option says; calls are counted in each thread by itself.
    path: only calls on this file.
    """
    command = [strace, "-f", "-y", "-o", str(log), "-e", f"trace={calls}", "-e", "signal=none"]
    command += ["-e", f"inject={inject}"] if inject else []
    command += ["-P", str(path)] if path else []
    tracer = subprocess.Popen(
        [*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        said = tracer.stderr.readline()
        while "attached" not in said:
            if "not permitted" in said and os.environ.get("OUTLAST_REQUIRE") != "all":
                pytest.skip(f"tracing is not allowed here: {said}")
            assert "Requested path" in said, f"strace: {said}"  # it does not exist yet
            said = tracer.stderr.readline()
        yield tracer
        _, said = tracer.communicate(timeout=240)
        assert tracer.returncode in (0, -signal.SIGKILL, -signal.SIGINT), said
    finally:
        tracer.kill()
        tracer.wait(60)
        tracer.stderr.close()


def numbered(calls: list[str]) -> dict[str, int]:
    """Return how often each call was made."""
    counts: dict[str, int] = {}
    for call in calls:
        name = call.split("(")[0].split()[-1]
        if "(" in call and not call.endswith("resumed>"):
            counts[name] = counts.get(name, 0) + 1
    return counts
