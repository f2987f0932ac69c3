"""Many processes of several machines in one thread: fake clock, seeded choice of who goes next.

Every process is some greenlets; they give way at storage calls, locks and sleeps, and nowhere
else, so that a seed gives the same run every time.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import greenlet

from outlast.backends.base import Exit
from outlast_checkpoints.testing import Died

NEVER = float("inf")


@dataclass(eq=False)
class Machine:
    """A host; what runs on it dies with it."""

    name: str
    boot: int = 0
    away_until: float = 0.0  # storage is out of its reach


@dataclass(eq=False)
class Process:
    """A process of a machine. exit: how it ended. on_signal: what it does about signals."""

    machine: Machine
    pid: int
    name: str
    boot: int
    tasks: list[Task] = field(default_factory=list)
    alive: bool = True
    frozen_until: float = 0.0
    exit: Exit | None = None
    on_signal: Callable[[int], None] = lambda signum: None


@dataclass(eq=False)
class Task:
    """A thread of a process. at: when it goes on; ready: or as soon as this is true."""

    process: Process
    greenlet: greenlet.greenlet
    daemon: bool
    at: float = 0.0
    ready: Callable[[], bool] | None = None
    done: bool = False


class Scheduler:
    """Runs tasks one at a time; `choose` says which goes next when several could."""

    def __init__(self, choose: random.Random) -> None:
        self.now = 1000.0
        self.choose = choose
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.switches = 0
        self._hub = greenlet.getcurrent()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something, of no process, after so many seconds."""
        self._count += 1
        heapq.heappush(self._later, (self.now + seconds, self._count, call))

    def spawn(self, process: Process, run: Callable[[], None], *, daemon: bool = False) -> Task:
        """Start a thread of a process."""

        def body() -> None:
            try:
                run()
            except Died:
                pass
            finally:
                task.done = True

        task = Task(process, greenlet.greenlet(body, parent=self._hub), daemon, self.now)
        process.tasks.append(task)
        self.tasks.append(task)
        return task

    def pause(self, seconds: float = 0.0, ready: Callable[[], bool] | None = None) -> None:
        """Let others go on. seconds: at least so long; ready: but no longer than until this."""
        task = self.current
        if task is None:
            return
        if not task.process.alive:
            raise Died
        task.at, task.ready = self.now + seconds, ready
        self._hub.switch()
        if not task.process.alive:
            raise Died

    def kill(self, process: Process, end: Exit) -> None:
        """End a process where it stands; nothing that it still does reaches anybody."""
        if not process.alive:
            return
        process.alive, process.exit = False, end
        mine = self.current
        for task in process.tasks:
            if task is not mine and not task.done:
                self.current = task
                if task.greenlet:  # it has begun
                    task.greenlet.throw(Died)
                task.done = True
        self.current = mine
        self.tasks = [task for task in self.tasks if task.process is not process or task is mine]

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Go on until something is true; False when that was not so by the time `limit`."""
        while not until():
            while self._later and self._later[0][0] <= self.now:
                heapq.heappop(self._later)[2]()
            now = self.now
            able = [
                task
                for task in self.tasks
                if (task.at <= now or (task.ready is not None and task.ready()))
                and task.process.frozen_until <= now
            ]
            if not able:
                times = [max(task.at, task.process.frozen_until) for task in self.tasks]
                times += [at for at, _, _ in self._later[:1]]
                if not times or min(times) > limit:
                    return False
                self.now = max(now, min(times))
                continue
            task = able[0] if len(able) == 1 else self.choose.choice(able)
            self.switches += 1
            self.current = task
            try:
                task.greenlet.switch()
            finally:
                self.current = None
            if task.done and task in self.tasks:
                self.tasks.remove(task)
        return True

    # What modules of the product take for `threading` and `time`

    def threading(self) -> Any:
        """Return what stands for the module `threading`."""
        scheduler = self

        class Thread:
            def __init__(
                self,
                target: Callable[..., None],
                args: tuple[Any, ...] = (),
                name: str = "",
                daemon: bool = False,
            ) -> None:
                self._run, self._daemon = (lambda: target(*args)), daemon
                self._task: Task | None = None

            def start(self) -> None:
                assert scheduler.current is not None
                process = scheduler.current.process
                self._task = scheduler.spawn(process, self._run, daemon=self._daemon)

            def is_alive(self) -> bool:
                return self._task is not None and not self._task.done

            def join(self, timeout: float | None = None) -> None:
                if self.is_alive():
                    scheduler.pause(
                        NEVER if timeout is None else timeout, lambda: not self.is_alive()
                    )

        class Event:
            def __init__(self) -> None:
                self._set = False

            def set(self) -> None:
                self._set = True

            def clear(self) -> None:
                self._set = False

            def is_set(self) -> bool:
                return self._set

            def wait(self, timeout: float | None = None) -> bool:
                if not self._set:
                    scheduler.pause(NEVER if timeout is None else timeout, lambda: self._set)
                return self._set

        class Lock:
            def __init__(self) -> None:
                self._owner: Any = None
                self._depth = 0

            def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
                me = greenlet.getcurrent()
                while self._owner is not None and self._owner is not me:
                    if not blocking:
                        return False
                    scheduler.pause(NEVER, lambda: self._owner is None)
                self._owner = me
                self._depth += 1
                return True

            def release(self) -> None:
                self._depth -= 1
                if not self._depth:
                    self._owner = None

            def locked(self) -> bool:
                return self._owner is not None

            def __enter__(self) -> bool:
                return self.acquire()

            def __exit__(self, *_: object) -> None:
                self.release()

        class Condition(Lock):
            def __init__(self) -> None:
                super().__init__()
                self._waiting: list[list[bool]] = []

            def wait(self, timeout: float | None = None) -> bool:
                told = [False]
                self._waiting.append(told)
                depth, self._depth, self._owner = self._depth, 0, None
                scheduler.pause(NEVER if timeout is None else timeout, lambda: told[0])
                self.acquire()
                self._depth = depth
                return told[0]

            def notify_all(self) -> None:
                for told in self._waiting:
                    told[0] = True
                self._waiting.clear()

        return SimpleNamespace(
            Condition=Condition,
            Thread=Thread,
            Event=Event,
            Lock=Lock,
            RLock=Lock,
            current_thread=lambda: scheduler.current,
            main_thread=lambda: None,
        )

    def time(self) -> Any:
        """Return what stands for the module `time`."""
        return SimpleNamespace(
            time=lambda: self.now,
            monotonic=lambda: self.now,
            perf_counter=lambda: self.now,
            sleep=self.pause,
        )
