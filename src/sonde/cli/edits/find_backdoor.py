"""``sonde edit find-backdoor``: find a trigger in an image classifier, and remove it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli._presenting import check_page
from sonde.cli.edits._acting import checked_page, show_change
from sonde.cli.options import DataReading, DataWord, DeviceWord, ModelWord, Printing, named
from sonde.core.errors import InputError


@dataclass(frozen=True)
class FindBackdoor:
    """Report whether an image classifier has a backdoor, for which class, and show its trigger.

    A backdoor is a small trigger that turns any image into one class. DATA are a few hundred images
    with trustworthy labels. The model is not changed; --remove -o NEW writes a model that was
    trained to ignore the trigger.

    Differs: finds an unknown trigger; forget removes given examples, ablate a given behaviour.

    Example: sonde edit find-backdoor sonde:digits sonde:digits/test --steps 60
    """

    model: ModelWord
    data: DataWord
    remove: Annotated[
        bool, tyro.conf.arg(help="train the model to ignore the trigger; needs -o")
    ] = False
    output: Annotated[
        Path | None, tyro.conf.arg(aliases=["-o"], metavar="NEW", help="folder for the new model")
    ] = None
    limit: Annotated[int, named("N", "read only the first N images")] = 300
    steps: Annotated[
        int, named("N", "steps of the search for each class; fewer steps find less")
    ] = 220
    device: DeviceWord = "auto"
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (with -o: NEW.html)")
    ] = None
    force: Annotated[
        bool, tyro.conf.arg(help="remove a trigger even if it is unlikely or too large")
    ] = False
    reading: DataReading = field(default_factory=DataReading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Search for a backdoor, print the result, and remove the backdoor if requested."""
        from sonde.run.changing.search_backdoor import search_backdoor

        if self.remove != (self.output is not None):
            raise InputError("edit find-backdoor: expected --remove and -o NEW together, got one.")
        page = self.report
        if self.output is not None:
            page = checked_page(self.report, self.output)
        check_page(page, flag="--report")
        change = search_backdoor(
            self.model,
            self.data,
            output=self.output,
            limit=self.limit,
            steps=self.steps,
            force=self.force,
            device=self.device,
            progress=not self.printing.quiet,
            **self.reading.data_options(),
        )
        return show_change(change, page, self.printing, is_idle_shown=True)
