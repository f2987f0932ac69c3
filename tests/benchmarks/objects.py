"""A checkpoint of 300 MB in a bucket: saving and loading it, beside boto3's transfer manager.

`python tests/benchmarks/objects.py [--json] [--pairs N]`, with the servers of the extra `bench`.
A save begins with the first byte of the spool and ends with the manifest in the bucket; the peer
uploads a file of the same content that is there already. A load reads the newest checkpoint,
checks each byte and returns arrays; the peer downloads the file. The peer has the same part size
and as many requests at a time. Memory is the peak of a process above what it had before.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.s3_parts import PART_SIZE, PARTS
from outlast_checkpoints.store.background_writer import Writer
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool import Spool
from outlast_checkpoints.store.spool_sender import Sender
from tests.benchmarks.command_line import HOW_MANY_PAIRS, main
from tests.benchmarks.figure import PAIRS, Figure, Spread, compared
from tests.benchmarks.worker import several
from tests.support.object_stores import ObjectStore, run_moto, run_seaweed

MB = 1e6
ARRAYS, NUMBERS = 12, 6_250_000  # 300 MB of float32
FILE = "checkpoints/00-000000000001.0-0001/model.weights.h5"
BAR = 1 / 0.9
STATE = 4 * ARRAYS * NUMBERS / MB
Found = dict[str, float]


def snapshot(step: int) -> Snapshot:
    """Return 300 MB of state that resembles none before."""
    import numpy as np

    random = np.random.default_rng(step)
    arrays = {
        f"layers/dense_{i}/vars/0": random.standard_normal(NUMBERS, np.float32)
        for i in range(ARRAYS)
    }
    place = Progress(phase=0, step=step, epoch=0, batch=step)
    return Snapshot(place, files={"model.weights.h5": ArrayFile(arrays)})


def saves(url: str) -> Callable[[], Found]:
    """Return what saves a new checkpoint through a spool, as a training does."""
    turn = iter(range(1, 1000))
    storage = opened(url)

    def measure() -> Found:
        state = snapshot(next(turn))
        with tempfile.TemporaryDirectory(prefix="outlast-bench-") as folder:
            store = CheckpointStore(storage, attempt=1)
            store.begin()
            spool = Spool(Path(folder) / "spool" / "job" / "life", 1 << 40)
            spool.make()
            done: Queue[str] = Queue()

            def on_event(event: str, fields: dict[str, Any]) -> None:
                done.put(event)

            sender = Sender(spool, store, 1, on_event=on_event)
            writer = Writer(store.beside(spool.storage), sender=sender, on_event=on_event)
            with Cost() as cost:
                writer.submit(state, "step")
                writer.wait()
                spooled = time.perf_counter()
                event = done.get(timeout=600)
            assert event == "saved", event
            writer.close()
            sender.close()
            storage.delete_tree("")
        return {**cost.found, "spooled": spooled - cost.start}

    return measure


def opened(url: str) -> Storage:
    """Open a storage whose clients have transferred something, as the peer's has its client."""
    storage, data = open_storage(url), bytes(2 * PART_SIZE)
    name = f"warm-{uuid.uuid4().hex}"
    with storage.stage(name) as path:
        path.write_bytes(data)
    storage.read_into(name, memoryview(bytearray(len(data))))
    storage.delete(name)
    return storage


def loads(url: str) -> Callable[[], Found]:
    """Return what loads the newest checkpoint, every byte checked."""
    storage = opened(url)

    def measure() -> Found:
        with Cost() as cost:
            loaded = CheckpointStore(storage).read_ahead()
        assert loaded is not None
        arrays = loaded.files["model.weights.h5"]
        assert sum(array.nbytes for array in arrays.values()) == ARRAYS * NUMBERS * 4
        return cost.found

    return measure


