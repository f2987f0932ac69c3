"""`Loop`: hand-written trainings survive and end as they do without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.loop_harness import LoopEnd, assert_as_plain, assert_same_loop, run, run_plain
from tests.support.loop_zoo import PROGRAMS, on_batches
from tests.support.training_harness import Death, dying_at, rows, stopping_at

OTHERS = [name for name, program in PROGRAMS.items() if program is not on_batches]
_untouched: dict[str, LoopEnd] = {}


@pytest.fixture
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoopEnd]:
    """Return a function that runs a program's training without interruption."""

    def untouched(name: str) -> LoopEnd:
        if name not in _untouched:
            _untouched[name] = run(PROGRAMS[name], tmp_path_factory.mktemp("untouched"))
        return _untouched[name]

    return untouched


@pytest.fixture
def of_batches(untouched: Callable[[str], LoopEnd]) -> LoopEnd:
    return untouched("train_on_batch")


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_ends_as_the_plain_loop(name: str, untouched: Callable[[str], LoopEnd]) -> None:
    assert_as_plain(untouched(name), run_plain(PROGRAMS[name]))


def test_a_kill_at_each_step_in_turn(of_batches: LoopEnd, tmp_path: Path) -> None:
    """It saves at every second step, so a resume repeats one step or none."""
    for step in range(1, of_batches.steps + 1):
        with pytest.raises(Death), dying_at(step):
            run(on_batches, tmp_path, save_every="2,epoch")
    assert_same_loop(of_batches, run(on_batches, tmp_path, save_every="2,epoch"))


def test_a_stop_at_each_step_in_turn_loses_none(of_batches: LoopEnd, tmp_path: Path) -> None:
    for step in range(1, of_batches.steps + 1):
        with pytest.raises(SystemExit) as left, stopping_at(step):
            run(on_batches, tmp_path, save_every="never")
        assert left.value.code == 75
        found = [row["step"] for row in rows(tmp_path) if row["kind"] == "step"]
        assert found == [*range(1, step + 1)]
    assert_same_loop(of_batches, run(on_batches, tmp_path))


@pytest.mark.parametrize("name", OTHERS)
def test_kills_and_stops_in_every_kind_of_loop(
    name: str, untouched: Callable[[str], LoopEnd], tmp_path: Path
) -> None:
    """Within an epoch, after its last step, and in the next epoch, with repeated steps."""
    program, whole = PROGRAMS[name], untouched(name)
    epoch = whole.steps // 3
    for how, step in ((stopping_at, 2), (dying_at, epoch), (dying_at, epoch + 2)):
        with pytest.raises((Death, SystemExit)), how(step):
            run(program, tmp_path, save_every="3")
    assert_same_loop(whole, run(program, tmp_path, save_every="3"))
