"""One attempt of a job: `python -m outlast.attempt.main JOB_URL ATTEMPT` runs the user's script.

It communicates with its supervisor only by files, signals and exit codes. It never imports
TensorFlow, because the script may set variables first.
"""

from __future__ import annotations

import atexit
import faulthandler
import io
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Final

from outlast import exit_codes
from outlast.attempt import (
    adoption,
    context,
    script_change,
    script_environment,
    script_errors,
    seeding,
    signals,
)
from outlast.attempt.context import AttemptContext
from outlast.attempt.prefetch import Prefetch
from outlast.attempt.safe_output import Output, guard_output
from outlast.attempt.signals import StopFlag
from outlast.attempt.training_import import prepare_training
from outlast.attempt.written_files import WrittenFiles
from outlast.errors import ScriptRejected
from outlast.job import (
    audit_target,
    deadline,
    failure_stats,
    machine,
    preload,
    process_identity,
    rank,
    spool_settings,
)
from outlast.job import spec as specs
from outlast.job.heartbeat import HeartbeatWriter, Status
from outlast.job.journal import Journal
from outlast.job.known_commits import known_commits
from outlast.job.log_events import LogEvent
from outlast.job.logs import LogFile, make_logger
from outlast.job.process_identity import SUPERVISOR_PID
from outlast.job.spec import JobSpec
from outlast.job.submission import load_spec
from outlast_checkpoints.errors import OutlastError, StorageError, Superseded
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.retry_budget import BRIEF, patience

DEBUG: Final = "OUTLAST_DEBUG"  # if set, tracebacks include Outlast's frames
_OWN: Final = (
    str(Path(__file__).resolve().parents[1]),
    str(Path(layout.__file__).resolve().parents[1]),
    "<frozen runpy>",
    "<frozen importlib",
)


