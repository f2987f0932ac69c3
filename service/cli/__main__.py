"""`python -m service.cli` is `holdfast`."""

from service.cli import main

main()
