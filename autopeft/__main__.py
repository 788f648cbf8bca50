"""Lets ``python -m autopeft`` be the command line."""

from autopeft.cli import main

main()