def by_boto3(direction: str, url: str) -> Callable[[], Found]:
    """Return what transfers a file of the same size with boto3's transfer manager."""
    import boto3
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(
        multipart_threshold=PART_SIZE,
        multipart_chunksize=PART_SIZE,
        max_concurrency=PARTS,
        preferred_transfer_client="classic",
    )
    client = boto3.client("s3")
    client.list_buckets()
    bucket, _, key = f"{url}/{FILE}".removeprefix("s3://").partition("/")
    turn = iter(range(1, 1000))

    def upload() -> Found:
        arrays = snapshot(next(turn)).files["model.weights.h5"].arrays
        with tempfile.NamedTemporaryFile(prefix="outlast-bench-") as file:
            for array in arrays.values():
                file.write(array.data)
            file.flush()
            del arrays
            found = timed(lambda: client.upload_file(file.name, bucket, key, Config=config))
        client.delete_object(Bucket=bucket, Key=key)
        return found

    def download() -> Found:
        with tempfile.TemporaryDirectory(prefix="outlast-bench-") as folder:
            path = f"{folder}/file"
            found = timed(lambda: client.download_file(bucket, key, path, Config=config))
            assert Path(path).stat().st_size > ARRAYS * NUMBERS * 4
        return found

    return {"upload": upload, "download": download}[direction]


class Cost:
    """What a block costs: seconds, CPU seconds, and peak memory above that of before, in MB."""

    def __enter__(self) -> Cost:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        self._before, self._cpu = resident("VmRSS"), time.process_time()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.found = {
            "seconds": time.perf_counter() - self.start,
            "cpu": time.process_time() - self._cpu,
            "memory": resident("VmHWM") - self._before,
        }


def timed(call: Callable[[], object]) -> Found:
    with Cost() as cost:
        call()
    return cost.found


def resident(what: str) -> float:
    """Return a line of this process' status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(what))
    return int(line.split()[1]) * 1024 / MB


MEASURES: dict[str, Callable[[str], Callable[[], Found]]] = {
    "save": saves,
    "upload": lambda url: by_boto3("upload", url),
    "load": loads,
    "download": lambda url: by_boto3("download", url),
}


def measured(store: ObjectStore, pairs: int) -> dict[str, list[Found]]:
    """Measure on a server: first saving, then loading one checkpoint again and again."""
    os.environ.update(store.environment)
    folder = store.folder()
    found = several(__file__, ["save", "upload"], pairs, folder)
    job = store.folder()
    writing = CheckpointStore(open_storage(job), attempt=1)
    writing.begin()
    writing.save(snapshot(1), reason="step")
    return found | several(__file__, ["load", "download"], pairs, job)


def run(*, pairs: int = PAIRS) -> list[Figure]:
    """Measure on both servers."""
    figures = []
    for name, server in (("SeaweedFS", partial(run_seaweed, volumes=400)), ("moto", run_moto)):
        with (
            tempfile.TemporaryDirectory(
                prefix="outlast-bench-", ignore_cleanup_errors=True
            ) as folder,
            server(Path(folder)) as store,
        ):
            figures += figures_of(name, measured(store, pairs))
    return figures


def figures_of(server: str, found: dict[str, list[Found]]) -> list[Figure]:
    """Return time and memory of a save and of a load."""
    figures = []
    for ours, peer, own in (("save", "upload", 0.0), ("load", "download", STATE)):
        against = f"boto3's {peer}_file"
        mine, theirs = ([one["seconds"] for one in found[name]] for name in (ours, peer))
        ratio = Spread.of([a / b for a, b in zip(mine, theirs, strict=True)]).median
        cpu = [Spread.of([one["cpu"] for one in found[name]]) for name in (ours, peer)]
        detail = f"CPU {cpu[0]} s, boto3 {cpu[1]} s"
        if ours == "save":
            detail += f"; in the spool after {Spread.of([one['spooled'] for one in found[ours]])} s"
        figures.append(
            compared(
                f"{ours} 300 MB, {server}", "s", mine, theirs, against,
                bar="<= 1.11 x", holds=ratio <= BAR, detail=detail,
            )
        )  # fmt: skip
        mine, theirs = ([one["memory"] for one in found[name]] for name in (ours, peer))
        most = own + PARTS * PART_SIZE / MB
        figures.append(
            compared(
                f"memory of a {ours}, {server}", "MB", mine, theirs, against,
                bar=f"<= {most:.0f} MB", holds=max(mine) <= most,
            )
        )  # fmt: skip
    return figures


if __name__ == "__main__":
    main(
        __doc__,
        run,
        {"--pairs": HOW_MANY_PAIRS},
        worker=lambda url, name: MEASURES[name](url),
    )
