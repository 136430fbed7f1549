"""`python -m generalist`."""

from generalist.cli.main import script

script()
