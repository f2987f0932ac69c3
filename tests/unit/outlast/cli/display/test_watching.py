"""Display of a running job: plain lines, and the line at the bottom of a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from outlast.cli.display.live_line import LiveLine
from outlast.cli.display.output_lines import Lines
from outlast.cli.display.plain_lines import Plain
from outlast.cli.display.terminal_observer import TerminalObserver
from outlast.job.heartbeat import Beat
from outlast.job.lifecycle import Job, State
from outlast.job.outcome import Outcome
from outlast.job.process_identity import Identity

OWNER = Identity(host="here", pid=1, boot_id="")
RUNNING = Job(state=State.RUNNING, attempt=1, in_flight=True, owner=OWNER)
CRASHED = RUNNING.evolve(
    state=State.WAITING, in_flight=False, outcome=Outcome.CRASHED, reason="exit code 1", delay=2.0
)
WARNING = {"time": 0.0, "level": "warning", "event": "save_failed", "attempt": 1}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def beat(step: int, **more: Any) -> Beat:
    return Beat(attempt=1, phase=0, step=step, total_steps=90, logs={"loss": 0.5}, **more)


class Shown:
    """A plain watcher with its two streams."""

    def __init__(self) -> None:
        self.out, self.err, self.clock = io.BytesIO(), io.StringIO(), Clock()
        self.plain = Plain(out=self.out, err=self.err, clock=self.clock)

    @property
    def said(self) -> list[str]:
        """What was said, without mark and time."""
        return [line.split(" ", 2)[2] for line in self.err.getvalue().splitlines()]


def test_a_state_is_shown_once_and_without_the_owner() -> None:
    shown = Shown()
    for job in (RUNNING, RUNNING, CRASHED):
        shown.plain.on_state(job)
    assert shown.said == [
        "running: attempt 1",
        "waiting 2.0 s before attempt 2 (attempt 1 crashed, exit code 1)",
    ]


def test_progress_is_shown_every_ten_seconds_and_at_new_checkpoints() -> None:
    shown = Shown()
    steps = []
    for step in range(1, 31):
        shown.clock.now += 1
        saved = f"at {step // 7 * 7}" if step >= 7 else None
        shown.plain.on_beat(beat(step, last_checkpoint=saved))
        steps = [int(said.split("step ")[1].split("/")[0]) for said in shown.said]
    assert steps == [7, 14, 21, 28]


def test_checkpoints_without_pause_do_not_flood() -> None:
    shown = Shown()
    for step in range(1, 101):
        shown.clock.now += 0.1
        shown.plain.on_beat(beat(step, last_checkpoint=f"at {step}"))
    assert 9 <= len(shown.said) <= 10


def test_a_long_silent_training_still_shows_its_progress() -> None:
    shown = Shown()
    for step in range(1, 26):
        shown.clock.now += 1
        shown.plain.on_beat(beat(step))
    assert len(shown.said) == 2


def test_a_resumed_attempt_shows_its_checkpoint() -> None:
    shown = Shown()
    restored = beat(8, restored_from="00-8", last_checkpoint="00-8", last_checkpoint_at_step=1200)
    shown.plain.on_beat(restored)
    shown.plain.on_beat(restored)
    assert shown.said == ["attempt 1 resumed from 00-8 (step 1,200)"]


def test_output_goes_to_stdout_unchanged_and_messages_to_stderr() -> None:
    shown = Shown()
    shown.plain.on_output(b"a\xff\rb")
    shown.plain.say("hello")
    assert shown.out.getvalue() == b"a\xff\rb"
    assert shown.said == ["hello"]


@pytest.mark.parametrize(
    ("row", "shown_at_all"),
    [
        (WARNING, True),
        ({**WARNING, "level": "error", "event": "attempt_stalled"}, True),
        ({**WARNING, "level": "info"}, False),
        ({**WARNING, "level": "debug"}, False),
        ({**WARNING, "level": "error", "event": "attempt_ended"}, False),
    ],
)
def test_trouble_in_the_log_is_shown_unless_the_state_says_it(
    row: dict[str, Any], shown_at_all: bool
) -> None:
    shown = Shown()
    shown.plain.on_log(row)
    assert (row["event"] in shown.err.getvalue()) is shown_at_all


def test_a_closed_pipe_stops_nothing() -> None:
    class Gone(io.BytesIO):
        def write(self, data: Any) -> int:
            raise BrokenPipeError

    err = io.StringIO()
    plain = Plain(out=Gone(), err=err)
    plain.on_output(b"x")
    plain.on_output(b"y")
    plain.say("still here")
    assert "still here" in err.getvalue()


# --- the line ------------------------------------------------------------------------------------


def live(width: int = 120) -> tuple[LiveLine, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, highlight=False)
    return LiveLine(console), screen


def line(watcher: LiveLine, width: int = 120) -> str:
    """Return the line as it stands, without colours."""
    screen = io.StringIO()
    Console(file=screen, width=width).print(watcher.render())
    told = screen.getvalue().splitlines()
    assert len(told) == 1
    return told[0]


@pytest.fixture
def watcher() -> Any:
    made, _ = live()
    yield made
    made.close()


def test_the_line_shows_everything(watcher: LiveLine) -> None:
    assert "starting" in line(watcher)
    watcher.on_state(RUNNING)
    watcher.on_beat(beat(45, epochs=3, steps_per_second=9.0, last_checkpoint_at_step=40, epoch=1))
    told = line(watcher)
    for part in ("attempt 1", "epoch 2/3", "step 45/90", "loss 0.5", "9.0 steps/s", "ETA 5.0 s"):
        assert part in told
    assert told.rstrip().endswith("saved at 40")


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (RUNNING.evolve(state=State.PENDING), "attempt 1 is starting"),
        (RUNNING.evolve(state=State.STOPPING, stop="save"), "saving and stopping"),
        (RUNNING.evolve(state=State.STOPPING, stop="now"), "being killed"),
        (CRASHED, "attempt 2 in "),
    ],
)
def test_the_line_shows_the_state(watcher: LiveLine, job: Job, said: str) -> None:
    watcher.on_state(job)
    assert said in line(watcher)


def test_activities_other_than_training_are_shown(watcher: LiveLine) -> None:
    watcher.on_state(RUNNING)
    watcher.on_beat(beat(45, activity="validating"))
    assert "attempt 1 validating" in line(watcher)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 109, 110, 200])
def test_the_line_is_never_wider_than_the_terminal(width: int) -> None:
    made, _ = live(width)
    made.on_state(RUNNING)
    logs = {"loss": 0.123456, "a_metric_with_a_long_name": 0.5, "another_one": 0.25}
    made.on_beat(
        Beat(attempt=1, phase=0, step=4, total_steps=10**6, epochs=7, logs=logs,
             steps_per_second=3.0, last_checkpoint_at_step=3)
    )  # fmt: skip
    assert len(line(made, width)) <= width
    made.close()


def test_metrics_give_way_to_the_rest_on_a_narrow_terminal() -> None:
    made, _ = live(90)
    made.on_state(RUNNING)
    logs = {"loss": 0.123456, "a_metric_with_a_long_name": 0.5, "another_one": 0.25}
    made.on_beat(Beat(attempt=1, phase=0, step=4, logs=logs, last_checkpoint_at_step=3))
    told = line(made, 90)
    assert "loss 0.1235" in told
    assert "saved at 3" in told
    assert "another_one" not in told
    made.close()


def test_output_scrolls_above_and_the_line_is_gone_at_the_end() -> None:
    made, screen = live()
    made.on_state(RUNNING)
    made.on_output(b"first\nsec")
    assert "sec\n" not in screen.getvalue()
    made.on_output(b"ond\nrest")
    made.close()
    told = screen.getvalue()
    assert told.index("first") < told.index("second") < told.index("rest")
    assert told.endswith("\x1b[1A\x1b[2K") or told.rstrip().endswith("\x1b[2K")
    assert told.count("\x1b[?25l") == told.count("\x1b[?25h") == 1


def test_the_end_of_an_attempt_stays_readable_above_the_line() -> None:
    made, screen = live()
    made.on_state(RUNNING)
    made.on_output(b"unfinished")
    made.on_state(CRASHED)
    told = screen.getvalue()
    assert told.index("unfinished") < told.index("attempt 1 crashed, exit code 1")
    made.close()


def test_text_that_looks_like_markup_is_shown_as_it_is() -> None:
    made, screen = live()
    made.on_output(b"[bold]x[/bold] :smile:\n")
    assert "[bold]x[/bold] :smile:" in screen.getvalue()
    made.close()


def test_both_are_observers() -> None:
    assert issubclass(Plain, TerminalObserver)
    assert issubclass(LiveLine, TerminalObserver)


# --- pieces of text ------------------------------------------------------------------------------


def shown(*pieces: bytes) -> list[str]:
    lines = Lines()
    return [line for piece in pieces for line in lines.feed(piece)] + lines.rest()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"a\nb"], ["a", "b"]),
        ([b"a", b"b\n", b"\n"], ["ab", ""]),
        ([b"10%\r20%\r", b"30%\n"], ["30%"]),
        ([b"a\r", b"\nb\n"], ["a", "b"]),
        ([b"\xc3", b"\xa9\n"], ["é"]),
        ([b"\xff\n"], ["\ufffd"]),
        ([b""], []),
    ],
)
def test_partial_lines_are_joined(pieces: list[bytes], expected: list[str]) -> None:
    assert shown(*pieces) == expected


@given(st.text("ab\r\né"), st.data())
def test_lines_do_not_depend_on_how_output_is_cut(text: str, data: st.DataObject) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert shown(*pieces) == shown(whole)
