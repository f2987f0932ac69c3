"""One job on one store with random trouble, built from a seed and run to its end."""

from __future__ import annotations

import errno
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import outlast.attempt.spool_handover
import outlast.job.heartbeat
import outlast.job.journal
import outlast.job.logs
import outlast.job.spool_settings
import outlast.supervisor.observer
import outlast.supervisor.supervisor
import outlast_checkpoints.history
import outlast_checkpoints.store.background_writer
import outlast_checkpoints.store.checkpoint_store
import outlast_checkpoints.store.spool_sender
from outlast.backends.base import Exit
from outlast.errors import BackendFailed, JobBusy
from outlast.job import process_identity, spec, standard_streams, submission
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.logs import silent_logger
from outlast.job.spec import JobSpec
from outlast_checkpoints.arrays import array_reader, hdf5_file, unchanged
from outlast_checkpoints.errors import OutlastError, StorageError, Superseded
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.storage.private_rng import rng
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool import Spool
from outlast_checkpoints.testing import CHANGING, Died, FaultyStorage
from tests.simulation import light, training
from tests.simulation.attempt import Attempt
from tests.simulation.memory import BUCKET, DISK, FOLDER, Memory
from tests.simulation.oracle import Oracle, Violation, demand
from tests.simulation.scheduler import Machine, Process, Scheduler

LIMIT = 4000.0  # seconds of the fake clock in which every job has to come to its end
LATEST = 20.0  # seconds after which no request arrives any more
REAL_HDF5 = 20  # one seed in so many writes real HDF5


class Link(FaultyStorage):
    """A process' way to the store: each call takes its time, and may be the last."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(world.memory)
        self._world, self._process = world, process

    def _enter(self, operation: str, path: str) -> str | None:
        world, process = self._world, self._process
        if not process.alive:
            raise Died
        if operation == "exists" and path.endswith("/spec.json"):
            return None
        world.scheduler.pause(world.latency())
        fault = world.fault(process, operation)
        if fault == "die-before":
            world.kill(process)
            raise Died
        if fault in ("fail", "away"):
            raise self._error(operation, path, fault)
        return fault

    def _error(self, operation: str, path: str, fault: str) -> StorageError:
        reason, number = f"injected: {fault}", errno.ETIMEDOUT  # as of a network
        return StorageError(action=operation, path=path, reason=reason, errno=number)

    def _leave(self, operation: str, path: str, fault: str | None, call: Callable[[], Any]) -> Any:
        if not self._process.alive:
            raise Died
        world = self._world
        if fault == "late":
            world.tell(self._process, "gave up on", operation, path)
            world.scheduler.later(world.dice.uniform(0.1, LATEST), lambda: world.arrive(call))
            raise self._error(operation, path, fault)
        if fault == "die-after":
            call()
            world.kill(self._process)
            raise Died
        found = super()._leave(operation, path, fault, call)
        if world.dice.random() < 0.2:
            world.scheduler.pause()
        return found


class Disk(FaultyStorage):
    """A process' way to a disk of its own machine, which works as long as the process does."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(world.disks[process.machine])
        self._world, self._process = world, process

    def _enter(self, operation: str, path: str) -> str | None:
        world = self._world
        if not self._process.alive:
            raise Died
        if operation in CHANGING and not world.calm and world.dice.random() < world.death_rate / 4:
            world.kill(self._process)
            raise Died
        return None

    def _leave(self, operation: str, path: str, fault: str | None, call: Callable[[], Any]) -> Any:
        if not self._process.alive:
            raise Died
        return super()._leave(operation, path, fault, call)


class SimulatedSpool(Spool):
    """The spool on a simulated disk."""

    def __init__(self, disk: Disk) -> None:
        self.storage = disk
        self.limit = 1 << 40

    def is_old(self, attempt: int) -> bool:
        return False


