"""A small virtual machine that can lose its power: a kernel, a root with this Python, a disk.

Needs qemu-system-x86_64, busybox (static), mke2fs, and a Debian kernel: one that is installed, or
the package that apt fetches. Nothing is installed, nothing is mounted here, no root is needed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import selectors
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).parents[3]
TOOLS = {  # and the Debian packages that bring them
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "mke2fs": "e2fsprogs",
}
KERNEL_PACKAGE = "linux-image-cloud-amd64"
PACKAGES = ("numpy", "h5py", "xxhash", "msgspec", "fsspec", "tenacity", "structlog", "ml_dtypes")
# What a kernel has built in has no file.
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("virtio_blk", "crc32c_generic", "ext4"),
)
MEMORY = "512"  # MiB
BOOT_SECONDS = 600  # a busy machine without KVM is slow

INIT = """#!/bin/busybox sh
busybox mkdir -p /proc /sys /dev /new
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
# Twice: which of them needs which differs from kernel to kernel.
for module in /modules/*.ko /modules/*.ko; do busybox insmod $module 2>/dev/null; done
busybox mount -t ext4 -o ro /dev/vda /new || echo NO ROOT
busybox mount -t ext4 /dev/vdb /new/job || echo NO DISK
busybox mount -t proc proc /new/proc
busybox mount -t devtmpfs dev /new/dev
busybox mount -t tmpfs tmp /new/tmp
export PYTHONPATH={packages}
busybox chroot /new {python} {guest} "$@" </dev/console >/dev/console 2>&1
busybox poweroff -f
"""


class Lacking(Exception):
    """Something that is needed is not on this machine."""


class Machine:
    """The parts of the virtual machine, made once in `folder`; its disk keeps what it has.

    guest: the script that it runs. package: an unpacked kernel package, if not found by itself.
    """

    def __init__(self, folder: Path, guest: Path, package: Path | None = None) -> None:
        for tool, brings in TOOLS.items():
            if shutil.which(tool, path=_paths()) is None:
                raise Lacking(f"{tool} is not installed: apt-get install {brings}")
        self._kernel, modules = _find_kernel(folder, package)
        self._initrd = folder / "initrd"
        self._initrd.write_bytes(_initrd(modules, guest))
        self._root = folder / "root.img"
        _make_root(folder / "root", guest, self._root)
        self.disk = folder / "disk.img"

    def new_disk(self) -> None:
        """Put an empty ext4 file system on the disk."""
        self.disk.unlink(missing_ok=True)
        _mke2fs("-t", "ext4", str(self.disk), "1G")

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Console]:
        """Boot it and give its console; on the way out its power is cut (SIGKILL)."""
        command = [
            *("qemu-system-x86_64", "-M", "q35", "-m", MEMORY, "-smp", "1"),
            *("-accel", "tcg", "-cpu", "max", "-nodefaults", "-no-reboot"),
            *("-display", "none", "-serial", "stdio", "-net", "none"),
            *("-kernel", str(self._kernel), "-initrd", str(self._initrd), "-append"),
            f"console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init -- {' '.join(arguments)}",
        ]
        for name, image, how in (
            ("root", self._root, "readonly=on"),
            ("disk", self.disk, "cache=writeback"),
        ):
            command += ["-drive", f"id={name},file={image},format=raw,if=none,{how}"]
            command += ["-device", f"virtio-blk-pci,drive={name}"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            yield Console(process)
        finally:
            process.kill()
            with process:
                pass


class Console:
    """What the machine writes to its serial line, line by line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._process, self._out = process, process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        self._rest = b""
        self.said: list[str] = []

    def lines(self, seconds: float) -> Iterator[str]:
        """Give the lines as they come, until it ends or for so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not self._selector.select(left):
                return
            data = os.read(self._out.fileno(), 1 << 16)
            if not data:
                return
            *whole, self._rest = (self._rest + data).split(b"\n")
            for line in whole:
                text = line.decode(errors="replace").rstrip("\r")
                self.said.append(text)
                yield text

    def cut(self) -> list[str]:
        """Cut the power; return the lines that had come out before."""
        self._process.kill()
        self._process.wait()
        return list(self.lines(1))


def _paths() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _mke2fs(*arguments: str) -> None:
    tool = shutil.which("mke2fs", path=_paths())
    assert tool is not None
    subprocess.run([tool, "-q", "-F", *arguments], check=True, stdout=subprocess.DEVNULL)


def _find_kernel(folder: Path, package: Path | None) -> tuple[Path, Path]:
    """Return a kernel and the folder of its modules: installed here, or out of its package."""
    for kernel in sorted(Path("/boot").glob("vmlinuz-*-amd64"), reverse=True):
        modules = Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")
        if package is None and modules.is_dir() and os.access(kernel, os.R_OK):
            return kernel, modules
    if package is None:
        package = folder / "kernel"
        _unpack_kernel(folder, package)
    return next(package.glob("boot/vmlinuz-*")), next(package.glob("lib/modules/*"))


def _unpack_kernel(folder: Path, unpacked: Path) -> None:
    try:
        depends = subprocess.run(
            ["apt-cache", "depends", KERNEL_PACKAGE], check=True, capture_output=True, text=True
        ).stdout
        package = re.findall(r"Depends: (linux-image-\S+)", depends)[0]
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
        archive = next(folder.glob("linux-image-*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
        archive.unlink()
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise Lacking(f"there is no kernel, and apt brings none: {error}") from error


def _initrd(modules: Path, guest: Path) -> bytes:
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    python = Path(sys.executable).resolve()
    packages = _place("numpy").parent
    init = INIT.format(python=python, guest=guest, packages=packages)
    files = {
        "init": (init.encode(), 0o100755),
        "bin": (b"", 0o040755),
        "bin/busybox": (busybox, 0o100755),
        "modules": (b"", 0o040755),
    }
    for index, name in enumerate(MODULES):
        for found in modules.rglob(f"{name}.ko"):
            files[f"modules/{index}-{name}.ko"] = found.read_bytes(), 0o100644
    return _cpio(files)


def _cpio(files: dict[str, tuple[bytes, int]]) -> bytes:
    """Return an archive in the format that the kernel unpacks ("newc")."""
    archive = b""
    for inode, (name, (data, mode)) in enumerate([*files.items(), ("TRAILER!!!", (b"", 0))], 1):
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields)
        for part in (head + name.encode() + b"\0", data):
            archive += part + b"\0" * (-len(part) % 4)
    return archive


def _make_root(root: Path, guest: Path, image: Path) -> None:
    """Make an image of this Python, its libraries and our sources, all where they are here."""
    for folder in ("proc", "dev", "tmp", "job"):
        (root / folder).mkdir(parents=True)
    python = Path(sys.executable).resolve()
    _take(root, python)
    library = Path(sysconfig.get_path("stdlib"))
    _take(root, library, "test", "site-packages", "dist-packages", "idlelib", "lib2to3", "config-*")
    for package in PACKAGES:
        place = _place(package)
        _take(root, place, "tests")
        libraries = place.with_name(f"{package}.libs")
        if libraries.is_dir():
            _take(root, libraries)
    for package in ("checkpoints", "service"):
        _take(root, TOP / package, "__pycache__")
    _take(root, guest)
    found_libraries = _libraries([python, *root.rglob("*.so*")])
    for library in found_libraries:
        if not (root / library.relative_to("/")).exists():
            _take(root, library)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    _mke2fs("-t", "ext4", "-O", "^has_journal", "-d", str(root), str(image), f"{size // 800_000}M")
    shutil.rmtree(root)


def _place(package: str) -> Path:
    """Return the folder of an installed package."""
    found = importlib.util.find_spec(package)
    assert found is not None, package
    assert found.origin is not None, package
    return Path(found.origin).parent


def _take(root: Path, path: Path, *without: str) -> None:
    """Copy a file or folder to the same place below the root."""
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)
    else:
        shutil.copy2(path, target)


def _libraries(files: list[Path]) -> set[Path]:
    """Return what the dynamic loader loads for these files, itself included."""
    listed = subprocess.run(
        ["ldd", *map(str, files)], capture_output=True, text=True, check=False
    ).stdout
    return {Path(found) for found in re.findall(r"(/\S+\.so\S*) \(0x", listed)}
