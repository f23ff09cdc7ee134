"""The list of commands, how a command runs, and how its errors are printed."""

import errno
import io
import logging
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sonde.cli._table import filled
from sonde.cli._usage import current_flags, flag_names, outputs_of, wrong_usage
from sonde.cli.cache import Cache
from sonde.cli.calibrate import Calibrate
from sonde.cli.coding import Decode, Encode
from sonde.cli.compare import Compare
from sonde.cli.completion import script
from sonde.cli.compress import Compress
from sonde.cli.compress_search import CompressSearch
from sonde.cli.console import (
    REMARK,
    CommandFailed,
    error_line,
    further_pages,
    note,
    note_interrupted,
    noting,
    say,
)
from sonde.cli.drift import Drift
from sonde.cli.edits import EDITS, overview
from sonde.cli.evaluate import Evaluate
from sonde.cli.explain import Explain
from sonde.cli.export import Export
from sonde.cli.fit import Fit
from sonde.cli.generate import Generate
from sonde.cli.info import Info
from sonde.cli.labels import Labels
from sonde.cli.merge import Merge
from sonde.cli.methods import Methods
from sonde.cli.options import PageWord, Printing, named
from sonde.cli.read import Read
from sonde.cli.recipe import Recipe, recipe_command
from sonde.cli.scan import Scan
from sonde.cli.score import Score
from sonde.cli.serve import Serve
from sonde.cli.study import Study
from sonde.cli.trace import Trace
from sonde.cli.track import Track
from sonde.cli.train import Train
from sonde.cli.units import Units
from sonde.cli.verify import Verify
from sonde.core.errors import (
    IN_FORWARD,
    ForwardError,
    SondeError,
    SondeWarning,
    is_out_of_memory,
    near,
)


