"""Over crashes, built-in callbacks write, decide and stop as in an uninterrupted Keras fit."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
from keras import callbacks, optimizers

from tests.support.training_harness import (
    Death,
    End,
    Script,
    assert_same_end,
    dying_at,
    keras_fit,
    stopping_at,
    train,
)
from tests.support.training_zoo import ARRAYS, X, Y, quick, tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PLAIN: dict[str, Any] = {**ARRAYS, "epochs": 3, "validation_data": (X[:9], Y[:9])}


@dataclass
class Case:
    """A built-in callback, made for a folder if it writes files."""

    make: Callable[[Path], Any]
    build: Callable[[], Any] = field(default_factory=quick)
    arguments: dict[str, Any] = field(default_factory=dict)

    def script(self, folder: Path) -> Script:
        folder.mkdir(exist_ok=True)
        arguments = {"save_every": 2, **PLAIN, **self.arguments}
        return Script(self.build, arguments, lambda: [self._made(folder)])

    def _made(self, folder: Path) -> Any:
        MADE.append(self.make(folder))
        return MADE[-1]


MADE: list[Any] = []


@pytest.fixture(autouse=True)
def files_of_the_dead() -> Iterator[None]:
    """Close the files that the end of a process would close."""
    MADE.clear()
    yield
    for made in MADE:
        if isinstance(made, callbacks.CSVLogger) and made.csv_file is not None:
            made.csv_file.close()
    MADE.clear()


def averaging(**options: Any) -> Callable[[], Any]:
    return tiny(optimizer=lambda: optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), **options)


def halved(epoch: int, rate: float) -> float:
    return rate * 0.5 ** (epoch + 1)


def with_a_nan() -> dict[str, Any]:
    x = X.copy()
    x[10] = np.nan
    return {"x": x}


CASES: dict[str, Case] = {
    "BackupAndRestore": Case(lambda folder: callbacks.BackupAndRestore(folder / "backup")),
    "BackupAndRestore by batches": Case(
        lambda folder: callbacks.BackupAndRestore(
            folder / "backup", save_freq=2, double_checkpoint=True, delete_checkpoint=False
        )
    ),
    "CSVLogger": Case(lambda folder: callbacks.CSVLogger(folder / "log.csv")),
    "CSVLogger append": Case(
        lambda folder: callbacks.CSVLogger(folder / "log.csv", separator=";", append=True),
        arguments={"validation_freq": 2},
    ),
    "EarlyStopping": Case(
        lambda folder: callbacks.EarlyStopping(
            patience=1, min_delta=0.5, restore_best_weights=True, start_from_epoch=1
        )
    ),
    "LambdaCallback": Case(
        lambda folder: callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: (folder / f"{epoch}.json").write_text(json.dumps(logs))
        )
    ),
    "LearningRateScheduler": Case(lambda folder: callbacks.LearningRateScheduler(halved)),
    "ModelCheckpoint": Case(
        lambda folder: callbacks.ModelCheckpoint(
            folder / "{epoch}-{val_loss:.4f}.weights.h5", save_weights_only=True
        )
    ),
    "ModelCheckpoint best": Case(
        lambda folder: callbacks.ModelCheckpoint(
            folder / "{epoch}.weights.h5",
            "val_accuracy",
            save_best_only=True,
            save_weights_only=True,
        ),
        tiny(),
    ),
    "ModelCheckpoint by batches": Case(
        lambda folder: callbacks.ModelCheckpoint(
            folder / "{epoch}-{batch}.weights.h5", save_weights_only=True, save_freq=2
        )
    ),
    "ReduceLROnPlateau": Case(
        lambda folder: callbacks.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=0.5)
    ),
    "SwapEMAWeights": Case(lambda folder: callbacks.SwapEMAWeights(), averaging()),
    "SwapEMAWeights on epoch": Case(lambda folder: callbacks.SwapEMAWeights(True), averaging()),
    "TensorBoard": Case(lambda folder: callbacks.TensorBoard(folder), tiny()),
    "TensorBoard by batches": Case(
        lambda folder: callbacks.TensorBoard(folder, update_freq=2, histogram_freq=1), tiny()
    ),
    "TerminateOnNaN": Case(lambda folder: callbacks.TerminateOnNaN(), arguments=with_a_nan()),
}
# With tests of their own, below or elsewhere.
APART = {
    "Callback": "test_training_callbacks",
    "CallbackList": "test_training_callbacks",
    "History": "test_training_callbacks",
    "OrbaxCheckpoint": "Keras makes none without Orbax, which is not among what we need",
    "ProgbarLogger": "below",
    "RemoteMonitor": "below",
}


def test_every_built_in_callback_is_tested() -> None:
    classes = {
        name for name, found in vars(callbacks).items()
        if inspect.isclass(found) and issubclass(found, callbacks.Callback)
    } | {"CallbackList"}  # fmt: skip
    # Versions of Keras before 3.15 have no OrbaxCheckpoint.
    assert {name.split()[0] for name in CASES} | set(APART) == classes | {"OrbaxCheckpoint"}


def events(folder: Path) -> dict[tuple[str, str, int], set[bytes]]:
    """Return all values that TensorBoard shows for a folder, by run, tag and step."""
    found: dict[tuple[str, str, int], set[bytes]] = {}
    for path in sorted(folder.rglob("events.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                place = (path.parent.name, value.tag, event.step)
                content = value.tensor.SerializeToString()
                found.setdefault(place, set()).add(content)
    return found


def left_in(folder: Path) -> dict[str, Any]:
    """Return everything that a callback wrote, in a comparable form."""
    found: dict[str, Any] = {"events": events(folder)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".h5":
            arrays: dict[str, bytes] = {}
            with h5py.File(path) as file:
                file.visititems(
                    lambda at, item, arrays=arrays: (
                        arrays.update({at: item[()].tobytes()})
                        if isinstance(item, h5py.Dataset)
                        else None
                    )
                )
            found[name] = arrays
        elif path.is_file() and not path.name.startswith("events."):
            found[name] = path.read_bytes()
    return found


class Dying(callbacks.Callback):
    """Dies in the first call of a hook, after the previous callback has finished there."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        setattr(self, hook, self._die)

    def _die(self, *args: Any, **kwargs: Any) -> None:
        raise Death


