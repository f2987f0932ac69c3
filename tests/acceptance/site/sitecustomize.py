"""For processes of the tests that start cold: without packages that Keras imports where it can.

It uses them for users' data frames and plots alone, and their import takes a third of the time
that a process needs to its first step. The tests of README.md and of the demo start with them.
"""

import sys

for name in ("matplotlib", "pandas", "sklearn"):
    sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
