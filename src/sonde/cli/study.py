"""``sonde study``: a paper's claims compared with our results."""

import json
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import tyro

from sonde.cli.console import CommandFailed, note, note_interrupted, say, say_json
from sonde.cli.options import Printing, named
from sonde.core.errors import InputError

EVERY = "all"
ENTRY_POINTS = "sonde.studies"


def package_of(word: str) -> Any:
    """Return the package of studies and recipes, which is a separate distribution.

    Parameters
    ----------
    word : str
        The command that needs it.

    Raises
    ------
    InputError
        If it is not installed.
    """
    for point in entry_points(group=ENTRY_POINTS):
        return point.load()
    raise InputError(
        f"sonde {word}: expected the package sonde-studies, which is not installed. It is in the "
        "repository of sonde, not in its wheel. In a clone, run: pip install packages/sonde-studies"
    )


@dataclass(frozen=True)
class Study:
    """Run the experiment of a paper at a size for one core, and report which claims hold.

    NAME is a study, or all; without NAME the studies are listed. With --output every finished seed
    is kept: the same command continues after Ctrl-C, and more --seeds run only the new ones.

    Example: sonde study nac --seeds 10 -o reports
    """

    name: Annotated[tyro.conf.Positional[str], named("[NAME]", "a study, or all")] = ""
    seeds: Annotated[int, named("N", "independent repetitions, at least 3 (default: 3)")] = 3
    tiny: Annotated[
        bool, tyro.conf.arg(help="run at a tiny size, to test only that the study runs")
    ] = False
    output: Annotated[
        Path | None,
        named(
            "FOLDER",
            "folder for NAME.json, NAME.txt (NAME.tiny.json and NAME.tiny.txt with --tiny), and "
            "finished seeds, which are not run again",
            "-o",
            "--out",
        ),
    ] = None
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Run the requested studies, and print a table after each."""
        from sonde.store.outputs import check_folder

        package = package_of("study")
        if self.output is not None:
            check_folder(self.output, alone=False)
        if not self.name:
            titles = {word: package.study_of(word).title for word in package.STUDIES}
            if self.printing.json:
                say_json([{"name": word, "title": title} for word, title in titles.items()])
            else:
                wide = max(map(len, titles)) + 2
                say("\n".join(f"{word:<{wide}}{title}" for word, title in titles.items()))
            return 0
        words = list(package.STUDIES) if self.name == EVERY else [self.name]
        asked = [package.study_of(word) for word in words]
        results = [self._one(package, study) for study in asked]
        if self.printing.json:
            say_json(results if self.name == EVERY else results[0])
        return 0

    def _one(self, package: Any, study: Any) -> dict[str, Any]:
        from sonde.files.durable import atomic_write, make_directory

        quiet = self.printing.quiet or self.printing.json
        tick = (lambda _: None) if quiet else note
        kept = None
        name = f"{study.name}.tiny" if self.tiny else study.name  # a try leaves results alone
        if self.output is not None:
            make_directory(self.output)
            kept = self.output / f"{name}.seeds.json"
        try:
            table = package.run_study(study, range(self.seeds), self.tiny, tick, kept)
        except KeyboardInterrupt:
            out = self.output
            note_interrupted(out if out is not None and any(out.glob("*.seeds.json")) else None)
            raise CommandFailed(130) from None
        as_text = package.as_text(table)
        if not self.printing.json:
            say(as_text + "\n")
        if self.output is not None:
            text = json.dumps(table.json(), indent=1) + "\n"
            atomic_write(self.output / f"{name}.json", text.encode())
            atomic_write(self.output / f"{name}.txt", f"{as_text}\n".encode())
        return table.json()
