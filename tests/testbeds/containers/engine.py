"""The Dockerfile built by buildah, and containers of it run by podman, all within one folder.

Needs root, and what TOOLS names. No registry of images is asked: the image that the Dockerfile
starts from is made here, from packages of the distribution that its name names.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).parents[3]
TOOLS = {  # and the Debian packages that bring them
    "buildah": "buildah",
    "podman": "podman",
    "conmon": "conmon",
    "runc": "runc",
    "debootstrap": "debootstrap",
}
IMAGE = "localhost/outlast"
BASE = "python:3.11-slim-bookworm"
# Of open files and of processes: podman's own choice is more than every root may give away.
LIMIT = 10_000
# What pip has to be told, here as there, to reach the index that this machine uses.
REACH = {
    *("index-url", "extra-index-url", "find-links", "no-index", "trusted-host"),
    *("cert", "proxy", "timeout", "default-timeout", "retries"),
}


class Lacking(Exception):
    """Something that is needed is not on this machine."""


class Engine:
    """Images, volumes and containers below `folder`; what is there already is used again."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            raise Lacking("only root can build and run images this way")
        missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
        if missing:
            raise Lacking(f"not everything is installed: apt-get install {' '.join(missing)}")
        self.folder = folder
        self._store = [
            *("--root", str(folder / "images"), "--runroot", str(folder / "run")),
            *("--storage-driver", "overlay"),
        ]
        self._podman = [
            *("podman", *self._store, "--tmpdir", str(folder / "podman")),
            *("--runtime", "runc", "--cgroup-manager", "cgroupfs"),
        ]

    # -- images --------------------------------------------------------------------------

    def build(self) -> float:
        """Build the Dockerfile of this checkout; return how many seconds that took."""
        if self._try("image", "exists", f"localhost/{BASE}").returncode:
            self._make_base(BASE)
        return self.build_from(TOP, IMAGE, "--build-arg", f"BASE=localhost/{BASE}")

    def build_from(self, context: Path, tag: str, *options: str) -> float:
        began = time.monotonic()
        command = [
            *("buildah", *self._store, "build", "--isolation", "chroot", "--pull-never"),
            *("--layers", "--network", "host", "--tag", tag, *self._indexes(), *options),
            str(context),
        ]
        log = self.folder / "build.log"
        with log.open("wb") as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
            )
        assert done.returncode == 0, log.read_text(errors="replace")[-4000:]
        return time.monotonic() - began

    def size(self, tag: str = IMAGE) -> int:
        """Return the bytes of an image."""
        return int(self.podman("image", "inspect", "--format", "{{.Size}}", tag))

    def _make_base(self, base: str) -> None:
        """Make what `base` names: a small system with the Python of its distribution."""
        named = re.fullmatch(r"python:(\d+\.\d+)-slim-(\w+)", base)
        assert named is not None, f"how is {base} made?"
        version, suite = named.groups()
        root = self.folder / "base"
        shutil.rmtree(root, ignore_errors=True)
        include = "--include=python3-venv,python3-distutils"
        command = ["debootstrap", "--variant=minbase", include, suite, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:]
        if not (root / f"usr/bin/python{version}").exists():
            raise Lacking(f"{suite} has another Python than {version}")
        # Where the real one has it.
        (root / "usr/local/bin/python").symlink_to(f"/usr/bin/python{version}")
        for folder in (root / "var/cache/apt/archives", root / "var/lib/apt/lists"):
            shutil.rmtree(folder)
        with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(
                [*self._podman, "import", "--quiet", "-", f"localhost/{base}"],
                stdin=tar.stdout, check=True, capture_output=True,
            )  # fmt: skip
        shutil.rmtree(root)

    def _indexes(self) -> Iterator[str]:
        """Yield options that let pip in a build reach what pip here reaches."""
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True, check=True, text=True,
        ).stdout  # fmt: skip
        told = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)=(.+)$", listed, re.M))
        reach = {key: ast.literal_eval(value) for key, value in told.items() if key in REACH}
        file = self.folder / "pip.conf"
        lines = [f"{key} = {' '.join(value.split())}\n" for key, value in reach.items()]
        file.write_text("".join(["[global]\n", *lines]))
        mounts = {"/etc/pip.conf": file}
        for word in " ".join(reach.values()).split():
            # One that is served by files: the folder that has both lists and packages.
            path = word.removeprefix("file://").removesuffix("/simple")
            if path.startswith("/") and Path(path).exists():
                mounts[path] = Path(path).resolve()
        for there, here in mounts.items():
            yield from ("--volume", f"{here}:{there}:ro")

    # -- containers ----------------------------------------------------------------------

    def podman(self, *arguments: str) -> str:
        done = self._try(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _try(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self._podman, *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)

    def command(self, *options: str, image: str = IMAGE, run: tuple[str, ...] = ()) -> list[str]:
        """Return the command line of a container: `outlast` with the arguments `run`.

        Without a network, and without an init: what holds then holds with one as well.
        """
        limits = [word for name in ("nofile", "nproc") for word in ("--ulimit", f"{name}={LIMIT}")]
        return [*self._podman, "run", "--network", "none", *limits, *options, image, *run]

    def run(self, *options: str, **how: object) -> subprocess.CompletedProcess[str]:
        """Run a container to its end; the image's own command if `run` is not given."""
        command = self.command("--rm", *options, **how)  # type: ignore[arg-type]
        # conmon leaves a file where it is started when a container runs out of memory.
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)

    def new_volume(self, name: str) -> Path:
        """Make an empty volume; return where this machine has its files."""
        self.podman("volume", "rm", "--force", name)
        self.podman("volume", "create", name)
        return Path(self.podman("volume", "inspect", "--format", "{{.Mountpoint}}", name))

    def close(self) -> None:
        """End and remove every container; images stay."""
        self.podman("rm", "--all", "--force", "--time", "0", "--volumes")
