"""``sonde units``: what activates each unit of a site, as a searchable page."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.options import DataWord, ModelWord, PageWord, Printing, Reading, RunFlags, named
from sonde.core.errors import InputError


@dataclass(frozen=True)
class Units:
    """Write a page about what the units of a site, or the features of a dictionary, respond to.

    For each unit: the rows on which it is highest, rows of every lower range, its histogram, the
    label that it follows, the tokens that it promotes, and how the answers change if it is fixed at
    its highest value.

    Example: sonde units sonde:digits sonde:digits/test --sites vit.layers.1 -o atlas.html

    Units of an MLP: sonde units MODEL DATA --sites model.layers.3.mlp.down_proj:in -o atlas.html
    """

    model: ModelWord
    data: DataWord
    output: PageWord = None
    dictionary: Annotated[
        Path | None,
        named(
            "FILE",
            "features of a dictionary: a file of sonde fit, safetensors, or a SAELens folder",
        ),
    ] = None
    exemplars: Annotated[
        int, named("N", "number of rows to show for each unit, those with its highest values")
    ] = 8
    clamp: Annotated[
        int,
        named(
            "N", "fix the first N units at their highest value and report what changes; 0 = none"
        ),
    ] = 256
    no_inputs: Annotated[
        bool, tyro.conf.arg(help="leave texts and images out of the page: show only numbers")
    ] = False
    reading: Reading = field(default_factory=Reading)
    running: RunFlags = field(default_factory=RunFlags)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Read, fit, describe, print and write."""
        from sonde.run.explaining.explain_units import explain_units
        from sonde.run.passes.directory import remove_run, run_directory

        self._check()
        directory = None if self.output is None else run_directory(self.output)
        self.running.check(directory)
        where = self.reading.site_options()
        explained = explain_units(
            self.model,
            self.data,
            where.pop("sites"),
            dictionary=self.dictionary,
            n_exemplars=self.exemplars,
            n_clamped=self.clamp,
            show_inputs=not self.no_inputs,
            **self.reading.model_options(),
            **self.running.worker_options(),
            memory=self.running.memory_bytes(),
            unit_size=self.running.unit_size,
            fresh=self.running.fresh,
            directory=directory,
            progress=not self.printing.quiet,
            **where,
            **self.reading.data_options(),
        )
        present(explained.document, self.printing, self.output)
        if directory is not None:
            remove_run(directory)
        return 0

    def _check(self) -> None:
        self.reading.check(self.data)
        if self.exemplars < 1 or self.clamp < 0:
            raise InputError(
                f"units: expected --exemplars of at least 1 and --clamp of at least 0, got "
                f"{self.exemplars} and {self.clamp}."
            )
        if len(self.reading.sites) != 1 or self.reading.sites == ("auto",):
            raise InputError("units: expected one site. Name it: --sites model.layers.3.mlp")
        check_page(self.output, self.model, self.data)
