"""Bare scripts, killed with SIGKILL at random moments and started again, until they end."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from tests.support.forked_script import as_process
from tests.testbeds.kills import victims
from tests.testbeds.kills.victims import Digests, Victim

PATIENCE = 180.0  # seconds that one process may take, whatever else the machine does
SAVES: list[Any] = [1, 2, 3, "epoch", "1s"]


class Ended(Exception):
    """A process that nobody killed has ended badly."""


class Twin:
    """What an untouched training of a victim came to, and how long it took."""

    def __init__(self, victim: Victim, folder: Path) -> None:
        began = time.monotonic()
        _start(victim, folder, 2, None)
        self.seconds = time.monotonic() - began
        self.end = victims.end(folder)


def kill_again_and_again(
    victim: Victim, twin: Twin, folder: Path, chance: random.Random, limit: int
) -> tuple[int, list[str]]:
    """Train, with up to `limit` kills; return how many there were, and what differs at the end.

    Each kill comes at a moment that is drawn from the whole life of a process: while it looks for
    what it goes on from, builds, trains, saves or leaves. Early ones are likelier, as a process
    that goes on has less to do than the untouched one.
    """
    save_every, kills = chance.choice(SAVES), 0
    while kills < limit:
        if not _start(victim, folder, save_every, 1.05 * twin.seconds * chance.random() ** 1.5):
            break
        kills += 1
    else:
        _start(victim, folder, save_every, None)
    return kills, differences(victims.end(folder), twin.end)


def differences(one: Digests, other: Digests) -> list[str]:
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def _start(victim: Victim, folder: Path, save_every: Any, kill_after: float | None) -> bool:
    """Run one process; return whether it was killed. Raises `Ended` when it fails by itself."""
    told = folder.with_suffix(".told")
    pid = os.fork()
    if pid == 0:
        output = os.open(folder.with_suffix(".output"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(output, 2)
        as_process(functools.partial(victims.run, victim, folder, save_every), told)
    patience = PATIENCE if kill_after is None else kill_after
    over = time.monotonic() + patience
    while time.monotonic() < over:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code:
                raise Ended(f"exit code {code}: {_words(told)}")
            return False
        time.sleep(min(0.002, max(0.0, over - time.monotonic())))
    os.killpg(_group(pid), signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if kill_after is None:
        raise Ended(f"it has not ended within {PATIENCE:.0f} s")
    if code not in (0, -signal.SIGKILL):
        raise Ended(f"exit code {code}: {_words(told)}")
    return code != 0


def _group(pid: int) -> int:
    """Return the group of a child; it leads its own a moment after it was forked."""
    while (group := os.getpgid(pid)) != pid:
        time.sleep(0.0005)
    return group


def _words(told: Path) -> str:
    return told.read_text()[-2000:] if told.exists() else json.dumps(None)