def die_in(hook: str, script: Script, folder: Path) -> None:
    made = script.callbacks
    with pytest.raises(Death):
        train(script.with_callbacks(lambda: [*made(), Dying(hook)]), folder)


def die_and_resume(script: Script, folder: Path, steps: int) -> End:
    """Train with crashes and one stop, up to the given number of steps."""
    for step in range(1, steps, 2):
        with pytest.raises(Death), dying_at(step):
            train(script, folder)
        if step == 1:
            die_in("on_epoch_end", script, folder)
        if step == 3:
            die_in("on_test_end", script, folder)
        if step == 5:
            with pytest.raises(SystemExit), stopping_at(7):
                train(script, folder)
            die_in("on_train_end", script, folder)
            break
    return train(script, folder)


@pytest.mark.parametrize("name", CASES)
def test_over_kills_it_does_what_it_does_in_keras(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    theirs = keras_fit(case.script(tmp_path / "theirs"))
    steps = int(theirs.model.optimizer.iterations)
    ours = die_and_resume(case.script(tmp_path / "ours"), tmp_path / "job", steps)
    assert_same_end(theirs, ours, rows=False)
    assert left_in(tmp_path / "ours") == left_in(tmp_path / "theirs")


# -- CSVLogger ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "save_every"),
    [("CSVLogger", "epoch"), ("CSVLogger", "never"), ("CSVLogger append", "1")],
)
def test_a_csv_file_has_each_row_once(tmp_path: Path, name: str, save_every: str) -> None:
    case = CASES[name]
    earlier = b"" if name == "CSVLogger" else b"epoch;accuracy\r\nof another training\r\n"
    for folder in (tmp_path / "theirs", tmp_path / "ours"):
        folder.mkdir()
        (folder / "log.csv").write_bytes(earlier)
    keras_fit(case.script(tmp_path / "theirs"))
    script = case.script(tmp_path / "ours").but(save_every=save_every)
    for hook in ("on_train_begin", "on_epoch_end", "on_epoch_begin", "on_test_begin"):
        die_in(hook, script, tmp_path / "job")
        with pytest.raises(Death), dying_at(4):
            train(script, tmp_path / "job")
    die_in("on_train_end", script, tmp_path / "job")
    train(script, tmp_path / "job")
    assert left_in(tmp_path / "ours") == left_in(tmp_path / "theirs")
    train(script, tmp_path / "job")  # it is finished: nothing is opened anew
    assert left_in(tmp_path / "ours") == left_in(tmp_path / "theirs")
    keras_fit(case.script(tmp_path / "longer").but(epochs=5))
    train(script.but(epochs=5), tmp_path / "job")
    rows = (tmp_path / "ours" / "log.csv").read_bytes().removeprefix(earlier)
    assert (
        rows.splitlines()[-5:] == (tmp_path / "longer" / "log.csv").read_bytes().splitlines()[-5:]
    )


