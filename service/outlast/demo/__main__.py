"""`python -m outlast.demo` is `outlast demo`."""

import sys

from outlast.cli import main

main(["demo", *sys.argv[1:]])
