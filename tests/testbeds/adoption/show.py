"""`make adoption`: do scripts that know nothing of Outlast survive under `outlast run --adopt`?

Each script of tests/acceptance/unmodified is run plainly by Python, untouched by `outlast run
--adopt=strict`, and once more killed at random. Prints whether the ends are equal to the byte. The
end of plain Python differs where arrays are shuffled: Keras' order cannot be resumed.

    python -m tests.testbeds.adoption.show --kills 6 vae gan
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.acceptance import adopted


def moments(kills: int, dice: random.Random) -> str:
    """Return when to kill: after some steps, most of them somewhere after the step.

    The first kill comes at a step, because a small script may end before it has come.
    """
    told = [f"{dice.randint(1, 5)}"]
    for _ in range(kills - 1):
        delay = dice.choice(["", f"+{dice.uniform(0, 0.05):.3f}", f"+{dice.uniform(0, 0.5):.3f}"])
        told.append(f"{dice.randint(1, 12)}{delay}")
    return ",".join(told)


def main() -> int:
    """Run the scripts that are named, or all; return how many did not end the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="*", help="names; default: all that need only Keras")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--fork", action="store_true", help="fork the attempts; starts faster")
    parser.add_argument("--no-plain", action="store_true", help="do not run plain Python as well")
    told = parser.parse_args()
    seed = told.seed if told.seed is not None else random.SystemRandom().randint(0, 9999)
    dice = random.Random(seed)
    print(f"seed {seed}\n{'script':24}{'attempts':>9}  {'killed = untouched':20}untouched = plain")
    every = [path.stem for path in adopted.OF_KERAS]
    bad = 0
    for name in told.scripts or every:
        script = adopted.SCRIPTS / f"{name}.py"
        with tempfile.TemporaryDirectory(prefix="outlast-adoption-") as temporary:
            folder = Path(temporary)
            plain = "" if told.no_plain else adopted.plainly(script, folder / "plain")
            untouched = adopted.run(script, folder / "untouched", fork=told.fork)
            kills = moments(told.kills, dice)
            killed = adopted.run(script, folder / "killed", kills=kills, fork=told.fork)
        differences = killed.differences(untouched)
        same = "DIFFERENT" if differences else "equal"
        if differences:
            bad += 1
            print(f"{kills}:", *differences, sep="\n", file=sys.stderr)
        as_plain = "equal" if plain == untouched.end else "-"
        print(f"{script.stem:24}{killed.attempts:>9}  {same:20}{as_plain}", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
