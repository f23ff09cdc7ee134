"""``sonde compress search``: the cost of each model size, over methods and settings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.console import note
from sonde.cli.options import DataReading, DataWord, ModelWord, Printing, listed, named


@dataclass(frozen=True)
class CompressSearch:
    """Try many ways to make a model smaller, and plot size against divergence.

    Every trial rounds, prunes or thins all linear layers and compares the answers with the
    original's on examples not used for calibration; no model is written. Trials are kept in
    PAGE.trials.jsonl: a search that is stopped, or asked for more, goes on where it was.

    Example: sonde compress search sonde:digits sonde:digits/train -o sizes.html
    """

    model: ModelWord
    data: DataWord
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="PAGE", help="page to write, .html or .json")
    ] = Path("compress-search.html")
    to: Annotated[
        tuple[str, ...],
        named("SIZE,...", "sizes, e.g. 4bit,50%,2:4,rank16 (default: a standard list)"),
    ] = ()
    methods: Annotated[
        tuple[str, ...], named("WORD,...", "methods to try (default: those that support each size)")
    ] = ()
    max_kl: Annotated[
        float, tyro.conf.arg(help="largest divergence, in nats, of the recommended model")
    ] = 0.01
    limit: Annotated[int, tyro.conf.arg(help="number of calibration examples")] = 64
    held: Annotated[int, tyro.conf.arg(help="number of other examples to compare on")] = 32
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    reading: DataReading = field(default_factory=DataReading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Try all sizes, plot and report."""
        from sonde.run.compressing.search_sizes import search_sizes

        check_page(self.output, self.model, self.data)
        path = self.output.with_name(self.output.name + ".trials.jsonl")
        search = search_sizes(
            self.model,
            self.data,
            path,
            to=listed(self.to),
            methods=listed(self.methods),
            max_kl=self.max_kl,
            limit=self.limit,
            held=self.held,
            device=self.device,
            progress=None if self.printing.quiet else note,
            **self.reading.data_options(),
        )
        wrote = f"{self.output}; trials are kept in {path}"
        present(search.document, self.printing, self.output, wrote)
        return 0