def test_rows_removed_from_the_csv_file_are_reported(tmp_path: Path) -> None:
    script = CASES["CSVLogger"].script(tmp_path / "ours")
    file = tmp_path / "ours" / "log.csv"
    with pytest.raises(SystemExit), stopping_at(7):
        train(script, tmp_path / "job")
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    file.write_bytes(lines[0] + lines[1] + lines[2][:-9])
    train(script, tmp_path / "job")
    assert [line.split(b",")[0] for line in file.read_bytes().splitlines()] == [
        b"epoch",
        b"0",
        b"2",
    ]
    log = (tmp_path / "job/attempts/0002/log.jsonl").read_text()
    assert "csv_rows_lost" in log


# -- TensorBoard ----------------------------------------------------------------------------------


def test_tensorboard_continues_after_a_finished_training(tmp_path: Path) -> None:
    case = CASES["TensorBoard by batches"]
    longer = case.script(tmp_path / "theirs").but(epochs=4)
    keras_fit(longer)
    script = case.script(tmp_path / "ours")
    train(script, tmp_path / "job")
    train(script.but(epochs=4), tmp_path / "job")
    assert left_in(tmp_path / "ours") == left_in(tmp_path / "theirs")


def test_a_kill_during_a_tensorboard_trace_ends_the_trace(tmp_path: Path) -> None:
    case = Case(lambda folder: callbacks.TensorBoard(folder, profile_batch=(4, 6)))
    script = case.script(tmp_path / "ours").but(save_every=1)
    with pytest.raises(Death), dying_at(5):
        train(script, tmp_path / "job")
    assert MADE[0]._is_tracing
    MADE[0]._stop_profiler(save=False)  # as the end of its process does
    tf.summary.trace_off()
    assert train(script, tmp_path / "job").epoch == [0, 1, 2]
    assert not MADE[1]._is_tracing


# -- BackupAndRestore -----------------------------------------------------------------------------


def test_an_incomplete_backup_does_not_stop_a_resume(tmp_path: Path) -> None:
    case = CASES["BackupAndRestore"]
    theirs = keras_fit(case.script(tmp_path / "theirs"))
    script = case.script(tmp_path / "ours")
    with pytest.raises(SystemExit), stopping_at(5):
        train(script, tmp_path / "job")
    (tmp_path / "ours/backup/training_metadata.json").write_bytes(b"")
    (tmp_path / "ours/backup/latest.weights.h5").write_bytes(b"torn")
    assert_same_end(theirs, train(script, tmp_path / "job"), rows=False)


# -- RemoteMonitor --------------------------------------------------------------------------------


