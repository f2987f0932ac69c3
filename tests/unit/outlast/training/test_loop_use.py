"""Use of a `Loop`: its data, its ends, its logs and output, and mistakes refused by name."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from outlast import Loop, fit
from outlast.job import spec as specs
from outlast.job.spec import JobSpec
from outlast.training.errors import Diverged, StateMismatch
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.data_kinds import KINDS
from tests.support.loop_harness import MakeLoop, Program, assert_same_loop, of_part, run
from tests.support.training_harness import Death, begin_process, dying_at, process, stopping_at

X = np.arange(10, dtype="float32")[:, None]


def ids(folder: Path) -> list[CheckpointId]:
    return CheckpointStore(open_storage(folder)).ids()


def logged(folder: Path, event: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("attempts/*/log.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in found if record["event"] == event]


def adding(body: Callable[[Any, Any, dict[str, Any]], None], **options: Any) -> Program:
    """A training without a model. `body(loop, batch, state)` is one step."""

    def program(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
        state = {"w": np.zeros(2), "notes": []}
        loop = make(state, X, **{"batch_size": 4, "epochs": 3, "seed": 1, **options})
        for batch in loop:
            body(loop, batch, state)
        return loop, state

    return program


def note(loop: Any, batch: Any, state: dict[str, Any]) -> None:
    state["w"][0] += float(np.mean(batch))
    state["notes"].append((loop.epoch, loop.batch, loop.step))
    loop.log(w=state["w"][0])


# --- every kind of data --------------------------------------------------------------------------


def digest(batch: Any) -> str:
    leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
    dense = [leaf.to_tensor() if isinstance(leaf, tf.RaggedTensor) else leaf for leaf in leaves]
    return hashlib.sha1(b"".join(np.asarray(leaf).tobytes() for leaf in dense)).hexdigest()


def of_kind(name: str) -> Program:
    def program(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
        options = KINDS[name].make()
        data = tuple(options.pop(n) for n in ("x", "y", "sample_weight") if n in options)
        seen: list[str] = []
        loop = make({"seen": seen}, data, epochs=3, shuffle=False, **options)
        for batch in loop:
            seen.append(digest(batch))
            loop.log(samples=keras.tree.flatten(batch)[0].shape[0])
        return loop, {"seen": seen}

    return program


def by_hand(name: str) -> list[str]:
    """Return the digests of the batches of three epochs, computed from the data directly."""
    options = KINDS[name].make()
    data = tuple(options.pop(n) for n in ("x", "y", "sample_weight") if n in options)
    steps = options.get("steps_per_epoch")
    if "batch_size" in options:
        size, data = options["batch_size"], keras.tree.lists_to_tuples(data)
        arrays = tf.data.Dataset.from_tensor_slices(data)
        passes: Iterator[Any] = itertools.chain.from_iterable(
            arrays.batch(size) for _ in itertools.count()
        )
        length = -(-len(keras.tree.flatten(data)[0]) // size)
        return [digest(batch) for batch in itertools.islice(passes, 3 * length)]
    (x,) = data
    if steps:
        return [digest(batch) for batch in itertools.islice(iter(x), 3 * steps)]
    if isinstance(x, keras.utils.PyDataset):
        return [digest(x[i]) for _ in range(3) for i in range(x.num_batches)]
    return [digest(batch) for _ in range(3) for batch in x]


DATA = [
    "tensors", "list", "dict", "nested", "tf.data", "tf.data repeat", "tf.data of unknown size",
    "tf.data cache", "PyDataset", "PyDataset threads", "PyDataset endless", "generator endless",
    "generator weighted", "generator dicts", "iterator get_state", "iterator state_dict",
]  # fmt: skip
# Whose batches Keras' own rules decide, or chance, so that only the resume can be compared.
OTHERS = [
    "arrays with steps_per_epoch", "ragged tensor", "tf.data shuffle", "tf.data random map",
    "PyDataset reshuffled", "torch shuffle", "grain",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*ran out of data", "ignore:`shuffle=True`")
@pytest.mark.parametrize("name", DATA + OTHERS)
def test_every_kind_of_data_is_yielded_and_resumed(name: str, tmp_path: Path) -> None:
    needed = KINDS[name].needs
    if needed is not None:
        pytest.importorskip(needed, reason=f"{needed} is an optional package and not installed")
    program = of_kind(name)
    whole = run(program, tmp_path / "whole")
    if name in DATA:
        begin_process()
        assert sum(row["kind"] == "step" for row in whole.rows) == len(by_hand(name))
        assert whole.state == {"seen": of_part(by_hand(name))}
    epoch = sum(row["kind"] == "step" and row["epoch"] == 0 for row in whole.rows)
    for how, step in ((stopping_at, 2), (stopping_at, epoch), (dying_at, epoch + 2)):
        with pytest.raises((Death, SystemExit)), how(step):
            run(program, tmp_path / "parts", save_every="2")
    assert_same_loop(whole, run(program, tmp_path / "parts", save_every="2"))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (X, (tf.Tensor, None)),
        ((X,), (tuple, 1)),
        ((X, X), (tuple, 2)),
        ([X, X, X[:, 0]], (tuple, 3)),
        ({"a": X, "b": X}, (dict, 2)),
        (({"a": X}, X), (tuple, 2)),
        (tf.data.Dataset.from_tensor_slices(X).batch(5), (tf.Tensor, None)),
        (tf.data.Dataset.from_tensor_slices({"a": X}).batch(5), (dict, 1)),
    ],
)
def test_batches_have_the_structure_of_the_data(
    data: Any, kind: tuple[type, int | None], tmp_path: Path
) -> None:
    with process(tmp_path):
        for batch in Loop({"n": []}, data, job_dir=tmp_path, verbose=0):
            assert isinstance(batch, kind[0])
            assert kind[1] is None or len(batch) == kind[1]


def test_without_data_it_yields_step_numbers(tmp_path: Path) -> None:
    def program(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
        seen: list[int] = []
        loop = make({"seen": seen}, steps_per_epoch=3, epochs=2)
        for step in loop:
            assert step == loop.step
            seen.append(step)
        assert seen == [0, 1, 2, 3, 4, 5]
        return loop, {"seen": seen}

    whole = run(program, tmp_path / "whole")
    with pytest.raises(SystemExit), stopping_at(4):
        run(program, tmp_path / "parts")
    assert_same_loop(whole, run(program, tmp_path / "parts"))


# --- control flow within the body ----------------------------------------------------------------


def nested(loop: Any, batch: Any, state: dict[str, Any]) -> None:
    """A body with nested loops, `try`, and an end of the epoch that leaves a note."""
    if loop.batch == 0:
        state["notes"].append(f"begin {loop.epoch}")
    for _ in range(2):
        for value in np.asarray(batch).ravel():
            if value % 3 == 0:
                continue
            try:
                state["w"][0] += 1 / (value % 2)
            except ZeroDivisionError:
                state["w"][1] += 1
    if loop.last_batch:
        state["notes"].append(f"end {loop.epoch}")
        loop.log_epoch(ended=loop.epoch)
    with contextlib.suppress(ValueError):
        raise ValueError
    loop.log(w=state["w"][0])


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_events_of_an_epoch_are_neither_lost_nor_repeated(tmp_path: Path) -> None:
    program = adding(nested)
    whole = run(program, tmp_path / "whole")
    for step in range(1, 10):
        how = dying_at if step % 2 else stopping_at
        with pytest.raises((Death, SystemExit)), how(step):
            run(program, tmp_path / "parts", save_every="2")
    parts = run(program, tmp_path / "parts")
    assert_same_loop(whole, parts)
    assert parts.history["ended"] == [0.0, 1.0, 2.0]
    found = whole.state["notes"]
    assert found == of_part([f"{what} {e}" for e in range(3) for what in ("begin", "end")])


def test_continue_and_enumerate_work_as_in_any_loop(tmp_path: Path) -> None:
    def program(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
        notes: list[Any] = []
        loop = make({"notes": notes}, X, batch_size=4, epochs=2, shuffle=False)
        for i, batch in enumerate(loop):
            if loop.batch == 1:
                continue  # counts as a step that logged nothing
            notes.append(float(batch[0, 0]))
            loop.log(i=loop.step)
            assert i <= loop.step
        return loop, {"notes": notes}

    whole = run(program, tmp_path / "whole")
    assert whole.state["notes"] == of_part([0.0, 8.0, 0.0, 8.0])
    assert whole.history == {"i": [(0 * 4 + 2 * 2) / 6, (3 * 4 + 5 * 2) / 6]}
    with pytest.raises(Death), dying_at(4):
        run(program, tmp_path / "parts", save_every=1)
    assert_same_loop(whole, run(program, tmp_path / "parts", save_every=1))


# --- leaving it ----------------------------------------------------------------------------------


def leave_by_break(loop: Loop, w: Any) -> None:
    for batch in loop:
        w += float(batch[0, 0])
        if loop.step == 4:
            break


def leave_by_error(loop: Loop, w: Any) -> None:
    for batch in loop:
        w += float(batch[0, 0])
        if loop.step == 4:
            raise ArithmeticError("of the body's own")


def to_the_end(loop: Loop, w: Any) -> None:
    for batch in loop:
        w += float(batch[0, 0])


def begin(folder: Path, body: Callable[[Loop, Any], None], **options: Any) -> tuple[Loop, Any]:
    begin_process()
    w = np.zeros(1)
    options = {"batch_size": 2, "epochs": 2, "save_every": 2, "verbose": 0, **options}
    loop = Loop({"w": w}, X, job_dir=folder, **options)
    body(loop, w)
    return loop, w


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_error])
def test_a_loop_left_early_resumes_from_its_last_checkpoint(leave: Any, tmp_path: Path) -> None:
    with process(tmp_path / "whole"):
        whole = begin(tmp_path / "whole", to_the_end)
    folder = tmp_path / "parts"
    expected = pytest.raises(ArithmeticError) if leave is leave_by_error else process(folder)
    with process(folder), expected:
        begin(folder, leave)
    assert [found.step for found in ids(folder)] == [0, 2, 4]
    CheckpointStore(open_storage(folder)).load(ids(folder)[-1])  # raises when it is damaged
    with process(folder):
        loop, w = begin(folder, to_the_end)
    assert (w == whole[1]).all()
    assert loop.history.history == whole[0].history.history
    (record,) = logged(folder, "phase_abandoned")
    assert record["level"] == "warning"
    assert [r["step"] for r in logged(folder, "resumed")] == [4]


def test_a_phase_after_one_that_an_error_in_the_body_ended_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input((1,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    with process(tmp_path):
        with pytest.raises(ArithmeticError):
            begin(tmp_path, leave_by_error)
        with pytest.raises(UsageError, match=r"phase 0 was left by an error.*loop\.stop\(\)"):
            begin(tmp_path, to_the_end)
        with pytest.raises(UsageError, match="phase 0 was left"):
            fit(model, X, X, job_dir=tmp_path, verbose=0)


def test_a_cell_that_showed_an_error_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook puts the error that it shows into sys.last_value."""
    with process(tmp_path / "whole"):
        whole = begin(tmp_path / "whole", to_the_end)
    folder = tmp_path / "cells"
    with process(folder):
        with pytest.raises(ArithmeticError) as shown:
            begin(folder, leave_by_error)
        monkeypatch.setattr(sys, "last_value", shown.value, raising=False)
        loop, w = begin(folder, to_the_end)
    assert (w == whole[1]).all()
    assert loop.history.history == whole[0].history.history
    assert {found.phase for found in ids(folder)} == {0}


