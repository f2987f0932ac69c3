"""Every kind of data trains as in Keras, and resumes exactly after a crash at any step."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.data_kinds import BEYOND_KERAS, GRAINS_WAY, KERAS_INSTEAD, KINDS, Kind, of
from tests.support.data_samples import X, grain_loader, torch_loader
from tests.support.training_harness import (
    Death,
    End,
    assert_same_end,
    dying_at,
    first_difference,
    keras_fit,
    stopping_at,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*ran out of data", "ignore:`shuffle=True`")

_untouched: dict[str, End] = {}


# Of module scope: the tests of one kind follow each other, and share the untouched training.
@pytest.fixture(scope="module", params=KINDS)
def name(request: pytest.FixtureRequest, require_package: Callable[[str], None]) -> str:
    needed = KINDS[request.param].needs
    if needed is not None:
        require_package(needed)
    return str(request.param)


@pytest.fixture
def kind(name: str) -> Kind:
    return KINDS[name]


@pytest.fixture
def untouched(name: str, tmp_path_factory: pytest.TempPathFactory) -> End:
    """An uninterrupted training of this kind."""
    if name not in _untouched:
        folder = tmp_path_factory.mktemp("untouched")
        _untouched[name] = train(KINDS[name].script(), folder)
        _untouched[name].model = None
    return _untouched[name]


def events(folder: Path, attempt: int) -> list[dict[str, Any]]:
    lines = (folder / f"attempts/{attempt:04d}/log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def step_counter(end: End) -> str:
    """Return the name of the optimizer's counter. Keras 3.12 says SGD where 3.15 says sgd."""
    (found,) = (name for name in end.state if name.endswith("/iteration"))
    return found


def without(end: End, name: str) -> dict[str, bytes]:
    return {key: value for key, value in end.state.items() if key != name}


def test_it_trains_as_keras_does(name: str, kind: Kind, untouched: End) -> None:
    if name in BEYOND_KERAS:
        pytest.skip("Keras takes no iterators but generators")
    reference = keras_fit(KINDS[KERAS_INSTEAD.get(name, name)].script())
    # Of data of unknown size, Keras counts the step that finds no more of it.
    counter = "" if kind.dropout else step_counter(reference)
    assert first_difference(without(reference, counter), without(untouched, counter)) is None
    assert reference.history == untouched.history
    assert reference.epoch == untouched.epoch
    assert reference.params == untouched.params


def test_it_resumes_exactly(name: str, kind: Kind, untouched: End, tmp_path: Path) -> None:
    steps = [row["step"] for row in untouched.rows if row["kind"] == "step"]
    epoch = sum(row["epoch"] == 0 for row in untouched.rows if row["kind"] == "step")
    script, folder = kind.script(), tmp_path / "job"
    for step in (3, epoch):  # in the midst of an epoch; between its last batch and its end
        with stopping_at(step), pytest.raises(SystemExit):
            train(script, folder, save_every="2,epoch")
    if steps[-1] > epoch:
        with dying_at(epoch + 2), pytest.raises(Death):
            train(script, folder, save_every="2,epoch")
    touched = train(script, folder, save_every="2,epoch")
    assert_same_end(touched, untouched)
    found = next(row for row in events(folder, 2) if row["event"] == "resumed")
    assert found["step"] in (3, 4)  # arrays are trained several batches a call
    assert found["data"].startswith(kind.way)
    doubts = [row["why"] for row in events(folder, 1) if row["event"] == "inexact_data_found"]
    assert bool(doubts) == bool(kind.doubt)
    assert all(kind.doubt in why for why in doubts if kind.doubt)


def assert_resumed(kind: Kind, folder: Path, at: int) -> list[dict[str, Any]]:
    """Stop a training of this kind once, compare its end, and return the log of the resume."""
    script = kind.script()
    untouched = train(script, folder / "untouched")
    with stopping_at(at), pytest.raises(SystemExit):
        train(script, folder / "job")
    assert_same_end(train(script, folder / "job"), untouched)
    return events(folder / "job", 2)


def test_torch_workers_that_outlive_a_pass(
    tmp_path: Path, require_package: Callable[[str], None]
) -> None:
    """The workers' random state is lost, which the log says. The order of samples is not lost."""
    require_package("torch")
    kind = of(
        lambda: torch_loader(shuffle=True, seed=4, num_workers=2, persistent_workers=True),
        "skip within the pass",
        epochs=2,
    )
    assert_resumed(kind, tmp_path, 9)
    log = events(tmp_path / "job", 1)  # it is said once a job
    why = next(row["why"] for row in log if row["event"] == "inexact_data_found")
    assert why.startswith("persistent_workers=True")
    gc.collect()  # the workers live as long as the loader


def test_grains_worker_processes(tmp_path: Path, require_package: Callable[[str], None]) -> None:
    """With worker processes, Keras fails on a grain.DataLoader: its adapter is not picklable."""
    require_package("grain")
    assert_resumed(of(lambda: grain_loader(workers=2), GRAINS_WAY, epochs=1), tmp_path, 3)


@pytest.mark.parametrize("yielded", ["dict", "tensor"])
def test_what_a_torch_loader_yields_is_checked(
    tmp_path: Path, require_package: Callable[[str], None], yielded: str
) -> None:
    """Keras rejects both kinds, with an obscure error."""
    require_package("torch")
    samples = [{"x": x} for x in X] if yielded == "dict" else X
    kind = of(lambda: torch_loader(samples), "")
    with pytest.raises(TypeError, match=r"must yield \(inputs,\), \(inputs, targets\)"):
        train(kind.script(), tmp_path)
