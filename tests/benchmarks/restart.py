"""Time from SIGKILL of an attempt to its successor's first step, compared with a cold start.

`python tests/benchmarks/restart.py [--json] [--pairs N]`: an MLP on arrays, saved every 20 steps,
under `outlast run` with and without --warm-spare. The peer is the same script started by
`python`, from its start to its first step. "New step" is the first one beyond all that the dead
attempt is known to have done.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from outlast.job.events import Claimed, Ended, Launched
from tests.benchmarks.command_line import HOW_MANY_PAIRS, main
from tests.benchmarks.figure import PAIRS, Figure, Spread, compared, in_turn
from tests.benchmarks.killed import KilledJob, rows_of, start, until

BAR = 0.3
SAVE_EVERY = "20"
Parts = dict[str, float]


def restarted(root: Path, name: str, *, warm: bool) -> Parts:
    """Kill an attempt of a new job once; return the seconds by part of the restart."""
    options = ["--save-every", SAVE_EVERY, "--warm-spare" if warm else "--no-warm-spare"]
    job = KilledJob(root, name, "mlp", *options)
    try:
        until("saved training", lambda: _saved(job))
        if warm:
            until("spare", job.spare)
        killed = job.kill()
        until("step", lambda: len(job.steps(2)) > 1)
        known = max(row["step"] for row in job.steps(1))
        until("new step", lambda: job.steps(2)[-1]["step"] > known)
        beat = until("beat", lambda: (b := job.beat(2)) and b.steps_done and b)
        return _parts(job, killed, known, dict(beat.spent))
    finally:
        job.close()


def _saved(job: KilledJob) -> bool:
    number, _ = job.attempt()
    beat = job.beat(number) if number else None
    return beat is not None and (beat.last_checkpoint_at_step or 0) > 0


def _parts(job: KilledJob, killed: float, known: int, spent: dict[str, float]) -> Parts:
    at = {type(e.event): e.at for e in job.events() if getattr(e.event, "attempt", 0) == 2}
    ended = next(e.at for e in job.events() if isinstance(e.event, Ended))
    log = {row["event"]: row for row in job.log(2)}
    rows = job.steps(2)
    new = next(row for row in rows if row["step"] > known)
    return {
        "detect": ended - killed,
        "claim": at[Claimed] - ended,
        "launch": at[Launched] - at[Claimed],
        "start": log["attempt_started"]["time"] - at[Claimed],
        "import, build, read": spent["importing"],
        "trace": spent["compiling"],
        "restore": log["resumed"]["seconds"],
        "compile, first step": rows[0]["time"] - log["resumed"]["time"],
        "to first step": rows[0]["time"] - killed,
        "to new step": new["time"] - killed,
    }


def cold(folder: Path) -> float:
    """Return the seconds from the start of the plain script to its first step."""
    folder.mkdir()
    began = time.time()
    process = start("mlp", "ours", folder)
    history = folder / "job/attempts/0001/history.jsonl"
    try:
        until("step", lambda: any(row["kind"] == "step" for row in rows_of(history)))
    finally:
        process.kill()
        process.wait()
    return float(next(row for row in rows_of(history) if row["kind"] == "step")["time"]) - began


def run(*, pairs: int = PAIRS) -> list[Figure]:
    """Measure with and without a spare."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="outlast-bench-") as name:
        for warm in (True, False):
            found: list[Parts] = []
            colds = 0

            def ours(warm: bool = warm, found: list[Parts] = found) -> float:
                found.append(restarted(Path(name), f"job-{warm}-{len(found)}", warm=warm))
                return found[-1]["to first step"]

            def peer(warm: bool = warm) -> float:
                nonlocal colds
                colds += 1
                return cold(Path(name, f"cold-{warm}-{colds}"))

            mine, theirs = in_turn(ours, peer, pairs)
            figures += _figures(warm, found, mine, theirs)
    return figures


def _figures(
    warm: bool, found: list[Parts], mine: list[float], theirs: list[float]
) -> list[Figure]:
    name = "restart, warm spare" if warm else "restart, no spare"
    middle = {part: Spread.of([one[part] for one in found]).median for part in found[0]}
    parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in middle.items())
    news = [one["to new step"] for one in found]
    ratio = Spread.of([a / b for a, b in zip(news, theirs, strict=True)]).median
    against = "a cold start to its first step"
    return [
        compared(f"{name}: first step", "s", mine, theirs, against, detail=parts),
        compared(
            f"{name}: new step",
            "s",
            news,
            theirs,
            against,
            bar=f"<= {BAR:g} x" if warm else "",
            holds=ratio <= BAR if warm else None,
        ),
    ]


if __name__ == "__main__":
    main(__doc__, run, {"--pairs": HOW_MANY_PAIRS})
