"""``sonde units``: what each unit of a site stands for, as a page that can be searched."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.options import DataWord, ModelWord, PageWord, Printing, Reading, RunFlags, named
from sonde.core.errors import InputError


@dataclass(frozen=True)
class Units:
    """Write a page about what the units of a site, or features of a dictionary, stand for.

    For each: the rows on which it is highest, rows of every range below, its histogram, the label
    of the data that it follows, the tokens that it writes, and how the answers change if it is
    held at its highest value.

    Example: sonde units sonde:digits sonde:digits/test --sites vit.layers.1 -o atlas.html

    Units of an MLP: sonde units MODEL DATA --sites model.layers.3.mlp.down_proj:in -o atlas.html
    """

    model: ModelWord
    data: DataWord
    output: PageWord = None
    dictionary: Annotated[
        Path | None,
        named("FILE", "features of a dictionary: of sonde fit, safetensors, or a SAELens folder"),
    ] = None
    exemplars: Annotated[int, named("N", "highest rows of each unit")] = 8
    clamp: Annotated[
        int, named("N", "hold the first N units at their highest and say what changes; 0 = none")
    ] = 256
    no_inputs: Annotated[
        bool, tyro.conf.arg(help="leave texts and pictures out of the page: numbers alone")
    ] = False
    reading: Reading = field(default_factory=Reading)
    running: RunFlags = field(default_factory=RunFlags)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Read, fit, look, print and write."""
        from sonde.data import load
        from sonde.run.explaining.atlas import fit_atlas
        from sonde.run.explaining.atlas_of_model import model_atlas
        from sonde.run.explaining.dictionaries import open_dictionary
        from sonde.run.explaining.dictionary_health import loss_recovered
        from sonde.run.passes.directory import dropped_on_error, remove_run, run_directory
        from sonde.run.reading.read import read
        from sonde.tap.streams.live import LiveStream

        self._check()
        directory = None if self.output is None else run_directory(self.output)
        self.running.check(directory)
        model = load(self.model, **self.reading.model_options())
        where, options = self.reading.site_options(), self.reading.data_options()
        if where["reducer"] == "auto":
            where["reducer"] = "positions"  # a row for each token or patch
        stream = read(model, self.data, **where, **options)
        if not isinstance(stream, LiveStream):
            raise InputError(f"units: expected a model that can be run, got {self.model}.")
        (site,) = stream.schema
        dictionary = None
        if self.dictionary is not None:
            dictionary, _ = open_dictionary(self.dictionary, model.module, str(site.site))
        loss = None
        if dictionary is not None:
            loss = loss_recovered(model, stream.inputs, dictionary, str(site.site))
        with dropped_on_error(directory):
            atlas = fit_atlas(
                stream,
                dictionary,
                n=self.exemplars,
                unit_size=self.running.unit_size,
                **self.running.worker_options(),
                directory=directory,
                fresh=self.running.fresh,
                memory=self.running.memory_bytes(),
                progress=not self.printing.quiet,
            )
        document = model_atlas(
            atlas,
            stream,
            model=self.model,
            data=self.data,
            dictionary=dictionary,
            dictionary_file="" if self.dictionary is None else str(self.dictionary),
            loss=None if loss is None else loss.json(),
            n_clamped=self.clamp,
            shown=not self.no_inputs,
        )
        present(document, self.printing, self.output)
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
