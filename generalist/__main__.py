"""`python -m generalist`."""

from generalist.cli import script

script()
