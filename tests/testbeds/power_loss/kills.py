"""`make power-loss`: a machine that saves as fast as it can loses its power, again and again.

Whatever it had promised before (a checkpoint committed, an event written) must be whole when it is
started again. To show that this would be noticed, the same is done with fsync doing nothing.

Options: --kills N (12), --without-fsync N (3; each on a fresh disk), --seed N, --folder DIR (for
the machine's disks; a temporary one), --package DIR (an unpacked kernel package, see machine.py).
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.testbeds.power_loss.machine import BOOT_SECONDS, Console, Lacking, Machine

GUEST = Path(__file__).with_name("guest.py")
MOST_SAVES = 80  # until the power goes
MOST_DELAY = 0.3  # seconds after the last of these; a save takes less


@dataclass
class Found:
    """What was on the disk. bad: what is damaged. rows: of the history, as the machine told."""

    has: set[str] = field(default_factory=set)
    bad: list[str] = field(default_factory=list)
    rows: str = ""


def look(console: Console) -> Found:
    """Return what the machine finds on its disk when it comes up."""
    found = Found()
    for line in console.lines(BOOT_SECONDS):
        word, _, rest = line.partition(" ")
        if word == "HAS":
            found.has.add(rest)
        elif word in ("BAD", "WRONG"):
            found.bad.append(line)
        elif word == "ROWS":
            found.rows = rest
        elif word == "LOOKED":
            return found
    raise SystemExit("\n".join(["The machine did not come up. It said:", *console.said[-40:]]))


def train(console: Console, saves: int, delay: float) -> list[str]:
    """Let it train until it has saved so often, and a moment longer; return what it promised."""
    promised = []
    for line in console.lines(BOOT_SECONDS):
        if line.startswith("SAVED "):
            promised.append(line.removeprefix("SAVED "))
            if len(promised) >= saves:
                break
    else:
        raise SystemExit("\n".join(["It stopped saving. It said:", *console.said[-40:]]))
    time.sleep(delay)
    rest = console.cut()  # what had come out before the power went was promised as well
    return promised + [line[6:] for line in rest if line.startswith("SAVED ")]


def with_fsync(machine: Machine, kills: int, chance: random.Random) -> int:
    """Kill it so often, on one disk; return how many promises were broken."""
    machine.new_disk()
    promised: list[str] = []
    broken = 0
    for kill in range(1, kills + 1):
        with machine.running("sync", "train") as console:
            broken += judge(look(console), promised)
            new = train(console, chance.randint(1, MOST_SAVES), chance.uniform(0, MOST_DELAY))
        promised += new
        print(f"kill {kill:3}: after {len(new):3} promises, the last {new[-1]}", flush=True)
    with machine.running("sync", "look") as console:
        broken += judge(look(console), promised)
    print(f"with fsync: {kills} kills, {len(promised)} promises, {broken} broken")
    return broken


def judge(found: Found, promised: list[str]) -> int:
    """Say what is missing or damaged of what was promised; return how much that is."""
    lost = [promise for promise in promised if promise not in found.has]
    for promise in lost:
        print(f"  LOST {promise}")
    for line in found.bad:
        print(f"  {line}")
    if promised:
        print(f"  found again: {len(found.has)} things; history of {found.rows}", flush=True)
    return len(lost) + len(found.bad)


def without_fsync(machine: Machine, kills: int, chance: random.Random) -> int:
    """Kill it so often, each time on a fresh disk; return in how many a promise was broken."""
    noticed = 0
    for kill in range(1, kills + 1):
        machine.new_disk()
        with machine.running("no-sync", "train") as console:
            look(console)
            promised = train(console, chance.randint(20, MOST_SAVES), 0)
        with machine.running("sync", "look") as console:
            found = look(console)
        lost = [promise for promise in promised if promise not in found.has]
        noticed += bool(lost)
        print(f"kill {kill:3}: {len(lost)} of {len(promised)} promises broken", flush=True)
    print(f"without fsync: noticed at {noticed} of {kills} kills")
    return noticed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--without-fsync", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--package", type=Path)
    options = parser.parse_args()
    for signum in (signal.SIGINT, signal.SIGTERM):  # the machine goes as well then
        signal.signal(signum, signal.default_int_handler)
    print(f"seed {options.seed}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="outlast-", dir=options.folder) as folder:
        try:
            machine = Machine(Path(folder), GUEST, options.package)
        except Lacking as lacking:
            print(f"power-loss: {lacking}", file=sys.stderr)
            return 2
        broken = with_fsync(machine, options.kills, random.Random(options.seed))
        noticed = without_fsync(machine, options.without_fsync, random.Random(options.seed))
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if not broken and (noticed or not options.without_fsync) else 1


if __name__ == "__main__":
    sys.exit(main())