class Attempt:
    """Runs the script: sets up context, signals and heartbeat, and leaves when it must."""

    def __init__(self, storage: Storage, spec: JobSpec, attempt: int) -> None:
        self._storage = storage
        # The parent may be a wrapper of the interpreter, so the supervisor passes its pid.
        supervisor = os.environ.get(SUPERVISOR_PID)
        self._supervisor = process_identity.of_process(int(supervisor)) if supervisor else None
        self._pid = os.getpid()
        self._code = exit_codes.FAILED
        self._superseded: Superseded | None = None
        self._leave_by: float | None = None
        self._output: list[Output] = []
        mine = rank.here()
        self._file = LogFile(storage, layout.attempt_log(attempt, mine.number))
        journal, target = Journal(storage), audit_target.load(storage)
        status, job = Status(), journal.job()
        known = job if target is None else target
        self.context = AttemptContext(
            storage=storage,
            spec=spec,
            attempt=attempt,
            rank=mine,
            stop=StopFlag(),
            status=status,
            log=make_logger(self._file, status=status, job=spec.job, attempt=attempt),
            fence=lambda: journal.fence(attempt),
            supervised=True,
            local_dir=storage.local_path(""),
            failures=failure_stats.seen_in(journal.read()),
            known_commits=known_commits(storage, journal.read()),
            rollbacks=() if known is None else known.rollbacks,
            before_training=self._before_training,
            spool=spool_settings.spool_of(storage, spec),
            read_deadline=self._time_left,
            audit=target,
        )
        self._heartbeat = HeartbeatWriter(
            storage,
            attempt,
            status,
            spec.heartbeat_every,
            self._on_superseded,
            fence=self.context.fence,
            on_beat=self._file.flush,
            aside=None if self.context.spool is None else self.context.spool.storage,
            rank=mine.number,
        )
        self._ended = threading.Event()
        self._written: WrittenFiles | None = None

    def run(self) -> int:
        """Run the script; return the exit code. The last heartbeat has it too."""
        # The first handler registered is called last, after those of the script.
        atexit.register(self._finish)
        self._output = guard_output()
        faulthandler.enable()
        faulthandler.register(signal.SIGQUIT, all_threads=True)
        signals.install(self.context.stop)
        script_change.identify(self.context.status, specs.script_path(self.context.spec))
        self._heartbeat.start()
        # A separate thread, because a slow storage may block that of the heartbeat.
        threading.Thread(target=self._watch, name="outlast-watch", daemon=True).start()
        context.set_current(self.context)
        self.context.log.info(
            LogEvent.ATTEMPT_STARTED,
            pid=os.getpid(),
            supervised=True,
            runs=self.context.spec.runs,
            **(warmed.log_fields() if (warmed := preload.warm_start()) else {}),
        )
        self.context.status.activity = "importing"
        script_environment.tell(self._storage, self.context.attempt, os.environ)
        if warmed is not None and self._storage.capabilities.local:
            # Everything needed for reading is imported, so this does not slow down the script.
            self.context.read_ahead = Prefetch(self._storage).take
        self._code = self._run_script()
        if os.getpid() != self._pid:
            return self._code  # a fork of the script has come to its end
        if self._superseded is None:
            try:
                self._code = self.context.before_exit(self._code)
            except BaseException as error:  # noqa: BLE001  (like errors of the script)
                self._code = self._judge(error)
        if self._superseded is not None:
            self._code = exit_codes.SUPERSEDED
        return self._code

    def _run_script(self) -> int:
        spec = self.context.spec
        try:
            self.context.fence()
            if self.context.audit is not None:
                self._written = WrittenFiles([Path(self._storage.root).parent])
                self._written.watch()
            self._keep_machine()
            script_change.tell(self.context)
            seeding.seed_everything(spec.seed, deterministic=spec.deterministic)
            prepare_training(spec)
            adoption.begin(spec)
            if spec.module is not None:
                run_module(spec.module, spec.args)
            else:
                run_script(spec)
        except SystemExit as left:
            return self._exit_code(left)
        except BaseException as error:  # noqa: BLE001  (every error has an exit code)
            return self._judge(error)
        if self.context.status.phase is None and os.getpid() == self._pid:
            self.context.log.warning(
                LogEvent.NOTHING_PROTECTED,
                why="the script did not call outlast's fit or Loop, so nothing was saved; after a "
                "crash, it would have started from the beginning",
                instead=adoption.REMEDY[spec.adopt],
            )
        return exit_codes.DONE

    def _keep_machine(self) -> None:
        """Have TensorFlow use the job's threads and instruction set; it reads them at its start."""
        spec = self.context.spec
        first = machine.load(self._storage)
        threads = spec.intra_op_threads if first is None else first.intra_op_threads
        threads = threads or machine.threads_in(os.environ) or machine.cpus()
        preload.add_variables(machine.set_variables(os.environ, threads, spec.cpu_isa))

    def _exit_code(self, left: SystemExit) -> int:
        if left.code is None:
            return exit_codes.DONE
        if isinstance(left.code, int):
            return left.code & 0xFF
        sys.stderr.write(f"{left.code}\n")
        self.context.status.error = script_errors.short(str(left.code))
        return exit_codes.FAILED

    def _judge(self, error: BaseException) -> int:
        """Print the error, put it into the heartbeat, and return its exit code."""
        if os.getpid() != self._pid:  # in a fork of the script, which is not the attempt
            traceback.print_exception(type(error), error, user_frames(error.__traceback__))
            return exit_codes.FAILED
        trace = user_frames(error.__traceback__)
        where = _where(trace, error)
        self.context.status.error = (
            f"{type(error).__name__}: {script_errors.short(str(error))}{where}"
        )
        if where and not script_errors.is_transient(error):
            self.context.status.exception = f"{type(error).__name__}{where}"
        if isinstance(error, OutlastError) and DEBUG not in os.environ:
            # The message explains the error; a traceback would not help.
            sys.stderr.write(f"outlast: {error}{where}\n")
            self.context.log.error(LogEvent.SCRIPT_FAILED, error=self.context.status.error)
        else:
            frames = "".join(traceback.format_exception(type(error), error, trace))
            sys.stderr.write(frames)
            self.context.log.error(
                LogEvent.SCRIPT_FAILED, error=self.context.status.error, exception=frames.rstrip()
            )
        if isinstance(error, OutlastError):
            return error.exit_code
        if isinstance(error, ImportError | SyntaxError) and self.context.status.phase is None:
            return exit_codes.REJECTED
        return exit_codes.FAILED

    def _finish(self) -> None:
        if os.getpid() != self._pid:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        if self._written is not None:
            self._written.store(self._storage)
        if lost := sum(output.lost for output in self._output):
            self.context.log.warning(LogEvent.OUTPUT_LOST, bytes=lost, why="the disk was full")
        self.context.log.info(
            LogEvent.ATTEMPT_EXITED,
            exit_code=self._code,
            meaning=exit_codes.MEANINGS.get(self._code, "exit code of the script"),
        )
        with patience(BRIEF if self.context.status.away_since is None else 0.0):
            self._file.close()
        self._heartbeat.stop(self._code)
        self._ended.set()
        spool = self.context.spool
        if spool is not None:
            with suppress(StorageError):
                spool.tidy(self.context.attempt)

    def _before_training(self) -> None:
        """Report what a spare should import; restart cold if the spare does not fit."""
        variables = preload.differing_variables()
        if variables:
            self.context.log.warning(
                LogEvent.SPARE_REJECTED,
                variables=variables,
                why="the script sets these variables to other values than the attempt before; "
                "the spare has imported TensorFlow under the old ones",
                hint="this attempt restarts without a spare",
            )
            self._heartbeat.stop()
            self._file.close()
            preload.start_cold(self._storage.root, self.context.attempt)
        preload.report(preload.preload_of(sys.modules))
        script_change.tell_of_module(self.context)

    def _time_left(self) -> float | None:
        storage = spool.storage if (spool := self.context.spool) else self._storage
        return deadline.seconds_left(storage, self.context.attempt)

    def _on_superseded(self, error: Superseded) -> None:
        self._superseded = error
        self._leave_soon("superseded", exit_codes.SUPERSEDED)

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self._check_owner()

    def _check_owner(self) -> None:
        if self._supervisor is not None and self._supervisor.gone():
            self._leave_soon("orphaned", exit_codes.RESUMABLE)
        saving = self.context.status.activity == "saving" and self._superseded is None
        if self._leave_by is not None and time.monotonic() > self._leave_by and not saving:
            # The script ignores the flag, and no supervisor will kill this process.
            self.context.status.ended = self._code
            self.context.log.error(LogEvent.EXIT_FORCED, why=self.context.stop.reason)
            self._file.close()
            os._exit(self._code)

    def _leave_soon(self, reason: str, code: int) -> None:
        if self._leave_by is None:
            self._leave_by = time.monotonic() + self.context.spec.grace
            self._code = code
            self.context.log.warning(LogEvent.LEAVE_REQUESTED, why=reason)
            self.context.stop.request(reason)


