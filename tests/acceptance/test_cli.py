"""The real `outlast`, in processes of its own, over scripts that need no TensorFlow."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.acceptance

OUTLAST = [sys.executable, "-m", "outlast"]
PATIENCE = 120  # seconds until a test gives up; no test waits that long when all is well

HELLO = "import sys\nprint('hello', sys.argv[1:])\nprint('to stderr', file=sys.stderr)\n"

# Dies by SIGKILL in its first attempts, as many as its first argument says.
MORTAL = """
import os, signal, sys
from outlast.attempt import context
attempt = context.current().attempt
print("attempt", attempt, flush=True)
if attempt <= int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""

# Waits to be told to leave, as a training does at each step; a file shows that it is there.
PATIENT = """
import pathlib, sys
from outlast.attempt import context
attempt = context.current()
pathlib.Path(sys.argv[1]).write_text(str(attempt.attempt))
print("waiting", flush=True)
if not attempt.stop.wait(120):
    sys.exit("nobody told me to leave")
print("saving because of", attempt.stop.reason, flush=True)
attempt.leave()
"""

# Does not listen.
DEAF = """
import pathlib, signal, sys, time
pathlib.Path(sys.argv[1]).write_text("here")
print("deaf", flush=True)
time.sleep(120)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory whose root for jobs is the default one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


Answer = subprocess.CompletedProcess[str]


def outlast(*arguments: str | Path, **options: Any) -> Answer:
    """Do what a command line says, in the current folder, and wait for its end."""
    return subprocess.run(
        [*OUTLAST, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        **options,
    )


def asked(*arguments: str) -> Any:
    """Return what a reading verb says with --json."""
    answer = outlast(*arguments, "--json")
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@contextlib.contextmanager
def started(*arguments: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start `outlast`; whatever is left of it at the end is killed."""
    with subprocess.Popen(
        [*OUTLAST, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition()` is true, and return it."""
    give_up = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < give_up, f"waited in vain for {what}"
        time.sleep(0.02)
    return found


def write(name: str, code: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(code)


# --- run -----------------------------------------------------------------------------------------


def test_a_script_runs_as_python_would_run_it(here: Path) -> None:
    write("train.py", HELLO)
    done = outlast("run", "--name", "first", "train.py", "--name", "x", "--", "-m", "a b")
    assert done.returncode == 0
    # stdout is the script's alone
    assert sorted(done.stdout.splitlines()) == [
        "hello ['--name', 'x', '--', '-m', 'a b']", "to stderr",
    ]  # fmt: skip
    assert "[outlast]" in done.stderr
    assert "succeeded" in done.stderr
    assert "attempts  1, no restart (1 completed)" in done.stderr
    assert (here / "outlast-jobs/first/spec.json").is_file()
    assert asked("status", "first")["state"] == "succeeded"


def test_a_job_without_a_name_is_named_after_its_script(here: Path) -> None:
    write("code/train_it.py", HELLO)
    assert outlast("run", "code/train_it.py").returncode == 0
    (job,) = asked("list")
    assert job["job"].startswith("train_it-")


def test_a_module_runs_as_python_m_would(here: Path) -> None:
    write("package/__init__.py", "")
    write("package/train.py", "import sys\nfrom package import other\nprint(other.X, sys.argv[1:])")
    write("package/other.py", "X = 'other'")
    done = outlast("run", "-m", "package.train", "-m", "1")
    assert (done.returncode, done.stdout) == (0, "other ['-m', '1']\n")


def test_killed_attempts_are_retried_and_counted(here: Path) -> None:
    write("train.py", MORTAL)
    done = outlast("run", "--name", "a", "--backoff", "0.01s", "train.py", "2")
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["attempt 1", "attempt 2", "attempt 3"]
    assert "killed by SIGKILL, perhaps out of memory" in done.stderr
    assert "attempts  3, 2 restarts (2 killed, 1 completed)" in done.stderr
    outcomes = [one["outcome"] for one in asked("status", "a")["attempts"]]
    assert outcomes == ["killed", "killed", "completed"]


def test_a_crash_loop_ends_when_the_budget_is_spent_and_says_why(here: Path) -> None:
    write("train.py", "raise ConnectionError('too bad')")
    done = outlast("run", "--name", "a", "--backoff", "0.01s", "--max-retries", "2", "train.py")
    assert done.returncode == 1
    assert done.stdout.count("ConnectionError: too bad") == 3
    assert (
        "2 retries are allowed. The last attempt crashed: ConnectionError: too bad" in done.stderr
    )
    assert "outlast logs a" in done.stderr
    assert "outlast resume a" in done.stderr
    assert done.stderr.count("The last attempt crashed: ConnectionError: too bad") == 1


def test_a_script_without_fit_is_reported_as_unprotected(here: Path) -> None:
    write("train.py", "print('done')")
    done = outlast("run", "--name", "a", "train.py")
    assert done.returncode == 0
    assert "nothing was protected: the script did not call outlast's fit or Loop" in done.stderr
    assert "nothing was protected" in outlast("status", "a").stdout
    assert "nothing_protected" in outlast("logs", "a").stdout


def test_a_job_is_stopped_when_its_attempts_have_taken_long_enough(here: Path) -> None:
    write("train.py", PATIENT)
    done = outlast("run", "--name", "a", "--max-duration", "1s", "train.py", str(here / "there"))
    assert done.returncode == 75
    assert "saving because of" in done.stdout
    assert "--max-duration 1 s" in outlast("events", "a").stdout
    assert asked("status", "a")["state"] == "stopped"
    assert outlast("resume", "a").returncode == 75  # it gets the same time again
    assert (here / "there").read_text() == "2"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_an_import_error_is_not_retried(here: Path, code: str, said: str) -> None:
    write("train.py", code)
    done = outlast("run", "train.py")
    assert done.returncode == 3
    assert said in done.stderr
    assert "attempts  1, no restart (1 rejected)" in done.stderr


def test_a_missing_script_creates_no_job(here: Path) -> None:
    done = outlast("run", "train.py")
    assert done.returncode == 2
    assert done.stderr.startswith("outlast: SCRIPT: there is no file 'train.py' in ")
    assert not (here / "outlast-jobs").exists()


def test_without_a_script_the_usage_is_printed(here: Path) -> None:
    done = outlast("run", "--name", "x")
    assert done.returncode == 2
    assert "Missing SCRIPT" in done.stderr


def test_a_taken_name_is_refused_with_the_next_step(here: Path) -> None:
    write("train.py", HELLO)
    assert outlast("run", "--name", "a", "train.py").returncode == 0
    again = outlast("run", "--name", "a", "train.py")
    assert again.returncode == 2
    assert "Resume it with `outlast resume a`" in again.stderr
    assert again.stdout == ""


def test_resume_if_exists_resumes_the_same_script_and_refuses_another(here: Path) -> None:
    write("train.py", MORTAL)
    run = ("run", "--name", "a", "--resume-if-exists", "--max-retries", "0", "train.py")
    codes = [outlast(*run, "1").returncode for _ in range(3)]
    assert codes == [1, 0, 0]
    assert [one["outcome"] for one in asked("status", "a")["attempts"]] == ["killed", "completed"]
    other = outlast(*run, "2")
    assert other.returncode == 2
    assert "job a runs 'train.py 1'. Use the same script and arguments" in other.stderr


@pytest.mark.parametrize("name", ["../x", "a/b", "", "-x", "x" * 101, ".hidden"])
def test_a_name_that_cannot_be_a_folder_is_refused(here: Path, name: str) -> None:
    write("train.py", HELLO)
    done = outlast("run", f"--name={name}", "train.py")
    if name == "":
        assert done.returncode == 0  # as if none was given
        return
    assert done.returncode == 2
    assert "Use letters, digits" in done.stderr
    assert not (here / "outlast-jobs").exists()


def test_an_unwritable_root_is_an_error(here: Path) -> None:
    write("train.py", HELLO)
    write("a-file", "")
    done = outlast("run", "--root", "a-file/jobs", "train.py")
    assert done.returncode == 74
    assert "a-file/jobs" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_root_with_awkward_characters_works(here: Path, weird_root: Path) -> None:
    write("train.py", MORTAL)
    done = outlast("run", "--root", weird_root, "--backoff", "0.01s", "train.py", "1")
    assert done.returncode == 0
    (job,) = asked("list", "--root", str(weird_root))
    assert asked("status", str(weird_root / job["job"]))["attempt"] == 2


def test_options_of_file_and_environment_reach_the_job(here: Path) -> None:
    write("train.py", "import os, sys\nprint(sys.argv[1:], os.environ['COLOUR'])")
    write(
        "job.toml",
        "[job]\nscript = 'train.py'\nargs = ['--lr', 0.1]\nname = 'of-the-file'\n"
        "keep = 5\nsave_every = '7'\nenv = {COLOUR = 'blue'}\n",
    )
    environment = {**os.environ, "OUTLAST_KEEP": "6", "OUTLAST_ROOT": str(here / "elsewhere")}
    done = outlast("run", "--config", "job.toml", "--max-retries", "9", env=environment)
    assert (done.returncode, done.stdout) == (0, "['--lr', '0.1'] blue\n")
    spec = asked("status", "elsewhere/of-the-file")["spec"]
    picked = [spec[name] for name in ("job", "keep", "save_every", "max_retries")]
    assert picked == ["of-the-file", "6", "7", 9]


def test_a_script_on_the_command_line_overrides_the_file(here: Path) -> None:
    write("train.py", HELLO)
    write("job.toml", "script = 'other.py'\nargs = ['x']")
    done = outlast("run", "--config", "job.toml", "train.py", "mine")
    assert "hello ['mine']" in done.stdout


def test_a_closed_output_pipe_stops_nothing(here: Path) -> None:
    write("train.py", "for i in range(20000): print('line', i)")
    with started("run", "--name", "a", "train.py") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 0
    lines = outlast("logs", "--output", "a").stdout.splitlines()
    assert lines == [f"line {i}" for i in range(20000)]
    with started("logs", "--output", "a") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(PATIENCE), process.stderr.read()) == (0, "")


# --- signals -------------------------------------------------------------------------------------


def test_ctrl_c_once_saves_and_stops_and_the_job_can_be_resumed(here: Path) -> None:
    write("train.py", PATIENT)
    with started("run", "--name", "a", "train.py", "there") as process:
        until(Path("there").exists, "the attempt")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert "saving because of" in out
    assert "outlast resume a" in err
    assert asked("status", "a")["state"] == "stopped"
    write("train.py", HELLO)
    assert outlast("resume", "a").returncode == 0
    outcomes = [one["outcome"] for one in asked("status", "a")["attempts"]]
    assert outcomes == ["stopped", "completed"]


def test_ctrl_c_twice_stops_immediately(here: Path) -> None:
    write("train.py", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
          "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal(signal.SIGUSR1, "
          "signal.SIG_IGN)\n" + DEAF)  # fmt: skip
    with started("run", "--name", "a", "--grace", "1h", "train.py", "there") as process:
        until(Path("there").exists, "the attempt")
        process.send_signal(signal.SIGINT)
        until(lambda: asked("status", "a")["state"] == "stopping", "the first to be seen")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert asked("status", "a")["state"] == "stopped"


def test_a_terminated_supervisor_releases_the_job(here: Path) -> None:
    write("train.py", PATIENT)
    with started("run", "--name", "a", "train.py", "there") as process:
        until(Path("there").exists, "the attempt")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert asked("status", "a")["state"] == "pending"
    write("train.py", HELLO)
    assert outlast("resume", "a").returncode == 0


def test_the_job_of_a_killed_supervisor_can_be_resumed(here: Path) -> None:
    write("train.py", PATIENT)
    with started("run", "--name", "a", "train.py", "there") as process:
        until(Path("there").exists, "the attempt")
        process.kill()
        process.communicate(timeout=PATIENCE)
    write("train.py", HELLO)
    assert outlast("resume", "a").returncode == 0
    assert asked("status", "a")["state"] == "succeeded"


# --- submit, stop, resume ------------------------------------------------------------------------


def submit(*arguments: str) -> dict[str, Any]:
    """Submit a job; return what `--json` says of it."""
    answer = outlast("submit", "--json", *arguments)
    assert answer.returncode == 0, answer.stderr
    sent: dict[str, Any] = json.loads(answer.stdout)
    return sent


def test_a_submitted_job_outlives_the_command_and_can_be_followed_and_stopped(here: Path) -> None:
    write("train.py", PATIENT)
    sent = submit("--name", "a", "train.py", "there")
    assert sent["url"] == str(here / "outlast-jobs/a")
    until(Path("there").exists, "the attempt")
    assert os.getsid(sent["pid"]) == sent["pid"]  # it has left this terminal's session
    assert asked("status", "a")["owner"]["pid"] == sent["pid"]
    with started("logs", "-f", "--output", "a") as followed:
        assert followed.stdout is not None
        assert followed.stdout.readline() == "waiting\n"
        stopped = outlast("stop", "a", "--wait", "100s", "--json")
        assert (stopped.returncode, json.loads(stopped.stdout)["state"]) == (0, "stopped")
        out, _ = followed.communicate(timeout=PATIENCE)
    assert followed.returncode == 0
    assert out.startswith("saving because of")


def test_stop_now_kills_a_script_that_ignores_signals(here: Path) -> None:
    ignore = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    write("train.py", ignore + DEAF)
    submit("--name", "a", "--grace", "1h", "train.py", "there")
    until(Path("there").exists, "the attempt")
    asking = outlast("stop", "a")
    assert (asking.returncode, "saving and leaving" in asking.stdout) == (0, True)
    waited = outlast("stop", "a", "--wait", "0s")
    assert waited.returncode == 75
    assert outlast("stop", "a", "--now", "--wait", "100s").returncode == 0
    assert asked("status", "a")["state"] == "stopped"


def test_a_job_that_somebody_supervises_is_refused(here: Path) -> None:
    write("train.py", PATIENT)
    sent = submit("--name", "a", "train.py", "there")
    until(Path("there").exists, "the attempt")
    refused = outlast("resume", "a")
    assert refused.returncode == 5
    assert f"process {sent['pid']} on " in refused.stderr
    assert outlast("stop", "a", "--wait", "100s").returncode == 0


def test_resume_detached(here: Path) -> None:
    write("train.py", MORTAL)
    assert outlast("run", "--name", "a", "--max-retries", "0", "train.py", "1").returncode == 1
    sent = outlast("resume", "--detach", "--json", "a")
    assert sent.returncode == 0
    assert json.loads(sent.stdout)["pid"] is not None
    assert outlast("logs", "-f", "a").returncode == 0  # comes back at its end
    assert asked("status", "a")["state"] == "succeeded"


def test_a_succeeded_job_is_not_resumed(here: Path) -> None:
    write("train.py", HELLO)
    outlast("run", "--name", "a", "train.py")
    again = outlast("resume", "a")
    assert (again.returncode, again.stdout) == (0, "")
    assert "a has already succeeded" in again.stderr
    assert asked("status", "a")["attempt"] == 1
    stopped = outlast("stop", "a")
    assert (stopped.returncode, "succeeded" in stopped.stdout) == (0, True)


# --- on a terminal -------------------------------------------------------------------------------


def on_a_terminal(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Do what a command line says on a terminal of its own; return exit code and screen."""
    pid, screen = pty.fork()
    if pid == 0:
        try:
            os.environ.update({"TERM": "xterm-256color", "COLUMNS": "120", **(environment or {})})
            os.execv(OUTLAST[0], [*OUTLAST, *arguments])
        finally:
            os._exit(99)
    shown = b""
    with contextlib.suppress(OSError):  # the end of the child is an EIO here
        while piece := os.read(screen, 65536):
            shown += piece
    os.close(screen)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown.decode()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_terminal_shows_one_line_below_the_scrolling_output(here: Path) -> None:
    write("train.py", MORTAL)
    code, screen = on_a_terminal("run", "--name", "a", "--backoff", "0.01s", "train.py", "1")
    assert code == 0
    assert "\x1b[?25l" in screen  # the cursor hides
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")  # and is given back
    assert screen.index("attempt 1") < screen.index("killed by SIGKILL") < screen.index("succeeded")
    last = screen.rpartition("\x1b[2K")[2]  # what stays below the line that was taken away
    assert "attempts  2, 1 restart" in last


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_dumb_terminal_has_plain_lines(here: Path) -> None:
    write("train.py", HELLO)
    code, screen = on_a_terminal("run", "train.py", environment={"TERM": "dumb"})
    assert code == 0
    assert "\x1b" not in screen
    assert "hello []" in screen
