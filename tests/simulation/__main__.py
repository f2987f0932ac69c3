"""See `many`, which the processes that share the work can import, as they cannot import this."""

import sys

from tests.simulation.many import main

sys.exit(main())
