"""`python -m service.demo` is `holdfast demo`."""

import sys

from service.cli import main

main(["demo", *sys.argv[1:]])