def run_script(spec: JobSpec) -> None:
    """Run the script of the job as `python SCRIPT ARGS` would. Raises `ScriptRejected`."""
    path = specs.script_path(spec)
    if path is None or spec.script is None:
        raise ScriptRejected(script="", problem="the job has no script")
    sys.argv = [spec.script, *spec.args]
    if path.is_dir() or path.suffix in (".zip", ".pyz"):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except ImportError as error:
            if _refused(error):
                raise ScriptRejected(script=str(path), problem=str(error)) from error
            raise
        return
    try:
        with io.open_code(str(path.absolute())) as file:
            source = file.read()
    except OSError as error:
        problem = "the file does not exist" if isinstance(error, FileNotFoundError) else str(error)
        raise ScriptRejected(script=str(path), problem=problem) from error
    name = str(path)
    sys.path.insert(0, str(path.resolve().parent))
    module = ModuleType("__main__")
    module.__file__ = name
    module.__loader__ = SourceFileLoader("__main__", name)
    module.__dict__.update(__builtins__=__builtins__, __spec__=None, __cached__=None)
    sys.modules["__main__"] = module
    code = compile(source, name, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # nosec B102  # the script of the job


def run_module(name: str, args: list[str]) -> None:
    """Run a module as `python -m NAME ARGS` would. Raises `ScriptRejected`."""
    sys.argv = [name, *args]
    sys.path.insert(0, str(Path.cwd()))
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except ImportError as error:
        if _refused(error):
            raise ScriptRejected(script=f"-m {name}", problem=str(error)) from error
        raise


def _refused(error: ImportError) -> bool:
    """Return whether runpy itself raised the error, so that no frame of the user is in it."""
    return all(_is_own(frame.filename) for frame in traceback.extract_tb(error.__traceback__))


def user_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback without its leading frames of Outlast and runpy."""
    if DEBUG in os.environ:
        return trace
    while trace is not None and _is_own(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _is_own(filename: str) -> bool:
    return filename.startswith(_OWN)


def _where(trace: TracebackType | None, error: BaseException) -> str:
    """Return the innermost line of the user's code, as " (train.py, line 12)"."""
    if isinstance(error, SyntaxError):
        return ""  # its message has the line
    found = ""
    for frame in traceback.extract_tb(trace):
        own = _is_own(frame.filename) or "-packages" in frame.filename
        if not own and not frame.filename.startswith("<"):
            found = f" ({Path(frame.filename).name}, line {frame.lineno})"
    return found


def main(argv: list[str]) -> int:
    """Run attempt number `argv[1]` of the job at the URL `argv[0]`; return the exit code."""
    url, attempt = argv
    if (pipe := os.environ.pop(preload.PIPE, None)) is not None:
        preload.use_pipe(preload.inherited_pipe(int(pipe)))
    try:
        storage = open_storage(url)
        return Attempt(storage, load_spec(storage), int(attempt)).run()
    except OutlastError as error:
        sys.stderr.write(f"outlast: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    from outlast.attempt.main import main as run_main  # not as __main__, which is the script

    sys.exit(run_main(sys.argv[1:]))
