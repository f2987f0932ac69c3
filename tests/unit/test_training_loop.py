"""`Loop`: hand-written trainings come to what they come to without it, and survive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loop_harness import LoopEnd, Program, assert_as_plain, assert_same_loop, run, run_plain
from tests.loop_zoo import PROGRAMS, on_batches
from tests.training_harness import Death, dying_at, rows, stopping_at

_untouched: dict[str, LoopEnd] = {}


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> Program:
    return PROGRAMS[request.param]


@pytest.fixture
def untouched(program: Program, tmp_path_factory: pytest.TempPathFactory) -> LoopEnd:
    """The program's training as it is when nobody touches it."""
    name = program.__name__
    if name not in _untouched:
        _untouched[name] = run(program, tmp_path_factory.mktemp("untouched"))
    return _untouched[name]


def test_it_comes_to_what_the_plain_loop_comes_to(program: Program, untouched: LoopEnd) -> None:
    assert_as_plain(untouched, run_plain(program))


@pytest.fixture(scope="module")
def of_batches(tmp_path_factory: pytest.TempPathFactory) -> LoopEnd:
    return run(on_batches, tmp_path_factory.mktemp("untouched"))


def test_a_death_at_each_step_in_turn(of_batches: LoopEnd, tmp_path: Path) -> None:
    """Saved at every second step, so that one step is done again, or none."""
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


def test_deaths_and_stops_in_every_kind_of_loop(
    program: Program, untouched: LoopEnd, tmp_path: Path
) -> None:
    """In an epoch's midst, after its last step, in the next one; with steps done again."""
    epoch = untouched.steps // 3
    for how, step in ((stopping_at, 2), (dying_at, epoch), (dying_at, epoch + 2)):
        with pytest.raises((Death, SystemExit)), how(step):
            run(program, tmp_path, save_every="3")
    assert_same_loop(untouched, run(program, tmp_path, save_every="3"))
