"""Searches as scripts have them, killed for real: trials pruned, passed over, and by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

SEARCH = """
import json, os, sys, keras, numpy as np
from outlast import fit

class Pruned(Exception): pass

class Prune(keras.callbacks.Callback):
    def __init__(self, trial):
        super().__init__()
        self.trial = trial
    def on_epoch_end(self, epoch, logs=None):
        if self.trial == 1 and epoch == 1:
            raise Pruned(f"after {epoch}")
        if self.trial == 2 and epoch == 2 and not os.path.exists("died"):
            open("died", "w").close()
            os.kill(os.getpid(), 9)

names, book = "names" in sys.argv, {}
if "book" in sys.argv and os.path.exists("book.json"):
    book = json.load(open("book.json"))
x = np.random.default_rng(1).random((64, 6)).astype("float32")
for trial in range(4):
    if str(trial) in book:
        continue
    keras.utils.set_random_seed(trial)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1 / 10**trial if "alike" not in sys.argv else 0.01), "mse")
    try:
        name = f"trial {trial}" if names else None
        done = fit(model, x, x.sum(1), epochs=4, verbose=0, callbacks=[Prune(trial)], name=name)
        book[str(trial)] = done.history["loss"]
    except Pruned as error:
        book[str(trial)] = str(error)
    json.dump(book, open("book.json", "w"))
print("BOOK", json.dumps(book))
"""


def search(folder: Path, *arguments: str, die: bool) -> tuple[int, str, str]:
    """Run the search as a job; return the exit code, the book's line and all output."""
    folder.mkdir()
    (folder / "search.py").write_text(SEARCH)
    if not die:
        (folder / "died").touch()
    options = ["--root", "jobs", "--seed", "1", "--save-every", "2", "--backoff", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "outlast", "run", *options, "search.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    out = done.stdout + done.stderr
    book = [line for line in out.splitlines() if line.startswith("BOOK")]
    assert (folder / "died").exists()
    return done.returncode, book[-1] if book else "", out


def test_a_search_with_a_pruned_trial_ends_as_untouched(tmp_path: Path) -> None:
    code, whole, out = search(tmp_path / "whole", die=False)
    assert (code, '"1": "after 1"' in whole) == (0, True), out
    for number, arguments in enumerate([(), ("names",), ("names", "book")]):
        code, parts, out = search(tmp_path / str(number), *arguments, die=True)
        assert code == 0, out
        assert parts == whole, arguments
        assert "1 restart" in out


def test_a_search_that_passes_over_its_trials_without_names_is_told(tmp_path: Path) -> None:
    code, book, out = search(tmp_path / "parts", "book", die=True)
    assert (code, book) == (3, ""), out
    assert "Phase 0 (without a name) was finished by a different fit" in out
    assert "learning_rate: the checkpoint has 0.1, the script has 0.001" in out


def test_members_of_an_ensemble_differ_in_their_seeds_alone(tmp_path: Path) -> None:
    code, book, out = search(tmp_path / "parts", "book", "alike", die=True)
    assert (code, book) == (3, ""), out
    assert "Phase 0 (without a name) was finished by a different fit" in out
    assert "seed: the checkpoint has" in out
