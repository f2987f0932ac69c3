"""`python -m service.demo` is `holdfast demo`."""

from service.cli import main

main(["demo"])
