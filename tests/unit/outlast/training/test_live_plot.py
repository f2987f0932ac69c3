"""Plots of a training: the live plot, and the History at its end."""

from __future__ import annotations

import io
import sys
import threading
import types
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from outlast.plotting.plot import draw
from outlast.training.history import History
from tests.support.training_harness import Death, Script, dying_at, keras_fit, stopping_at, train
from tests.support.training_zoo import ARRAYS, X, Y, tiny

ARGUMENTS: dict[str, Any] = {
    **ARRAYS,
    "epochs": 4,
    "validation_data": (X[:5], Y[:5]),
    "validation_freq": 2,
    "view_metrics": True,
}
SCRIPT = Script(tiny(), ARGUMENTS)


def drawn() -> None:
    """Wait until the current picture is drawn."""
    for thread in threading.enumerate():
        if thread.name == "outlast-view":
            thread.join()


class Look(keras.callbacks.Callback):
    """Looks at the picture at the start of each epoch and at every batch, while it is drawn."""

    def __init__(self, picture: Path) -> None:
        super().__init__()
        self._picture = picture
        self.seen: dict[int, bytes] = {}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        drawn()
        if epoch:
            self.seen[epoch] = self._whole()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.seen:
            self._whole()

    def _whole(self) -> bytes:
        with Image.open(self._picture) as image:
            image.load()  # raises where it is cut short
            assert image.format == "PNG"
        return self._picture.read_bytes()


@pytest.mark.parametrize("history", [None, keras.callbacks.History])
def test_the_plot_in_the_job_folder_is_updated_each_epoch(tmp_path: Path, history: Any) -> None:
    folder = tmp_path / "job"
    picture = folder / "metrics.png"

    def callbacks() -> list[Any]:
        return [Look(picture), *([history()] if history else [])]

    end = train(SCRIPT.with_callbacks(callbacks), folder)
    seen = end.callbacks[0].seen
    assert list(seen) == [1, 2, 3]
    assert len({*seen.values(), picture.read_bytes()}) == 4


def test_after_a_resume_the_plot_has_all_epochs(tmp_path: Path) -> None:
    train(SCRIPT, tmp_path / "untouched" / "job")
    folder = tmp_path / "resumed" / "job"
    with pytest.raises(SystemExit), stopping_at(5):
        train(SCRIPT, folder)
    with pytest.raises(Death), dying_at(8):
        train(SCRIPT, folder)
    train(SCRIPT, folder)
    untouched = tmp_path / "untouched" / "job" / "metrics.png"
    assert (folder / "metrics.png").read_bytes() == untouched.read_bytes()


class Notebook(types.ModuleType):
    """Replaces IPython, which is not installed, and records what a cell would display."""

    def __init__(self) -> None:
        super().__init__("IPython")
        self.shown: list[tuple[str, bytes]] = []
        self.display = types.SimpleNamespace(Image=self._image, display=self._display)

    @staticmethod
    def get_ipython() -> Any:
        return types.SimpleNamespace(kernel=object())

    @staticmethod
    def _image(data: bytes) -> bytes:
        return data

    def _display(self, picture: bytes, *, display_id: bool) -> Any:
        assert display_id is True
        self.shown.append(("display", picture))
        return types.SimpleNamespace(update=lambda new: self.shown.append(("update", new)))


def test_in_a_notebook_the_plot_below_the_cell_is_updated_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wait(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            drawn()

    notebook = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    train(SCRIPT.with_callbacks(lambda: [Wait()]), tmp_path)
    # one an epoch, and the last one again when the training ends
    assert [how for how, _ in notebook.shown] == ["display", *["update"] * 4]
    assert len({picture for _, picture in notebook.shown}) == 4
    assert all(picture.startswith(b"\x89PNG") for _, picture in notebook.shown)
    assert not (tmp_path / "metrics.png").exists()


def test_a_failing_plot_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "metrics.png").mkdir(parents=True)
    (tmp_path / "metrics.png" / "in the way").touch()
    assert train(SCRIPT, tmp_path).epoch == [0, 1, 2, 3]
    assert "live_plot_failed" in (tmp_path / "attempts/0001/log.jsonl").read_text()


# -- History --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """The History of a training that crashed: four epochs, every other one validated."""
    folder = tmp_path_factory.mktemp("history")
    script = SCRIPT.but(view_metrics=False)
    with pytest.raises(Death), dying_at(8):
        train(script, folder)
    found: History = train(script, folder).model.history
    return found


def test_it_is_a_history_of_keras(history: History) -> None:
    arguments = {name: value for name, value in ARGUMENTS.items() if name != "view_metrics"}
    theirs = keras_fit(Script(SCRIPT.build, arguments))
    assert isinstance(history, keras.callbacks.History)
    assert history.history == theirs.history
    assert history.epoch == theirs.epoch == [0, 1, 2, 3]
    assert history.params == theirs.params == {"verbose": 0, "epochs": 4, "steps": 3}


def test_a_frame_has_one_row_per_epoch_and_gaps_without_a_value(history: History) -> None:
    frame = history.to_frame()
    assert list(frame.index) == [0, 1, 2, 3]
    assert frame.index.name == "epoch"
    assert list(frame.columns) == ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert frame["loss"].tolist() == history.history["loss"]
    np.testing.assert_array_equal(frame["val_loss"].isna(), [True, False, True, False])
    assert frame["val_loss"].dropna().tolist() == history.history["val_loss"]


def test_values_are_drawn_at_their_epochs(history: History) -> None:
    validation = history.curves().panels["loss"].validation
    points = [(x, y) for x, y in zip(validation.x, validation.y, strict=True) if y == y]
    assert points == list(zip([2, 4], history.history["val_loss"], strict=True))


def test_a_plot_is_a_png_returned_and_written(history: History, tmp_path: Path) -> None:
    png = history.plot(tmp_path / "curve.png", title="digits")
    assert (tmp_path / "curve.png").read_bytes() == png
    with Image.open(tmp_path / "curve.png") as image:
        image.load()
    assert history._repr_png_() is not None  # what a notebook shows


def test_it_prints_one_line_per_metric(history: History) -> None:
    lines = repr(history).splitlines()
    assert lines[0] == "History of 4 epochs, the last being 4:"
    losses = history.history["val_loss"]
    (line,) = [line for line in lines if line.split()[0] == "val_loss"]
    assert line.split()[1:] == [
        "last", f"{losses[-1]:.6g}", "least", f"{min(losses):.6g}", "most", f"{max(losses):.6g}",
    ]  # fmt: skip
    assert repr(History()) == "History(no epoch yet)"


def test_restarts_are_marked_in_a_plot(history: History) -> None:
    def red(png: bytes) -> list[int]:
        """Return the pixel columns with a dashed red line, which no curve has."""
        with Image.open(io.BytesIO(png)) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        reds, greens, blues = np.moveaxis(pixels, 2, 0)
        marked = ((reds - greens > 40) & (abs(greens - blues) < 20)).sum(axis=0)
        return np.flatnonzero(marked > 100).tolist()

    curves = history.curves()
    assert red(draw(curves, title="")) == []
    curves.restarts = [(2.0, 2), (3.0, 3)]
    columns = red(draw(curves, title=""))
    assert len(columns) >= 2
    assert columns[-1] - columns[0] > 100
