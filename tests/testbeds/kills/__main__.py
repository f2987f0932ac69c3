"""`make kills`: trainings killed at random moments, until there were so many kills.

Each training, bare or supervised, is killed some times, and its end is compared byte for byte with
that of the same training untouched. Prints a line for each and a sum; exits with 1 if an end
differs, or if a process failed that nobody had killed. What differs is kept in a folder.

    python -m tests.testbeds.kills --kills 100 --seed 3 --only "loop: "
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
SUPERVISED = "field: "
SHARE = 0.03  # of the trainings are supervised ones
LIMIT = (5, 40)  # kills of one training
VICTIMS = 12  # different bare scripts in one round; each needs an untouched twin


def main() -> int:
    parser = argparse.ArgumentParser(prog="kills", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", default="", help="trainings whose names contain this")
    parser.add_argument("--victims", type=int, default=VICTIMS, help="different bare scripts")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin none after this time")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="outlast-kills-"))
    os.environ["OUTLAST_SPOOL"] = str(folder / "spool")
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    print(f"seed {given.seed}, in {folder}", flush=True)
    kept = _Round(folder, given.seed, given.only, given.victims).run(given.kills, given.seconds)
    if not kept:
        shutil.rmtree(folder)
    return 1 if kept else 0


class _Round:
    """Trainings drawn from a seed, and how they ended."""

    def __init__(self, folder: Path, seed: int, only: str, count: int) -> None:
        from tests.acceptance.jobs import write_digits
        from tests.testbeds.kills import bare_scripts, supervised, victims

        assert threading.active_count() == 1, "what is forked must have one thread"
        self.bare, self.supervised = bare_scripts, supervised
        self.folder = folder
        self.chance = random.Random(seed)
        found = {n: v for n, v in victims.all_victims().items() if only in n}
        names = self.chance.sample(list(found), min(count, len(found)))
        self.victims = {name: found[name] for name in names}
        self.scripts = [s for s in supervised.SCRIPTS if only in SUPERVISED + s]
        self.digits = folder / "digits.npz"
        write_digits(self.digits)
        self.twins: dict[str, Any] = {}
        self.makers = {s: supervised.maker(folder, s, self.digits) for s in self.scripts}

    def run(self, wanted: int, seconds: float) -> bool:
        """Kill until there were `wanted` kills; return whether anything differs."""
        began, kills, trainings, differing = time.monotonic(), 0, 0, 0
        while kills < wanted and time.monotonic() - began < seconds:
            limit = min(self.chance.randint(*LIMIT), wanted - kills)
            started = time.monotonic()
            name, count, different = self._train(trainings, limit)
            kills, trainings = kills + count, trainings + 1
            differing += bool(different)
            verdict = f"DIFFERS: {different}" if different else "same"
            took = time.monotonic() - started
            print(f"{name}: {count} kills, {took:.1f} s, {verdict}", flush=True)
        took = time.monotonic() - began
        print(f"trainings = {trainings}, kills = {kills}, differing = {differing}, {took:.0f} s")
        return differing > 0

    def _train(self, number: int, limit: int) -> tuple[str, int, list[str]]:
        """Return the name of a training, how often it was killed, and what differs."""
        chance = self.chance
        if self.scripts and (not self.victims or chance.random() < SHARE):
            script = chance.choice(self.scripts)
            name, make = SUPERVISED + script, self.makers[script]
            try:
                twin = self._supervised_twin(name, script)
                return name, *self.supervised.kill_again_and_again(make, twin, chance, limit)
            except AssertionError as error:
                return name, 0, [str(error)]
        name = chance.choice(list(self.victims))
        at = self.folder / f"{number:04d}"
        try:
            bare_twin = self._bare_twin(name)
            victim = self.victims[name]
            found = self.bare.kill_again_and_again(victim, bare_twin, at, chance, limit)
        except self.bare.Ended as error:
            return name, 0, [str(error)]
        if not found[1]:
            for left in self.folder.glob(f"{at.name}.*"):
                left.unlink()
            shutil.rmtree(at)
        return name, *found

    def _supervised_twin(self, name: str, script: str) -> Any:
        if name not in self.twins:
            self.twins[name] = self.supervised.Twin(self.makers[script])
        return self.twins[name]

    def _bare_twin(self, name: str) -> Any:
        if name not in self.twins:
            at = self.folder / f"twin-{len(self.twins)}"
            self.twins[name] = self.bare.Twin(self.victims[name], at)
        return self.twins[name]


if __name__ == "__main__":
    sys.exit(main())
