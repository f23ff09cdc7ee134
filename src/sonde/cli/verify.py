"""``sonde verify``: check that files are unchanged, and say what to do if not."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import tyro

from sonde.cli.console import note, say, say_json
from sonde.cli.options import Printing, named
from sonde.core.errors import InputError
from sonde.core.wording import plural


@dataclass(frozen=True)
class Verify:
    """Check every byte of a store, a state, a run directory, a report or an export.

    Checks hashes, counts, gaps and duplicates, and validates every value with Arrow. The exit code
    is 0 if everything is as written, 1 if something is wrong, 2 if the file was not written by
    sonde, or by a later version. --repair removes damaged ranges and left-over files, never sound
    ones. Then repeat the command that wrote the store, or the run: it writes the missing parts
    again.

    Example: sonde verify acts
    """

    file: Annotated[
        tyro.conf.Positional[Path],
        named(
            "FILE|DIR",
            "a folder of sonde read, a .sonde file, a .run folder, a report or an export",
        ),
    ]
    repair: Annotated[bool, tyro.conf.arg(help="remove damaged ranges and left-over files")] = False
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Check, repair if requested, and print the result."""
        from sonde.engine.progress import Bar
        from sonde.files.lock import RunLock
        from sonde.report.verifying import verify
        from sonde.store import repair

        if not self.file.exists():
            raise InputError(f"verify: there is no file {self.file}.")
        if self.repair and not self.file.is_dir():
            raise InputError(
                f"verify: --repair takes a store or a run directory, got the file {self.file}. "
                "Restore "
                "a damaged file from a backup, or run the command that wrote it again."
            )
        removed: list[Path] = []
        with RunLock(self.file) if self.repair else nullcontext():
            with Bar("verify", _steps(self.file), not self.printing.quiet) as bar:
                soundness = verify(self.file, bar.advance)
            if self.repair:
                removed = repair(self.file, soundness)
        if self.printing.json:
            gone = [path.relative_to(self.file).as_posix() for path in removed]
            say_json({"file": str(self.file), **soundness.json(self.file), "removed": gone})
        elif not self.printing.quiet:
            say("\n".join(_lines(soundness, self.file, removed)))
        note(_verdict(soundness, self.file, removed))
        return 0 if soundness.is_sound else 1


def _steps(path: Path) -> int:
    """Return how often a check reports progress: per example of a store, per state of a run."""
    from sonde.core.errors import SondeError
    from sonde.store import describe_store, is_store

    if path.is_dir() and is_store(path):
        try:
            return int(describe_store(path)["n_examples"])
        except SondeError:
            return 1
    return sum(1 for _ in path.rglob("*.sonde")) if path.is_dir() else 1


def _lines(found: Any, root: Path, removed: list[Path]) -> list[str]:
    """Return the checked parts and the result, at most 80 columns wide."""
    from sonde.core.wording import gib

    checked = dict(found.checked)
    size = gib(checked.pop("n_bytes", 0))
    nouns = [name.removeprefix("n_").removesuffix("s").replace("_", " ") for name in checked]
    counts = map(plural, checked.values(), nouns)
    lines = _line(found.kind, f"{', '.join(counts)}, {size} read")
    facts = found.json(root)
    for fault in facts["faults"]:
        lines += _line("wrong", f"{fault['file']}: {fault['what']}")
    if facts["left_over"] and not removed:
        lines += _line("left over", ", ".join(facts["left_over"]))
    for path in removed:
        lines += _line("removed", path.relative_to(root).as_posix())
    for text in found.notes:
        lines += _line("note", text)
    return lines


def _line(name: str, value: str) -> list[str]:
    return wrap(value, 80, initial_indent=f"{name:<14} ", subsequent_indent=" " * 15)


def _verdict(found: Any, root: Path, removed: list[Path]) -> str:
    n = len(found.faults)
    if not n:
        return f"{root}: sound" + (
            f"; {plural(len(removed), 'left-over file')} removed" if removed else ""
        )
    faults = plural(n, "fault")
    again = (
        "run the command that wrote the file again to replace the missing parts"
        if found.kind in ("store of rows", "run directory")
        else "restore the file from a backup, or write it again"
    )
    if removed:
        return f"{root}: {faults}; {plural(len(removed), 'file')} removed. Now {again}."
    repairable = any(fault.removes for fault in found.faults)
    return f"{root}: {faults}. " + (
        f"`sonde verify {root} --repair` removes what is damaged."
        if repairable
        else again.capitalize() + "."
    )
