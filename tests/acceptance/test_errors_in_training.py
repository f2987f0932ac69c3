"""Errors of a training are reported in one line, with the documented exit code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outlast.job.events import Ended
from outlast.job.lifecycle import State
from tests.acceptance.jobs import Training, assert_same, gone

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

# What the script is changed to, and what the message names as the first difference.
DIFFERENT = {
    "wider": ("layers/dense/vars/0", "(64, 32)", "(64, 48)"),
    "extra layer": ("layers/dense_1/vars/0", "(32, 16)", "(32, 32)"),
    "missing layer": ("layers/dense_1/vars/0", "(32, 16)", "(32, 10)"),
    "other optimizer": ("optimizer", "adam", "rm_sprop"),
}


def stop_in_the_middle(training: Training) -> None:
    """Let it train three epochs, and leave in the validation of the third."""
    training.hold("validation", 2)
    training.start()
    process = training.attempt(1)
    training.until_held(process, "validation", 2)
    training.kill_supervisor()
    process.terminate()
    training.hold("never")
    training.until("its end", lambda: gone(process))


def said_since(training: Training, before: str) -> str:
    """Return what Outlast itself said: TensorFlow's own words have a place in front."""
    lines = training.output()[len(before) :].splitlines()
    return "\n".join(line for line in lines if not line.startswith(("I0", "W0", "E0")))


def test_a_different_model_is_refused_with_the_first_difference(
    train: Callable[..., Training], untouched: Callable[[str], Training]
) -> None:
    """Four ways to change the script; after each the right one still goes on exactly."""
    training = train("variants", forked=True)
    stop_in_the_middle(training)
    saved = training.store.ids()
    for variant, named in DIFFERENT.items():
        before = training.output()
        training.vary(variant)
        training.resume()
        training.end(3)
        said = said_since(training, before)
        missing = [words for words in named if words not in said]
        assert not missing, f"{variant}: {missing} not in\n{said}"
        assert str(saved[-1]) in said, variant
        assert "Traceback" not in said, variant
        assert training.job().state is State.FAILED
        assert training.store.ids() == saved
    training.vary("plain")
    training.resume()
    training.end()
    assert_same(training, untouched("variants"))


@pytest.mark.parametrize(
    ("variant", "code", "named", "traceback"),
    [
        ("import error", 3, ["a_module_that_is_not_there", "variants.py, line 14"], True),
        ("no batch size", 3, ["batch_size", "0"], False),
        ("leaves with 7", 1, ["7"], False),
        ("raises", 1, ["the script's own trouble", "variants.py, line 22"], True),
        ("nan", 65, ["nan", "on_nan", "step "], False),
    ],
)
def test_a_script_that_fails(
    variant: str, code: int, named: list[str], traceback: bool, train: Callable[..., Training]
) -> None:
    """The reason is in the journal, the summary and the log; a stack trace only of the script."""
    options = "--save-every epoch --max-retries 0 --on-nan stop"
    training = train("variants", options=options, forked=True)
    training.vary(variant)
    training.start()
    training.end(code)
    ended = [e.event for e in training.journal.read() if isinstance(e.event, Ended)]
    said = said_since(training, "")
    for words in named:
        assert words in said, (words, said)
        assert words in ended[-1].reason + str(ended[-1].exit_code), (words, ended[-1])
    assert ("Traceback" in said) == traceback


def test_a_job_folder_that_cannot_be_written(train: Callable[..., Training]) -> None:
    """A file stands where the checkpoints should: it is named, and nothing happens to the job."""
    training = train("variants", forked=True)
    training.hold("epoch_end", 0)
    training.start()
    process = training.attempt(1)
    training.until_held(process, "epoch_end", 0)
    training.kill_supervisor()
    process.kill()
    training.until("its end", lambda: gone(process))
    checkpoints = training.folder / "checkpoints"
    checkpoints.rename(training.folder / "aside")
    checkpoints.write_text("not a folder")
    before = training.output()
    training.hold("never")
    training.resume()
    training.end(74)
    said = said_since(training, before)
    assert f"'{checkpoints}': Not a directory" in said
    assert "Traceback" not in said
    checkpoints.unlink()
    (training.folder / "aside").rename(checkpoints)
    training.resume()
    training.end()
