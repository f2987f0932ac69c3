"""Trainings on real digits, and one untouched one of each script to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.jobs import Training, write_digits
from tests.acceptance.plain import Make, PlainJob

SAVE = "--save-every 7,epoch"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's handwritten digits as the scripts read them."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    write_digits(path)
    return path


@pytest.fixture
def train(tmp_path: Path, digits: Path) -> Iterator[Callable[..., Training]]:
    """Return a function that makes a job of a script; it is not started yet."""
    made: list[Training] = []

    def train(script: str, **options: Any) -> Training:
        folder = tmp_path / f"training-{len(made)}"
        made.append(Training(folder, script, digits, **{"options": SAVE, **options}))
        return made[-1]

    yield train
    for training in made:
        training.close()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes a job of a script without TensorFlow."""
    with ExitStack() as stack:
        yield lambda code, **options: stack.enter_context(PlainJob(tmp_path, code, **options))


@pytest.fixture(scope="session")
def untouched(
    tmp_path_factory: pytest.TempPathFactory, digits: Path
) -> Iterator[Callable[[str], Training]]:
    """Return a function that gives a script's training as it is when nobody touches it."""
    made: dict[str, Training] = {}

    def untouched(script: str) -> Training:
        if script not in made:
            folder = tmp_path_factory.mktemp("untouched")
            # One of them under the plain command line, as a user's: forks come to the same.
            forked = script != "mlp"
            made[script] = Training(folder, script, digits, options=SAVE, forked=forked)
            made[script].start()
            made[script].end()
        return made[script]

    yield untouched
    for training in made.values():
        training.close()
