"""Runs all benchmarks one after the other and prints one table of their figures.

`python tests/benchmarks/all.py [--full] [--json FILE] [NAME …]`: NAME is a file here. --full: at
the sizes that the figures are asked for, which takes about an hour. --json: also write the figures
there, with the machine that they are of. What a benchmark prints comes before the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.figure import Figure, table

FOLDER = Path(__file__).parent
# Those that take longer with --full; the others are the same size always.
NAMES = {
    "loop": False,
    "saving": False,
    "throughput": False,
    "frozen": False,
    "objects": False,
    "signing": False,
    "restart": False,
    "goodput": True,
    "history": True,
    "jobs": True,
}
PACKAGES = ("tensorflow", "keras", "numpy", "h5py")


def figures_of(name: str, *, full: bool) -> list[Figure]:
    """Run a benchmark in a separate process. Raises `CalledProcessError`."""
    flags = ["--full"] if full and NAMES[name] else []
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--json", *flags],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return [Figure.of(one) for one in json.loads(done.stdout)]


def machine() -> dict[str, Any]:
    """Return what the figures depend on. load: average of the minute before the first benchmark."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    on = machine()
    found: dict[str, list[Figure]] = {}
    failed = []
    for name in options.names or NAMES:
        began = time.monotonic()
        print(f"{name} …", end="", flush=True)
        try:
            found[name] = figures_of(name, full=options.full)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f" failed with {error.returncode}")
            continue
        print(f" {time.monotonic() - began:.0f} s")
    if options.json is not None:
        plain = {name: [one.plain() for one in figures] for name, figures in found.items()}
        options.json.write_text(json.dumps({"machine": on, "figures": plain}, indent=2) + "\n")
    print(f"\n{', '.join(f'{name} {value}' for name, value in on.items())}\n")
    print(table([one for figures in found.values() for one in figures]))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
