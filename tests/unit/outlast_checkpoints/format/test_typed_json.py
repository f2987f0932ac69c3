"""Many threads may be the first to decode documents of one type."""

from __future__ import annotations

import subprocess
import sys

# Without the lock about one process in fifteen dies of SIGSEGV.
AT_ONCE = """
import collections, os, sys, threading
from outlast_checkpoints.arrays import array_table

text = b'{"format":1,"arrays":[],"attributes":[]}'
codes = collections.Counter()
for _ in range(150):
    pid = os.fork()
    if pid == 0:
        sys.setswitchinterval(1e-6)
        start = threading.Barrier(8)

        def decode():
            start.wait()
            array_table.decode(text, 0, "state.h5")

        threads = [threading.Thread(target=decode) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os._exit(0)
    codes[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])] += 1
print(dict(codes))
"""


def test_no_process_dies_of_the_first_documents() -> None:
    command = [sys.executable, "-c", AT_ONCE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "{0: 150}"