@dataclass(frozen=True)
class Completion:
    """Print the script that completes commands and flags in a shell.

    It completes the commands of `sonde`, their flags and file names. Load it in the start-up file
    of your shell, or put it into the folder of its completions.

    Example: sonde completion bash

    For bash: sonde completion bash > ~/.local/share/bash-completion/completions/sonde
    """

    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh", "fish"]], named("SHELL", "shell")]
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Print the script."""
        say(script(self.shell, words_and_flags()))
        return 0


COMMANDS: dict[str, type[Any]] = {
    "scan": Scan,
    "read": Read,
    "fit": Fit,
    "calibrate": Calibrate,
    "score": Score,
    "evaluate": Evaluate,
    "merge": Merge,
    "labels": Labels,
    "drift": Drift,
    "compare": Compare,
    "track": Track,
    "train": Train,
    "explain": Explain,
    "trace": Trace,
    "units": Units,
    "cache": Cache,
    "generate": Generate,
    "serve": Serve,
    "compress": Compress,
    "encode": Encode,
    "decode": Decode,
    "info": Info,
    "verify": Verify,
    "export": Export,
    "methods": Methods,
    "recipe": Recipe,
    "study": Study,
    "completion": Completion,
}


KEPT = ("*.sonde", "*.pt")
"""Files in a run directory from which a command goes on."""
EDIT = "edit"
"""The word before those that change a model."""
RECIPE = "recipe"
"""The word before those of the recipes, which another package brings."""
PATH_ERRORS = frozenset(
    (
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EROFS,
        errno.EINVAL,
    )
)
"""Errors of the system that are about a path that the user named."""
PLACES = (
    *("calibrate", "compare", "drift", "evaluate", "fit", "info", "merge", "read", "scan"),
    *("score", "verify"),
)
"""Commands whose files may be in object storage; the others refuse an address by name."""
SECOND: dict[str, dict[str, type[Any]]] = {
    "compress": {"undo": EDITS["undo"], "search": CompressSearch}
}
"""Words that stand behind a command and are commands of their own."""


def words_and_flags() -> dict[str, list[str]]:
    """Return the flags of every command; subcommands are named after a space."""
    commands = {**COMMANDS, **{f"{EDIT} {word}": command for word, command in EDITS.items()}}
    for word, more in SECOND.items():
        commands |= {f"{word} {second}": command for second, command in more.items()}
    return {word: flag_names(command) for word, command in commands.items()}


def run_command(word: str, arguments: list[str]) -> int:
    """Run a command and return its exit code; print each expected error in one line."""
    commands, above = COMMANDS, ""
    if word == EDIT:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            say(overview())
            return 0
        commands, above, word, arguments = EDITS, f"{EDIT} ", arguments[0], arguments[1:]
    if arguments and arguments[0] in SECOND.get(word, ()):
        commands, above, word, arguments = SECOND[word], f"{word} ", arguments[0], arguments[1:]
    if word == RECIPE and arguments and not arguments[0].startswith("-"):
        try:
            commands, above, word = (
                {arguments[0]: recipe_command(arguments[0])},
                "recipe ",
                arguments[0],
            )
        except SondeError as error:
            error_line(str(error))
            return 2
        arguments = arguments[1:]
    if word not in commands:
        hint = near(word, commands if above else [*commands, EDIT])
        error_line(f"no command is called {above + word!r}.{hint} See sonde {above}--help.")
        return 2
    return _run(above + word, commands[word], arguments)


def _with_places(command: Any, are_read: bool) -> Any:
    """Return a command whose addresses are places, or raise if it takes local paths alone."""
    from sonde.files.durable import require_local
    from sonde.files.places import to_path

    def changed(value: Any) -> Any:
        if isinstance(value, Path):
            if not are_read:
                require_local(value)
            return to_path(value)
        if isinstance(value, tuple):
            return tuple(changed(each) for each in value)
        return _with_places(value, are_read) if is_dataclass(value) else value

    old = {f.name: getattr(command, f.name) for f in fields(command) if f.init}
    new = {name: changed(value) for name, value in old.items()}
    different = {name: new[name] for name in old if new[name] is not old[name]}
    return replace(command, **different) if different else command


def _writes_pages(kind: type[Any]) -> bool:
    """Return whether a command may write its output in several forms: a page, or tables."""
    if getattr(kind, "several_outputs", False):
        return True
    for each in fields(kind):
        if each.name == "output":
            return each.type == PageWord
        if isinstance(each.type, type) and is_dataclass(each.type) and _writes_pages(each.type):
            return True
    return False


def _run(word: str, kind: type[Any], arguments: list[str]) -> int:
    arguments, further = outputs_of(arguments)
    if further and not _writes_pages(kind):
        error_line(
            f"sonde {word}: expected -o once, got it {len(further) + 1} times: the command writes "
            f"one output. Run it again for {further[0]}."
        )
        return 2
    command = _parsed(word, kind, arguments)
    if isinstance(command, int):
        return command
    from sonde.files.places import to_path

    further_pages.set(tuple(to_path(name) for name in further))
    debug = bool(command.printing.debug)
    _configure(debug, command.printing.verbose)
    try:
        command = _with_places(command, word in PLACES)
        with noting(command.printing.verbose):
            code = int(command.run())
        sys.stdout.flush()
        return code
    except CommandFailed as failed:
        return failed.code
    except SondeError as error:
        if debug:
            raise
        notes = [*getattr(error, "__notes__", ())]
        notes += ["--debug shows where it failed"] if isinstance(error, ForwardError) else []
        error_line(str(error) + "".join(f" ({note})" for note in notes))
        from sonde.run.passes.driver import Interrupted

        return 130 if isinstance(error, Interrupted) else 2
    except OSError as error:
        if debug or error.filename is None or error.errno not in PATH_ERRORS:
            raise
        error_line(f"{error.filename}: {error.strerror}. Check the path and its permissions.")
        return 2
    except Exception as error:
        where = [n for n in getattr(error, "__notes__", ()) if n.startswith(IN_FORWARD)]
        if debug or not (where or is_out_of_memory(error)):
            raise
        if where:
            words = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            error_line(f"{words} ({where[0]}; --debug shows where it failed)")
            return 2
        error_line(
            f"out of memory: {' '.join(str(error).split()) or type(error).__name__}. Committed "
            "results are kept. Use a smaller --batch-size, or fewer methods or sites."
        )
        return 2
    except KeyboardInterrupt:
        note_interrupted(_kept(command))
        return 130


def _parsed(word: str, kind: type[Any], arguments: list[str]) -> Any:
    """Return the command with its flags, or the exit code if there is nothing to run."""
    arguments = current_flags(kind, word, arguments)
    form: Any = Annotated[kind, tyro.conf.arg(name=word)]
    box, help_text = io.StringIO(), _Help()
    try:
        with redirect_stderr(box), redirect_stdout(help_text):
            parsed: Any = tyro.cli(
                form,
                prog=f"sonde {word}",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            say(filled(help_text.text()))
            return 0
        error_line(wrong_usage(kind, word, arguments, box.getvalue()))
        return 2
    return parsed


class _Help(io.TextIOWrapper):
    """Print the parser's messages with the colours and characters that stdout supports."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), sys.stdout.encoding or "ascii", "replace")
        self.is_terminal = sys.stdout.isatty()

    def isatty(self) -> bool:
        return self.is_terminal

    def text(self) -> str:
        self.seek(0)
        return self.read()


def _kept(command: Any) -> Path | None:
    """Return the run directory from which an interrupted command can resume."""
    if getattr(command, "output", None) is None:
        return None
    if "sonde.run.passes.directory" not in sys.modules:
        return (
            None  # nothing ran; torch, whose import may be what was stopped, can crash in a second
        )
    from sonde.run.passes.directory import is_run, run_directory

    directory = run_directory(command.output)
    return directory if is_run(directory) or any(map(any, map(directory.glob, KEPT))) else None


def _configure(debug: bool, verbose: bool) -> None:
    """Show each warning of sonde on one line; ``-v`` adds reading, ``--debug`` everything."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.getLogger("sonde").setLevel(level)
    if not debug:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", SondeWarning)
        warnings.showwarning = _one_line


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    note(f"{REMARK}{message}")