def test_ctrl_c_saves_and_the_cell_can_be_resumed(tmp_path: Path) -> None:
    def interrupted(loop: Loop, w: Any) -> None:
        for batch in loop:
            w += float(batch[0, 0])
            if loop.step == 4:
                loop._job.ctx.stop.request("SIGINT")

    with process(tmp_path / "whole"):
        whole = begin(tmp_path / "whole", to_the_end)
    folder = tmp_path / "cells"
    with process(folder):
        with pytest.raises(KeyboardInterrupt):
            begin(folder, interrupted, save_every="never")
        assert ids(folder)[-1].step == 5
        _, w = begin(folder, to_the_end)
    assert (w == whole[1]).all()


@pytest.mark.parametrize("at", [0, 1, 2, 4, 5])
def test_stop_ends_the_epoch_and_the_training_with_this_step(at: int, tmp_path: Path) -> None:
    def body(loop: Any, batch: Any, state: dict[str, Any]) -> None:
        note(loop, batch, state)
        if loop.step == at:
            loop.stop()
            assert loop.last_batch
            loop.log_epoch(stopped=1)

    program = adding(body)
    whole = run(program, tmp_path / "whole")
    assert whole.steps == at + 1
    assert whole.epoch == [*range(at // 3 + 1)]
    assert whole.history["stopped"] == [1.0]
    for step in range(1, at + 2):
        how = dying_at if step % 2 else stopping_at
        with pytest.raises((Death, SystemExit)), how(step):
            run(program, tmp_path / "parts", save_every="1")
    assert_same_loop(whole, run(program, tmp_path / "parts"))
    # It is over, whatever number of epochs is asked for.
    assert_same_loop(whole, run(program, tmp_path / "parts", epochs=9), rows=False)


def test_a_stop_right_after_a_resume_keeps_what_was_logged(tmp_path: Path) -> None:
    def at_once(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
        def make_and_ask(*given: Any, **options: Any) -> Any:
            loop = make(*given, **options)
            loop._job.ctx.stop.request("SIGTERM")
            return loop

        return adding(note)(make_and_ask)

    with pytest.raises(SystemExit), stopping_at(2):
        run(adding(note), tmp_path)
    with pytest.raises(SystemExit):
        run(at_once, tmp_path)
    store = CheckpointStore(open_storage(tmp_path))
    before, after = (store.manifest(found) for found in ids(tmp_path)[-2:])
    assert (before.progress, before.metrics) == (after.progress, after.metrics)
    assert list(after.metrics) == ["w"]


def test_stop_ends_data_and_steps_without_an_end(tmp_path: Path) -> None:
    for name, data, steps in (
        ("data", tf.data.Dataset.from_tensor_slices(X).repeat().batch(2), None),
        ("none", None, -1),
    ):
        with process(tmp_path / name):
            loop = Loop({"n": []}, data, steps_per_epoch=steps, job_dir=tmp_path / name, verbose=0)
            for _ in loop:
                if loop.step == 12:
                    loop.stop()
        assert (loop.step, loop.history.epoch) == (13, [0])


def test_a_finished_loop_restores_its_end_and_runs_no_body(tmp_path: Path) -> None:
    whole = run(adding(note), tmp_path)
    before = ids(tmp_path)

    def never(loop: Any, batch: Any, state: dict[str, Any]) -> None:
        raise AssertionError

    assert_same_loop(whole, run(adding(never), tmp_path))
    assert ids(tmp_path) == before
    assert len(logged(tmp_path, "phase_skipped")) == 1


def test_more_epochs_continue_a_finished_training(tmp_path: Path) -> None:
    whole = run(adding(note, epochs=5), tmp_path / "whole")
    run(adding(note), tmp_path / "parts")
    again = run(adding(note, epochs=5), tmp_path / "parts")
    assert_same_loop(whole, again, rows=False)
    assert again.epoch == [0, 1, 2, 3, 4]


# --- phases --------------------------------------------------------------------------------------


def phases(order: str) -> Program:
    """Phases of one model, by letters: f for `fit`, l for `Loop`."""

    def program(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
        model = keras.Sequential([layers.Input((1,)), layers.Dropout(0.5), layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.1), "mse")
        folder = make({"model": model}, X)._job.ctx.storage.root
        histories, loop = [], None
        for phase in order:
            if phase == "f":
                done = fit(
                    model, X, X, batch_size=4, epochs=1, job_dir=folder, verbose=0, save_every=2
                )
                histories.append(done.history)
                continue
            loop = make({"model": model}, (X, X), batch_size=4, epochs=1)
            for x, y in loop:
                loop.log(loss=model.train_on_batch(x, y))
            histories.append(loop.history.history)
        assert loop is not None
        return loop, {"model": model, "histories": histories}

    return program


@pytest.mark.parametrize("order", ["ll", "fl"])
def test_phases_survive_kills_in_each(order: str, tmp_path: Path) -> None:
    whole = run(phases(order), tmp_path / "whole")
    for number in range(len(order)):
        with pytest.raises(Death), dying_at_step_of(number, 2):
            run(phases(order), tmp_path / "parts", save_every=1)
    assert_same_loop(whole, run(phases(order), tmp_path / "parts"))
    assert_same_loop(whole, run(phases(order), tmp_path / "parts"))  # all finished


@contextlib.contextmanager
def dying_at_step_of(phase: int, step: int) -> Iterator[None]:
    from unittest import mock

    from outlast.training.phase import Phase

    record = Phase.record_steps

    def record_and_die(self: Phase, *args: Any) -> None:
        record(self, *args)
        if self.index == phase and self.step >= step:
            raise Death(step)

    with mock.patch.object(Phase, "record_steps", record_and_die):
        yield


def test_a_refused_start_enters_no_phase(tmp_path: Path) -> None:
    with process(tmp_path):
        for name in ("one", "one", "two"):
            loop = Loop({"n": []}, X, job_dir=tmp_path, name=name, verbose=0)
            if [call.name for _, call in loop._job.order.entered] == [name]:
                with pytest.raises(UsageError, match="'one' names an earlier phase"):
                    next(iter(loop))
            else:
                assert len(list(loop)) == 1
    assert {found.phase for found in ids(tmp_path)} == {0, 1}


def test_a_refused_fit_enters_no_phase_either(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input((1,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    with process(tmp_path):
        fit(model, X, X, job_dir=tmp_path, name="one", verbose=0)
        with pytest.raises(UsageError, match="'one' names an earlier phase"):
            fit(model, X, X, job_dir=tmp_path, name="one", verbose=0)
        fit(model, X, X, job_dir=tmp_path, name="two", verbose=0)
    assert {found.phase for found in ids(tmp_path)} == {0, 1}


@pytest.mark.parametrize(("first", "second"), [("l", "fl"), ("fl", "ll")])
def test_a_phase_of_the_other_kind_is_named(first: str, second: str, tmp_path: Path) -> None:
    run(phases(first), tmp_path)
    with pytest.raises(
        StateMismatch, match=r"phase 0: (Loop|fit) wrote the checkpoint, but the script"
    ):
        run(phases(second), tmp_path)


# --- what it logs and shows ----------------------------------------------------------------------


def test_means_are_weighted_by_the_batches_sizes(tmp_path: Path) -> None:
    def body(loop: Any, batch: Any, state: dict[str, Any]) -> None:
        loop.log({"mean": tf.reduce_mean(batch)}, size=len(batch))
        loop.log(size=np.array([len(batch) + 1]))  # the later one counts
        if loop.batch == 2:
            loop.log(**{"only the last": 7})

    end = run(adding(body, epochs=1), tmp_path)
    assert end.history["mean"] == [pytest.approx(X.mean(), rel=1e-7)]
    assert end.history["size"] == [(5 * 4 + 5 * 4 + 3 * 2) / 10]
    assert end.history["only the last"] == [7.0]
    steps = [row["logs"] for row in end.rows if row["kind"] == "step"]
    assert [step["size"] for step in steps] == [5.0, 5.0, 3.0]
    assert [sorted(step) for step in steps] == [["mean", "size"]] * 2 + [
        ["mean", "only the last", "size"]
    ]


def test_the_history_equals_that_of_fit(tmp_path: Path) -> None:
    def same(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
        loop, state = adding(note, initial_epoch=1)(make)
        assert loop.history.params == {"verbose": 0, "epochs": 3, "steps": 3}
        assert loop.history.to_frame().index.tolist() == [1, 2]
        assert loop.history.plot().startswith(b"\x89PNG")
        assert "History of 2 epochs" in repr(loop.history)
        return loop, state

    assert run(same, tmp_path).epoch == [1, 2]


def test_a_metric_of_some_epochs_keeps_their_numbers(tmp_path: Path) -> None:
    def body(loop: Any, batch: Any, state: dict[str, Any]) -> None:
        loop.log(loss=1.0)
        if loop.last_batch and loop.epoch % 2:
            loop.log_epoch(val_loss=float(loop.epoch))

    frames = []

    def looking(make: MakeLoop) -> tuple[Any, dict[str, Any]]:
        loop, state = adding(body, epochs=4)(make)
        frames.append(loop.history.to_frame())
        return loop, state

    with dying_at(8), pytest.raises(Death):
        run(looking, tmp_path)
    run(looking, tmp_path)
    (frame,) = frames
    assert frame["val_loss"].fillna(-1).tolist() == [-1, 1, -1, 3]


@pytest.mark.parametrize(("verbose", "like"), [(0, 0), (1, 1), (2, 2), ("auto", 2), (True, 1)])
def test_it_prints_what_fit_prints(
    verbose: Any, like: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown() -> str:
        text = capsys.readouterr().out
        text = re.sub(r"\d+(ms|s|us)\b", "TIME", text)
        return re.sub(r"TIME/epoch|TIME/step", "EACH", text)

    model = keras.Sequential([layers.Input((1,)), layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(X, X, batch_size=4, epochs=2, shuffle=False, verbose=like)
    wanted = shown()

    def body(loop: Any, batch: Any, state: dict[str, Any]) -> None:
        loop.log(loss=np.mean(np.square(batch)))

    run(adding(body, epochs=2, shuffle=False, verbose=verbose), tmp_path)
    if like == 1:  # how often the bar is drawn is a matter of time
        assert wanted.splitlines()[0] == "Epoch 1/2"
        ends = [re.sub(r".*(3/3)", r"\1", t.splitlines()[-1]) for t in (wanted, shown())]
        assert ends[0].strip("\b ") == ends[1].strip("\b ")
    else:
        assert shown() == wanted


def test_a_loss_that_is_nan_ends_the_loop_if_so_configured(tmp_path: Path) -> None:
    def body(loop: Any, batch: Any, state: dict[str, Any]) -> None:
        loop.log(loss=float("nan") if loop.step == 4 else 1.0)

    assert run(adding(body), tmp_path / "ignored").steps == 9
    spec = JobSpec(job="strict", on_nan="stop")
    open_storage(tmp_path / "strict").create("spec.json", specs.encode(spec))
    with pytest.raises(Diverged, match="at step 5"):
        run(adding(body), tmp_path / "strict")


def test_the_file_of_a_single_model_can_be_loaded_by_keras(tmp_path: Path) -> None:
    def train(*models: Any) -> list[str]:
        folder = tmp_path / str(len(models))
        with process(folder):
            parts = {f"net{i}": model for i, model in enumerate(models)}
            for x in Loop(parts, X, job_dir=folder, verbose=0):
                for model in models:
                    model.train_on_batch(x, x)
        made = folder / "checkpoints" / str(ids(folder)[-1])
        for path, model in zip(sorted(made.glob("*.weights.h5")), models, strict=True):
            wanted = model.get_weights()
            model.set_weights([np.zeros_like(w) for w in wanted])
            model.load_weights(path)
            assert all((a == b).all() for a, b in zip(model.get_weights(), wanted, strict=True))
        return sorted(path.name for path in made.iterdir())

    def model() -> Any:
        made = keras.Sequential([layers.Input((1,)), layers.Dense(1)])
        made.compile("adam", "mse")
        return made

    single = ["manifest.json", "model.json", "model.weights.h5", "state.h5"]
    assert train(model()) == single
    several = ["manifest.json", "net0.weights.h5", "net1.weights.h5", "state.h5"]
    assert train(model(), model()) == several


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 1.5}, "epochs"),
        ({"epochs": None}, "epochs"),
        ({"initial_epoch": -1}, "initial_epoch"),
        ({"steps_per_epoch": "all"}, "steps_per_epoch"),
        ({"data": None}, "steps_per_epoch"),
        ({"shuffle": "yes"}, "shuffle"),
        ({"seed": -1}, "seed"),
        ({"verbose": 3}, "verbose"),
        ({"max_queue_size": 0}, "max_queue_size"),
        ({"save_every": "soon"}, "save_every"),
        ({"keep": "some"}, "keep"),
        ({"name": ""}, "name"),
        ({"job_dir": None}, "job_dir"),
    ],
)
def test_a_bad_argument_is_named_before_there_is_a_job(
    arguments: dict[str, Any], field: str, tmp_path: Path
) -> None:
    given = {"data": X, "job_dir": tmp_path / "job", **arguments}
    with pytest.raises(UsageError, match=f"^{field}:"):
        Loop({"w": []}, **given)
    assert not (tmp_path / "job").exists()


def test_methods_of_the_body_are_refused_elsewhere(tmp_path: Path) -> None:
    with process(tmp_path):
        loop = Loop({"w": []}, X, job_dir=tmp_path, verbose=0)
        assert loop.step == 0
        with pytest.raises(UsageError, match="log: it is only available inside"):
            loop.log(x=1)
        for _ in loop:
            assert loop.last_batch
            for value in ("one", [1, 2], np.ones(2), None):
                with pytest.raises(UsageError, match=r"log: 'x' is .*, not a number"):
                    loop.log(x=value)
        with pytest.raises(UsageError, match="log_epoch: it is only available inside"):
            loop.log_epoch(x=1)
        with pytest.raises(UsageError, match="last_batch: it is only available inside"):
            assert loop.last_batch
        with pytest.raises(UsageError, match="Loop: it was iterated before"):
            next(iter(loop))


@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_the_last_batch_of_data_of_unknown_size_is_not_guessed(tmp_path: Path) -> None:
    data = tf.data.Dataset.from_tensor_slices(X).filter(lambda x: x[0] > 3).batch(4)
    with process(tmp_path):
        loop = Loop({"w": []}, data, epochs=2, job_dir=tmp_path, verbose=0)
        for _ in loop:
            with pytest.raises(UsageError, match=r"last_batch: .*Give steps_per_epoch"):
                assert loop.last_batch
    assert loop.step == 4


def test_other_data_in_the_middle_of_an_epoch_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), stopping_at(2):
        run(adding(note), tmp_path)
    with pytest.raises(StateMismatch, match="batch_size: the checkpoint has 4, the script has 5"):
        run(adding(note, batch_size=5), tmp_path)
    with pytest.raises(StateMismatch, match="seed"):
        run(adding(note, seed=2), tmp_path)


def test_a_loop_accepts_numbers_of_numpy(tmp_path: Path) -> None:
    def program(make: MakeLoop, number: Callable[[int], Any]) -> tuple[Any, dict[str, Any]]:
        seen: list[str] = []
        counts = {"batch_size": 5, "epochs": 3, "initial_epoch": 1, "steps_per_epoch": 2, "seed": 3}
        given = {name: number(value) for name, value in counts.items()}
        loop = make({"seen": seen}, X, max_queue_size=number(2), shuffle=number(1) == 1, **given)
        for batch in loop:
            seen.append(digest(batch))
            loop.log(step=number(loop.step))
        return loop, {"seen": seen}

    whole = run(lambda make: program(make, int), tmp_path / "whole")
    with pytest.raises(Death), dying_at(3):
        run(lambda make: program(make, np.int64), tmp_path / "parts", save_every="2")
    resumed = run(lambda make: program(make, np.int64), tmp_path / "parts", save_every="2")
    assert_same_loop(whole, resumed)
