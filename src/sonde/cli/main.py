"""``sonde WORD ...``: which command runs, and how it ends."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Annotated, Any

import tyro

from sonde.cli._usage import wrong_usage
from sonde.cli.console import Failed, error_line
from sonde.cli.fit import Fit
from sonde.cli.info import Info
from sonde.cli.merge import Merge
from sonde.cli.methods import Methods
from sonde.cli.read import Read
from sonde.cli.scan import Scan
from sonde.cli.score import Score
from sonde.core.errors import SondeError, SondeWarning

COMMANDS: dict[str, type[Any]] = {
    "scan": Scan,
    "read": Read,
    "fit": Fit,
    "score": Score,
    "merge": Merge,
    "info": Info,
    "methods": Methods,
}

USAGE = """sonde: a probe for the hidden states of neural networks

  sonde scan MODEL DATA [-o report.html]          what is going on inside
  sonde scan MODEL DATA --versus OTHER            where two data sets differ
  sonde read MODEL DATA -o acts/                  hidden states to disk
  sonde fit METHODS MODEL DATA -o probe.sonde     statistics and detectors
  sonde score probe.sonde MODEL DATA              score new inputs
  sonde merge A.sonde B.sonde -o C.sonde          add up what was fitted apart
  sonde info FILE                                 what a file holds
  sonde methods [FAMILY]                          the catalogue

MODEL is a Hugging Face directory or name, package.module:factory, sonde:digits,
sonde:stdlib, or - for feature arrays. DATA is an image folder, a JSONL, CSV or
Parquet file, arrays, or a data set by name, e.g. sonde:digits/test.

Example: sonde scan sonde:digits sonde:digits/test -o report.html
`sonde WORD --help` shows the flags of a command and an example."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 fine; 1 a gate was reached; 2 an error that the user can mend; 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        _say(USAGE)
        return 0
    if words[0] == "--version":
        from sonde import __version__

        _say(f"sonde {__version__}")
        return 0
    if words[0] not in COMMANDS:
        from sonde.core.errors import near

        error_line(
            f"no command is called {words[0]!r}.{near(words[0], COMMANDS)} See sonde --help."
        )
        return 2
    return _run(words[0], words[1:])


def _run(word: str, arguments: list[str]) -> int:
    command = COMMANDS[word]
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            parsed = tyro.cli(
                Annotated[command, tyro.conf.arg(name=word)],
                prog=f"sonde {word}",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            return 0
        error_line(wrong_usage(command, word, arguments, box.getvalue()))
        return 2
    debug = bool(getattr(parsed.printing, "debug", False))
    _configure(debug)
    try:
        code = int(parsed.run())
        sys.stdout.flush()
        return code
    except Failed as failed:
        return failed.code
    except SondeError as error:
        if debug:
            raise
        error_line(str(error) + "".join(f" ({note})" for note in getattr(error, "__notes__", ())))
        return 130 if type(error).__name__ == "Interrupted" else 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        error_line("interrupted.")
        return 130


def _configure(debug: bool) -> None:
    """Log warnings of ours on one line each; everything with ``--debug``."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("sonde").setLevel(logging.DEBUG if debug else logging.WARNING)
    if not debug:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", SondeWarning)
        warnings.showwarning = _one_line


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(f"note: {message}\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
