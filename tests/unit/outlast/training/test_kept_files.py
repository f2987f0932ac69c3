"""Files that a script keeps go back with the checkpoint, and a search repeats itself exactly."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import outlast
from outlast import Loop
from outlast.attempt import bare
from outlast.audit.state_leaves import State
from outlast.job.audit_target import AuditTarget
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.copy_job import copy_job
from outlast_checkpoints.store.fork_job import fork_job
from tests.support.phase_scripts import X, dying_in, net, trained
from tests.support.training_harness import Death, begin_process, process

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # save_weights


class Best(keras.callbacks.Callback):
    """Writes as the callbacks of searches do: the best weights, a row in a database, a log."""

    def __init__(self, folder: Path, trial: int) -> None:
        super().__init__()
        self.folder, self.trial, self.best = folder, trial, float("inf")

    def on_train_begin(self, logs: Any = None) -> None:
        (self.folder / f"{self.trial}").mkdir(exist_ok=True)
        (self.folder / f"{self.trial}" / "begun").write_text("")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        assert logs is not None
        with closing(sqlite3.connect(self.folder / "study.db")) as study:
            study.execute("insert into reports values (?, ?, ?)", (self.trial, epoch, logs["loss"]))
            study.commit()
        with (self.folder / "log.csv").open("a") as log:
            print(self.trial, epoch, logs["loss"], sep=",", file=log)
        if logs["loss"] < self.best:
            self.best = logs["loss"]
            self.model.save_weights(self.folder / f"{self.trial}" / "best.weights.h5")


def search(job: Path, folder: Path) -> dict[str, Any]:
    """Run a search that goes on from what it finds in its folder; return what it comes to."""
    begin_process()
    with process(job):
        outlast.keep(folder, job_dir=job)
        outlast.keep(folder)  # which does nothing
        folder.mkdir(exist_ok=True)
        with closing(sqlite3.connect(folder / "study.db")) as study:
            study.execute("create table if not exists trials (number, units)")
            study.execute("create table if not exists reports (number, epoch, loss)")
            study.commit()
            (begun,) = study.execute("select count(*) from trials").fetchone()
            for trial in range(begun, 3):
                rows = study.execute("select loss from reports order by loss").fetchall()
                units = 3 + len(rows) + (int(rows[0][0] * 1000) % 3 if rows else 0)
                study.execute("insert into trials values (?, ?)", (trial, units))
                study.commit()
                trained(
                    job, net(units=units), epochs=2, callbacks=[Best(folder, trial)], save_every=1
                )
            tables = [study.execute(f"select * from {t}").fetchall() for t in ("trials", "reports")]
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".h5", ".db")
    }
    best = {}
    for trial in range(3):
        model = net(units=tables[0][trial][1])
        model.load_weights(folder / f"{trial}" / "best.weights.h5")
        best[trial] = [weight.numpy().tobytes() for weight in model.weights]
    return {"tables": tables, "files": files, "best": best}


def test_a_search_that_is_killed_repeats_itself(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", tmp_path / "whole search")
    assert len(whole["tables"][1]) == 6
    for phase, step in ((0, 2), (0, 4), (1, 1), (1, 4), (2, 1), (2, 4)):
        with pytest.raises(Death), dying_in(phase, step):
            search(tmp_path / "job", tmp_path / "search")
        (tmp_path / "search" / "1").mkdir(exist_ok=True)
        (tmp_path / "search" / "1" / "foreign").write_text("is put back, too")
    assert search(tmp_path / "job", tmp_path / "search") == whole
    assert search(tmp_path / "job", tmp_path / "search") == whole  # nothing is trained

    # On another machine there are no files.
    copied = tmp_path / "copied"
    copy_job(open_storage(tmp_path / "job"), open_storage(copied))
    (tmp_path / "search").rename(tmp_path / "of the first machine")
    assert search(copied, tmp_path / "search") == whole
    forked, source = tmp_path / "forked", open_storage(tmp_path / "job")
    fork_job(source, open_storage(forked), CheckpointStore(source).ids()[-1])
    assert list(forked.glob("kept-*.json"))


def test_a_checkpoint_has_what_its_phase_has_changed(tmp_path: Path) -> None:
    search(tmp_path / "job", tmp_path / "search")
    store = CheckpointStore(open_storage(tmp_path / "job"))
    loaded = store.load(store.finished_phases()[1])
    plain = json.loads(bytes(loaded.files[layout.KEPT_FILE]["document"]))
    (kept,) = plain["kept"]
    names = sorted(name for name, _ in kept["files"])
    assert names == ["1/begun", "1/best.weights.h5", "log.csv", "study.db"]
    places = [place for place, _ in State(loaded.files, "end").leaves(set())]
    assert places
    assert not any("kept" in path for _, path in places)


def test_a_loop_brings_files_back(tmp_path: Path) -> None:
    def run() -> str:
        begin_process()
        log = tmp_path / "log.txt"
        with process(tmp_path / "job"):
            outlast.keep(log, job_dir=tmp_path / "job")
            loop = Loop({"sum": np.zeros(1)}, X, batch_size=8, job_dir=tmp_path / "job")
            for step, _ in enumerate(loop):
                with log.open("a") as file:
                    print(step + loop.step, file=file)
        return log.read_text()

    written = run()
    assert written
    assert run() == written


def test_what_was_there_before_the_job_is_put_back(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old\n")

    def run() -> None:
        begin_process()
        with process(tmp_path / "job"):
            outlast.keep(path, job_dir=tmp_path / "job")
            with path.open("a") as file:
                print("new", file=file)
            trained(tmp_path / "job")

    run()
    run()
    assert path.read_text() == "old\nnew\n"


def test_a_path_that_is_not_kept_any_more_is_named(tmp_path: Path) -> None:
    folder, job = tmp_path / "search", tmp_path / "job"
    search(job, folder)
    begin_process()
    with process(job):
        (folder / "log.csv").write_text("as it is")
        trained(job, net(units=3), epochs=2, callbacks=[Best(folder, 0)])
    log = "".join(path.read_text() for path in job.glob("attempts/*/log.jsonl"))
    assert "kept_files_ignored" in log
    assert (folder / "log.csv").read_text() == "as it is"


@pytest.mark.parametrize("path", ["/", "~", ".", "..", "job", "job/checkpoints/x", "job/attempts"])
def test_a_path_that_others_need_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    begin_process()
    with process(tmp_path / "job"), pytest.raises(UsageError, match="keep: "):
        outlast.keep(Path(path).expanduser(), job_dir=tmp_path / "job")


def test_large_files_that_were_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(9 << 20))
    begin_process()
    with process(tmp_path / "job"), pytest.raises(UsageError, match="already holds 9 MiB"):
        outlast.keep(tmp_path / "large", job_dir=tmp_path / "job")


def test_an_audit_is_refused(tmp_path: Path) -> None:
    begin_process()
    with process(tmp_path / "job"):
        ctx = bare.open_bare(tmp_path / "job")
        ctx.audit = AuditTarget(phase=0, step=1, stage=0, late=False)
        with pytest.raises(UsageError, match="an audit runs the script"):
            outlast.keep(tmp_path / "search")


def test_without_a_job_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="job_dir"):
        outlast.keep(tmp_path / "search")


def test_a_transaction_that_stays_open_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    begin_process()
    with process(tmp_path / "job"):
        outlast.keep(path, job_dir=tmp_path / "job")
        with closing(sqlite3.connect(path)) as study:
            study.execute("create table trials (value)")
            study.commit()
            study.execute("begin exclusive")
            with pytest.raises(UsageError, match="Leave no transaction open"):
                trained(tmp_path / "job")