@contextmanager
def listening() -> Iterator[tuple[str, list[Any]]]:
    """A local server, and the requests that it received."""
    heard: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", heard
        finally:
            server.shutdown()
            thread.join()


def test_a_remote_monitor_gets_each_epoch(tmp_path: Path) -> None:
    with listening() as (root, heard):
        case = Case(lambda folder: callbacks.RemoteMonitor(root, send_as_json=True))
        theirs = keras_fit(case.script(tmp_path))
        told = list(heard)
        heard.clear()
        with pytest.raises(SystemExit), stopping_at(5):
            train(case.script(tmp_path), tmp_path / "job")
        ours = train(case.script(tmp_path), tmp_path / "job")
        assert heard == told
        assert [each["epoch"] for each in told] == [0, 1, 2]
    assert_same_end(theirs, ours, rows=False)


# -- what is printed ------------------------------------------------------------------------------


def told(printed: str) -> list[str]:
    """Return the heading and last line of each epoch, without colours and times.

    How often the bar is redrawn in between depends on timing.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    plain = re.sub(r"\b\d+(s|ms|us)\b", "T", plain)
    lines = [line.strip() for line in re.split(r"[\n\r\b]+", plain) if line.strip()]
    ends = [i for i, line in enumerate(lines[1:]) if line.startswith("Epoch")]
    headings = [i + 1 for i in ends]
    return [
        lines[0],
        *(lines[i] for pair in zip(ends, headings, strict=True) for i in pair),
        lines[-1],
    ]


class Pipe:
    """Standard output that is not a terminal, and the text written to it."""

    def __enter__(self) -> Pipe:
        self._stdout, sys.stdout = sys.stdout, io.StringIO()
        return self

    def __exit__(self, *exc: object) -> None:
        written, sys.stdout = sys.stdout, self._stdout
        self.shown = written.getvalue()


class Terminal:
    """A terminal as standard output, and the text shown on it."""

    def __enter__(self) -> Terminal:
        self.shown = ""
        self._main, child = os.openpty()
        self._stdout, sys.stdout = sys.stdout, os.fdopen(child, "w")
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while part := os.read(self._main, 4096):
                self.shown += part.decode()

    def __exit__(self, *exc: object) -> None:
        child, sys.stdout = sys.stdout, self._stdout
        child.close()
        self._reader.join()
        os.close(self._main)


PRINTED: dict[str, Script] = {
    "arrays": Script(quick(), PLAIN),
    "data of unknown size": Script(
        quick(),
        {
            **PLAIN,
            "x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: True),
            "y": None,
            "batch_size": None,
        },
    ),
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("name", "verbose", "on_terminal"),
    [
        ("arrays", "auto", False),
        ("arrays", "auto", True),
        ("arrays", 0, False),
        ("arrays", 1, False),
        ("arrays", 2, True),
        ("data of unknown size", 1, True),
    ],
)
def test_the_output_is_that_of_keras_also_after_a_resume(
    tmp_path: Path, name: str, verbose: Any, on_terminal: bool
) -> None:
    # Keras draws a bar where there is no terminal, too; here "auto" is a line an epoch there.
    as_keras = 2 if verbose == "auto" and not on_terminal else verbose
    script = PRINTED[name].but(save_every="never")

    def printed(run: Callable[[], Any]) -> list[str]:
        with Terminal() if on_terminal else Pipe() as output:
            run()
        return told(output.shown) if output.shown else []

    theirs = printed(lambda: keras_fit(script.but(verbose=as_keras)))
    assert printed(lambda: train(script.but(verbose=verbose), tmp_path / "untouched")) == theirs
    # in the midst of the second epoch, and before its end, whose last step is step 6
    for folder, step in (("midst", 5), ("end", 6)):
        with pytest.raises(SystemExit), stopping_at(step):
            train(script.but(verbose=verbose), tmp_path / folder, verbose=0)
        again = printed(lambda to=tmp_path / folder: train(script.but(verbose=verbose), to))
        assert again == theirs[2:]
