"""The command line: parse, call, print."""

from sonde.cli.main import main

__all__ = ["main"]
