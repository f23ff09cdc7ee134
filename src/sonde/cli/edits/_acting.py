"""Flags and output that all commands of ``sonde edit`` share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.console import note
from sonde.cli.options import Printing, named

if TYPE_CHECKING:
    from sonde.run.changing.acting import Change


@dataclass(frozen=True)
class Acting:
    """Options for evaluating and reporting an edit."""

    neutral: Annotated[
        str | None, named("DATA", "data on which answers should not change; by default --negative")
    ] = None
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: OUTPUT.html)")
    ] = None
    force: Annotated[
        bool,
        tyro.conf.arg(
            help="write the edit even if it is too large or no better than random changes"
        ),
    ] = False
    show_inputs: Annotated[
        bool, tyro.conf.arg(help="show texts before and after in the report")
    ] = False

    def page(self, output: Path) -> Path:
        """Return the path of the report.

        Raises
        ------
        InputError
            If the name does not end in .html, .htm or .json, or something is at ``output``.
        StoreError
            If nothing can be written there.
        """
        return checked_page(self.report, output)

    def options(self) -> dict[str, Any]:
        """Return the options for evaluating a change, by name."""
        return {"neutral": self.neutral, "force": self.force, "show_inputs": self.show_inputs}

    def show(self, change: "Change", page: Path, printing: Printing) -> int:
        """Print a change and write its page; return the exit code."""
        return show_change(change, page, printing)


def show_change(
    change: "Change", page: Path | None, printing: Printing, *, is_idle_shown: bool = False
) -> int:
    """Print a change and write its page; return 1 if it had no effect and was not written.

    Parameters
    ----------
    change : Change
    page : Path, optional
    printing : Printing
    is_idle_shown : bool, default=False
        Print and write also what did nothing.
    """
    for line in change.notes:
        note(line)
    is_idle = change.output is None and change.judgement is not None
    if not is_idle or is_idle_shown:
        present(change.document, printing, page)
    return int(is_idle)


def checked_page(report: Path | None, output: Path) -> Path:
    """Return the report's path of a new model, after checking that both can be written."""
    from sonde.weights.folder import check_output

    page = report or output.absolute().with_name(output.name + ".html")
    check_page(page, flag="--report")
    check_output(output)
    return page