class Backend:
    """Starts attempts as processes of the supervisor's own machine."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world, self._machine = world, machine

    def launch(self, job: JobSpec, storage: Any, attempt: int) -> dict[str, Any]:
        if self._world.dice.random() < self._world.trouble * 0.1:
            raise BackendFailed(backend="simulated", problem="no room")
        process = self._world.start_attempt(self._machine, attempt)
        return {"pid": process.pid}

    def poll(self, handle: dict[str, Any]) -> Exit | None:
        return self._world.processes[handle["pid"]].exit

    def signal(self, handle: dict[str, Any], signum: int) -> None:
        process = self._world.processes[handle["pid"]]
        if process.alive:
            process.on_signal(signum)

    def kill(self, handle: dict[str, Any]) -> None:
        self._world.kill(self._world.processes[handle["pid"]])

    def output(self, handle: dict[str, Any], start: int = 0) -> bytes:
        return b""

    def preload(self, handle: dict[str, Any]) -> None: ...
    def prepare(self, job: JobSpec, preload: Any) -> None: ...
    def close(self) -> None: ...
    def finish(self, handle: dict[str, Any], storage: Any, attempt: int) -> None: ...


class World:
    """The job of a seed. trouble: from 0 (none) to 1, how often something goes wrong."""

    def __init__(self, seed: int, scratch: Path) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.trouble = self.dice.choice([0.4, 0.7, 1.0])
        kind = self.dice.choice([FOLDER, BUCKET])
        self.memory = Memory(kind, scratch)
        self.scheduler = Scheduler(self.dice)
        # What is elsewhere goes through a spool as a rule, and without one for who saves by hand.
        self.spools = kind is BUCKET and self.dice.random() < 0.7
        self.disks = {Machine(name): Memory(DISK, scratch) for name in "ab"}
        self.oracle = Oracle(self.memory, lambda: self.scheduler.now)
        self.machines = list(self.disks)
        self.processes: dict[int, Process] = {}
        self.calm = False
        self.fault_rate = self.dice.choice([0.0, 0.01, 0.05]) * self.trouble
        self.death_rate = self.dice.choice([0.0, 0.002, 0.01]) * self.trouble
        self.slow = self.dice.choice([1, 1, 5])
        self.keep = self.dice.choice(["1", "last:2", "last:3", "last:1,every:5", "all"])
        self.save_every = self.dice.choice([1, 2, 3, 5])
        self.pace = self.dice.choice([0.5, 1.0, 2.0])
        self.spec = JobSpec(
            job="simulated",
            script="train.py",
            keep=self.keep,
            seed=1,
            max_retries=50,
            backoff_max=4.0,
            heartbeat_every=2.0,
            lost_after=8.0,
            grace=10.0,
            stall_timeout=60.0,
        )
        self.oracle.fair = self._fair
        self.oracle.silence = self.spec.lost_after - 0.5 * self.slow

    # --- what happens to a request ----------------------------------------------------

    def latency(self) -> float:
        return self.dice.choice((0.0, 0.0, 0.0, 0.01, 0.1)) * self.slow

    def fault(self, process: Process, operation: str) -> str | None:
        if self.calm:
            return None
        if process.machine.away_until > self.scheduler.now:
            return "away"
        chance = self.dice.random()
        changing = operation in CHANGING
        if changing and chance < self.death_rate:
            return self.dice.choice(("die-before", "die-after"))
        if chance < self.death_rate + self.fault_rate:
            if not changing:
                return "fail"
            kinds = ["fail", "lost"]
            if operation == "delete_tree":
                kinds.append("partial")
            if not self.memory.capabilities.local:
                kinds += ["late", "late"]
            return self.dice.choice(kinds)
        return None

    def arrive(self, call: Callable[[], object]) -> None:
        """Let a request that was given up on have its effect, if it still can."""
        self.oracle.late = True
        with suppress(StorageError):
            call()
        self.oracle.late = False

    # --- processes --------------------------------------------------------------------

    def tell(self, process: Process, *what: object) -> None:
        self.oracle.tell(f"[{process.name}]", *what)

    def start(self, machine: Machine, name: str, main: Callable[[Process], int]) -> Process:
        """Start a process whose exit code `main` returns."""
        pid = 100 + len(self.processes)
        process = Process(machine, pid, f"{name}@{machine.name}", machine.boot)
        self.processes[pid] = process

        def run() -> None:
            code = main(process)
            for task in list(process.tasks[1:]):  # as the interpreter waits for its threads
                if not task.daemon and not task.done:
                    self.scheduler.pause(float("inf"), lambda task=task: task.done)
            self.tell(process, "exits with", code)
            self.scheduler.kill(process, Exit(code=code))

        self.scheduler.spawn(process, run)
        return process

    def kill(self, process: Process) -> None:
        if process.alive:
            self.tell(process, "is killed")
            self.scheduler.kill(process, Exit(signal=9))

    def _fair(self, owner: int, by: int, attempt: int) -> bool:
        """Whether process `by` may write off that `owner` runs an attempt."""
        if owner == by or not self.processes[owner].alive:
            return True
        # What was seen before a pause, or before the last requests, is what it was decided by.
        now, judge = self.scheduler.now, self.processes[by]
        last, woke = self.oracle.beats.get(attempt, (0.0, 0.0))
        recently = max(judge.frozen_until + self.spec.lost_after, woke + 1 + self.slow)
        return now < recently or now - last >= self.oracle.silence

    def start_attempt(self, machine: Machine, number: int) -> Process:
        by = self.scheduler.current
        parent = by.process if by is not None else None

        def main(process: Process) -> int:
            return Attempt(self, process, Link(self, process), number, parent).run()

        return self.start(machine, f"attempt {number}", main)

    def start_supervisor(self, machine: Machine) -> Process:
        """Start what `outlast resume` is."""
        clock, sleep = lambda: self.scheduler.now, self.scheduler.pause

        def main(process: Process) -> int:
            storage = Link(self, process)
            try:
                job = submission.resume(storage, clock=clock, sleep=sleep)
                if job.state.final:
                    return 0
                supervisor = outlast.supervisor.supervisor.Supervisor(
                    storage, backend=Backend(self, machine), clock=clock, sleep=sleep
                )
                process.on_signal = lambda signum: supervisor.terminate()
                supervisor.run()
            except (JobBusy, Superseded, StorageError) as error:
                self.tell(process, type(error).__name__, error)
                return error.exit_code
            return 0

        return self.start(machine, "supervisor", main)

    def spool_of(self, process: Process | None = None) -> Spool | None:
        """Return the spool of a process' machine, where the job has one."""
        if process is None and self.scheduler.current is not None:
            process = self.scheduler.current.process
        if process is None or not self.spools:
            return None
        return SimulatedSpool(Disk(self, process))

    def supervisors(self) -> list[Process]:
        return [p for p in self.processes.values() if p.alive and p.name.startswith("super")]

    def attempts(self) -> list[Process]:
        return [p for p in self.processes.values() if p.alive and p.name.startswith("attempt")]

    # --- the job from its beginning to its end ----------------------------------------

    def run(self) -> None:
        """Let the job be trained in all this trouble, then in peace to its end."""
        self.memory.create(layout.SPEC, spec.encode(self.spec))
        trouble_ends = self.scheduler.now + self.dice.uniform(30, 150)
        self._look_after()
        while self.scheduler.now < trouble_ends:
            self._let_go_on(self.dice.expovariate(1 / 4.0))
            if self.done():
                break
            self._strike()
        self.oracle.tell("from here on nothing goes wrong any more")
        self.calm = True
        for machine in self.machines:
            machine.away_until = 0.0
        for process in self.processes.values():
            process.frozen_until = min(process.frozen_until, self.scheduler.now + 30)
        end = self.scheduler.now + LIMIT
        while not self.done():
            demand(self.scheduler.now < end, "the job does not come to its end")
            self._look_after()
            self._let_go_on(10.0)
        self._let_go_on(60.0)  # zombies and late requests
        self._check_end()

    def done(self) -> bool:
        job = Journal(self.memory).job()
        return job is not None and job.state is State.SUCCEEDED

    def _let_go_on(self, seconds: float) -> None:
        until = self.scheduler.now + seconds
        self.scheduler.later(seconds, lambda: None)
        self.scheduler.run(lambda: self.scheduler.now >= until, until)
        self.scheduler.now = max(self.scheduler.now, until)

    def _look_after(self) -> None:
        """Be the person who resumes a job that nobody runs."""
        if not self.supervisors():
            self.start_supervisor(self.dice.choice(self.machines))

    def _strike(self) -> None:
        """Let something happen, or look at what there is."""
        deeds: list[tuple[float, Callable[[], None]]] = [
            (2.0, self._look_after),
            (1.0, self.oracle.check_reading),
            (1.5 * self.trouble, self._kill_supervisor),
            (1.0 * self.trouble, self._kill_attempt),
            (0.5 * self.trouble, self._power_off),
            (1.5 * self.trouble, self._freeze),
            (1.0 * self.trouble, self._away),
            (2.0 * self.trouble, self._split),
            (0.5, self._second_supervisor),
            (0.5 * self.trouble, self._damage),
            (1.0, self._prune),
            (0.5, self._stop),
            (0.3, self._terminate),
        ]
        weights = [weight for weight, _ in deeds]
        self.dice.choices([deed for _, deed in deeds], weights)[0]()

    def _kill_supervisor(self) -> None:
        for process in self.supervisors()[:1]:
            self.kill(process)

    def _kill_attempt(self) -> None:
        if running := self.attempts():
            self.kill(self.dice.choice(running))

    def _power_off(self) -> None:
        machine = self.dice.choice(self.machines)
        everything = self.memory.capabilities.local
        self.oracle.tell("power fails at", "all" if everything else machine.name)
        for process in list(self.processes.values()):
            if everything or process.machine is machine:
                self.kill(process)
        for hit in self.machines if everything else [machine]:
            hit.boot += 1
            self.disks[hit].lose_power()
        if everything:
            self.memory.lose_power()

    def _freeze(self) -> None:
        if alive := [*self.supervisors(), *self.attempts()]:
            process = self.dice.choice(alive)
            seconds = self.dice.choice((3.0, 15.0, 40.0))
            self.tell(process, "is frozen for", seconds)
            process.frozen_until = self.scheduler.now + seconds

    def _away(self) -> None:
        for machine in self.dice.sample(self.machines, self.dice.choice((1, 2))):
            machine.away_until = self.scheduler.now + self.dice.choice((2.0, 12.0, 40.0))
            self.oracle.tell("storage is out of reach of", machine.name, machine.away_until)

    def _split(self) -> None:
        """Have a machine stand still, or lose sight of the store, and the job go on elsewhere."""
        running = self.attempts()
        if not running:
            return
        hit = running[-1].machine
        seconds = self.dice.choice((12.0, 20.0, 40.0))
        if self.dice.random() < 0.5:
            self.oracle.tell(hit.name, "stands still for", seconds)
            for process in self.processes.values():
                if process.machine is hit:
                    process.frozen_until = self.scheduler.now + seconds
        else:
            self.oracle.tell("storage is out of reach of", hit.name, "for", seconds)
            hit.away_until = self.scheduler.now + seconds
        self.start_supervisor(next(other for other in self.machines if other is not hit))

    def _second_supervisor(self) -> None:
        self.start_supervisor(self.dice.choice(self.machines))

    def _damage(self) -> None:
        """Change a byte of a file of a commit, while another good one is there to go back to."""
        good = [one for one in self.oracle.line() if not one.damaged]
        if len(good) < 3 or self.attempts():
            return  # what is written now may link it, or stand on it
        hit = self.dice.choice(good)
        file = self.dice.choice([*hit.files, "manifest.json"])
        path = f"checkpoints/{hit.id}/{file}"
        data = bytearray(self.memory.files[path])
        data[self.dice.randrange(len(data))] ^= 1 << self.dice.randrange(8)
        self.oracle.tell("damaged:", path)
        self.memory.files[path] = bytes(data)
        hit.damaged = True

    def _prune(self) -> None:
        def main(process: Process) -> int:
            store = CheckpointStore(Link(self, process))
            for _ in range(self.dice.choice((1, 9))):
                try:
                    store.prune(Keep.parse(self.keep))
                except OutlastError as error:
                    self.tell(process, error)
                self.scheduler.pause(0.4)
            return 0

        self.start(self.dice.choice(self.machines), "prune", main)

    def _stop(self) -> None:
        def main(process: Process) -> int:
            try:
                submission.request_stop(Link(self, process), by="somebody")
            except OutlastError as error:
                self.tell(process, error)
            return 0

        self.start(self.dice.choice(self.machines), "stop", main)

    def _terminate(self) -> None:
        for process in self.supervisors()[:1]:
            self.tell(process, "gets SIGTERM")
            process.on_signal(15)

    def _check_end(self) -> None:
        self.oracle.check_reading()
        line = self.oracle.line()
        demand(line, "the job has succeeded and has no checkpoint")
        newest = line[-1].id
        last = len(training.PHASES) - 1
        demand(newest.place == (last, training.PHASES[last], 2), "it ends at", newest)
        rows = [(r["phase"], r["step"]) for r in self.oracle.rows()]
        demand(rows == training.all_steps(), "the history ends at", rows[-1:])


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """Have the product take the world's clock, threads and processes for real ones."""
    scheduler = world.scheduler
    threads, clock = scheduler.threading(), scheduler.time()

    def me() -> Process | None:
        return scheduler.current.process if scheduler.current is not None else None

    def stat(pid: int) -> tuple[str, int] | None:
        process = world.processes.get(pid)
        here = me()
        if process is None or not process.alive or here is None:
            return None
        return ("T" if process.frozen_until > scheduler.now else "S"), process.pid

    outside = Process(Machine("outside"), 1, "outside", 0)

    def boot_id() -> str:
        process = me() or outside
        return f"{process.machine.name}, boot {process.boot}"

    with ExitStack() as patches:

        def patch(target: Any, name: str, value: Any) -> None:
            if hasattr(target, name):
                patches.enter_context(mock.patch.object(target, name, value))

        for module in (
            outlast_checkpoints.history,
            outlast_checkpoints.store.spool_sender,
            outlast_checkpoints.store.checkpoint_store,
            outlast_checkpoints.store.background_writer,
            outlast.job.heartbeat,
            outlast.job.journal,
            outlast.job.logs,
            outlast.attempt.spool_handover,
            outlast.supervisor.supervisor,
        ):
            patch(module, "threading", threads)
            patch(module, "time", clock)
        # Its threads are this one, which stays as it is.
        patch(outlast_checkpoints.store.background_writer, "_run_as_batch", lambda: None)
        patch(process_identity, "os", SimpleNamespace(getpid=lambda: (me() or outside).pid))
        patch(
            process_identity,
            "socket",
            SimpleNamespace(gethostname=lambda: (me() or outside).machine.name),
        )
        patch(process_identity, "_boot_id", boot_id)
        patch(process_identity, "_stat", stat)
        patch(process_identity, "_exists", lambda pid: False)
        patch(standard_streams, "say", lambda text: None)
        patch(outlast.job.spool_settings, "spool_of", lambda storage, job: world.spool_of())
        patch(outlast.supervisor.supervisor, "POLL", 0.5)
        patch(outlast.supervisor.supervisor, "OUTPUT_EVERY", 30.0)
        patch(outlast.supervisor.observer, "make_logger", lambda *args, **kwargs: silent_logger())
        patch(unchanged, "_SMALL", 32)
        patch(unchanged, "_LEAST", 32)
        if world.seed % REAL_HDF5:
            patch(hdf5_file, "write_arrays", light.write_arrays)
            patch(array_reader, "read_file", light.read_file)
            patch(array_reader, "check_file", lambda storage, path, entry: None)
        state = random.getstate()
        random.seed(world.seed)
        rng.seed(world.seed)
        try:
            yield
        finally:
            random.setstate(state)


def simulate(seed: int) -> World:
    """Run the job of a seed. Raises `Violation` with the story of what happened."""
    memory = "/dev/shm"
    where = memory if Path(memory).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="outlast-test-", dir=where) as scratch:
        world = World(seed, Path(scratch))
        with simulated(world):
            try:
                world.run()
            except Exception as error:
                story = "\n".join(world.oracle.story)
                kind = type(error).__name__
                raise Violation(f"seed {seed}: {kind}: {error}\n{story}") from error
            finally:
                for process in world.processes.values():
                    world.scheduler.kill(process, Exit())
    return world
