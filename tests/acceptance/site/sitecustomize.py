"""Makes cold test processes start faster, by leaving out what they do not need.

Keras imports some packages where it can, and uses them for users' data frames and plots alone;
their import takes a third of the time that a process needs to its first step. Python's end looks
for cycles once more among all that TensorFlow has imported, for a second and more. The tests of
README.md and of the demo start and end with all of it.
"""

import atexit
import gc
import os
import sys

for name in {"matplotlib", "pandas", "sklearn"} - set(os.environ.get("SCRIPT_NEEDS", "").split()):
    sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
gc.set_threshold(10_000)  # with the default it looks over and over while all is imported
atexit.register(gc.freeze)  # the first to register is the last to be called

if os.environ.get("KILLED_AFTER"):
    from tests.acceptance import killing

    killing.install()
