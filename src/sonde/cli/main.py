"""``sonde WORD ...``: the overview, and how a command is run.

Nothing heavy is imported here, so that help is quick and Ctrl-C during imports is no traceback.
"""

import gc
import os
import sys
import time
import traceback
from collections.abc import Sequence

from sonde.cli.console import begun, note_interrupted, say, typed

USAGE = """sonde: look inside PyTorch models

  sonde scan MODEL DATA -o report.html         is it correct, and if not, why
  sonde fit METHODS MODEL DATA -o probe.sonde  detectors, statistics
  sonde score probe.sonde MODEL DATA           which inputs are anomalous
  sonde explain MODEL DATA                     why these answers, tested
  sonde compress MODEL DATA -o SMALL/          quantise or prune, what it costs

  sonde more                                   all commands

MODEL is a Hugging Face directory or name, package.module:factory, sonde:digits,
sonde:stdlib, or - for feature arrays or a table alone. DATA is an image folder,
a JSONL, CSV or Parquet file, arrays, or a data set by name (sonde:digits/test).

Example: sonde scan sonde:digits sonde:digits/test -o report.html
`sonde WORD --help` shows the flags of a command and an example."""
MORE = """Read, fit, score
  sonde scan MODEL DATA [-o report.html]          what is going on inside
  sonde scan MODEL DATA --versus OTHER            where two data sets differ
  sonde read MODEL DATA -o acts/                  hidden states to disk
  sonde fit METHODS MODEL DATA -o probe.sonde     statistics and detectors
  sonde calibrate probe.sonde MODEL DATA          alarms at a stated rate
  sonde score probe.sonde MODEL DATA              which inputs are anomalous
  sonde evaluate USUAL.parquet UNUSUAL.parquet    how good the scores are
  sonde merge A.sonde B.sonde -o C.sonde          join bundles fitted separately
  sonde labels FILE.npz                           how many labels are wrong

Compare
  sonde drift A.sonde B.sonde                     what changed between two fits
  sonde compare MODEL OTHER DATA                  two models, layer by layer
  sonde track FOLDER [DATA]                       measures over a training run

Explain
  sonde explain MODEL DATA                        attribution, tested
  sonde trace MODEL --clean A --corrupt B ...     activation patching
  sonde units MODEL DATA --sites S -o atlas.html  what each unit responds to

Change
  sonde edit WORD MODEL ... -o NEW/               steer, erase, merge, undo
  sonde generate MODEL TEXT [--steer A.sonde]     generate text, also steered
  sonde train MODEL DATA -o NEW/                  train with losses on states
  sonde compress MODEL DATA -o SMALL/             quantise or prune
  sonde cache MODEL DATA                          smaller KV caches

Run and keep
  sonde serve MODEL [probe.sonde]                 answer over HTTP, monitored
  sonde info FILE                                 describe a file of sonde
  sonde export STORE -o FILE                      Parquet, arrays or Lance
  sonde verify FILE|DIR [--repair]                files against their hashes
  sonde encode FILE -o FILE                       texts in few bytes
  sonde decode FILE -o FILE                       and back, bit for bit

Look up
  sonde methods [FAMILY]                          the catalogue
  sonde recipe NAME MODEL DATA ...                one question, answered
  sonde study NAME                                a paper's claims, tried here
  sonde completion SHELL                          for bash, zsh or fish

`sonde WORD --help` shows the flags of a command and an example."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 fine; 1 a gate was reached; 2 an error; 130 interrupted. An error is told in one line. Its
    traceback is printed with ``--debug``, or if nobody foresaw it, as in the code of a model.

    Parameters
    ----------
    arguments : Sequence[str], optional
        Words of the command line; by default those of the process.
    """
    # Threads of OpenMP that spin while they wait take the cores from whoever works.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imports make objects that stay; to look for garbage among them after every 700 takes .4 s.
    gc.set_threshold(10_000)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help", "more"):
        say(MORE if "more" in words[:2] else USAGE)
        return 0
    if words[0] == "--version":
        from sonde import __version__
        from sonde.core.wording import DISTRIBUTION

        say(f"{DISTRIBUTION} {__version__}")
        return 0
    typed.set(tuple(words))
    begun.set(time.time())
    try:
        from sonde.cli.commands import run_command

        return run_command(words[0], words[1:])
    except KeyboardInterrupt:
        note_interrupted(None)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        # What nobody foresaw, as in the code of a model. Python would end with 1: a gate's code.
        traceback.print_exc()
        return 2
