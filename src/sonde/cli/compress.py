"""``sonde compress``: a smaller model, and the effect on its answers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.console import note
from sonde.cli.options import DataReading, DataWord, ModelWord, Printing, listed, named


@dataclass(frozen=True)
class Compress:
    """Write a model with smaller weights, and report the cost.

    --to names the size: 4bit rounds the weights of linear layers to four bits, 50% removes half of
    them, 2:4 two of every four, rank16 replaces them by low-rank matrices, 5blocks keeps only five
    blocks. Stacked experts are compressed like linear layers. Embeddings and convolutions are
    unchanged unless --layers names them; an embedding that is also the head remains one tensor.
    Some examples of DATA, chosen by the hash of their ids, calibrate the method; others measure the
    change. `sonde methods compress` lists the methods. `sonde compress search MODEL DATA` tries
    many sizes and methods and writes no model. `sonde compress undo SMALL -o OLD` restores every
    file, as long as SMALL.patch exists. If MODEL is package.module:factory, open the small model as
    package.module:factory@SMALL.

    Example: sonde compress sonde:stdlib sonde:stdlib/train --to 4bit --limit 16 --held 8 -o SMALL
    """

    model: ModelWord
    data: DataWord
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="SMALL", help="folder for the smaller model")
    ]
    to: Annotated[
        str | None,
        named("SIZE", "4bit (1bit to 8bit), 50%, 2:4, rank16, 5blocks (default: 4bit)"),
    ] = None
    budget: Annotated[
        str | None,
        named(
            "SIZE",
            "largest total size of the weight files, e.g. 100MiB; searches for the method's size",
        ),
    ] = None
    max_kl: Annotated[
        float | None,
        named(
            "NATS",
            "largest divergence of the answers, in nats; searches for the smallest such model",
        ),
    ] = None
    method: Annotated[
        str | None,
        named(
            "WORD",
            "e.g. gptq or 'sparse_gpt(refit=True)'; any: try all, with a budget (default: by size)",
        ),
    ] = None
    group: Annotated[
        int | None,
        named("N", "number of weights that share a scale (default: the method's, mostly 32)"),
    ] = None
    layers: Annotated[
        tuple[str, ...],
        named(
            "PATTERN,...",
            "layers by name; '*' includes embeddings and convolutions (default: all linear layers)",
        ),
    ] = ()
    bias_fix: Annotated[
        bool, tyro.conf.arg(help="correct biases: each changed layer keeps the mean of its outputs")
    ] = False
    limit: Annotated[
        int | None,
        named("N", "number of calibration examples (default: 8 rows for each input of a layer)"),
    ] = None
    held: Annotated[int, named("N", "number of other examples to compare on (default: 64)")] = 64
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: SMALL.html)")
    ] = None
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    no_timing: Annotated[
        bool, tyro.conf.arg(help="do not measure the speed of the old and the new model")
    ] = False
    reading: DataReading = field(default_factory=DataReading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Plan, compare, write and report."""
        from sonde.run.compressing.compress_model import compress_model
        from sonde.weights.folder import removed_on_error

        page = self.report or self.output.absolute().with_name(self.output.name + ".html")
        check_page(page, flag="--report")
        compressed = compress_model(
            self.model,
            self.data,
            self.output,
            **self._wish(),
            device=self.device,
            timing=not self.no_timing,
            progress=False if self.printing.quiet else note,
            **self.reading.data_options(),
        )
        with removed_on_error(self.output):
            for line in compressed.notes:
                note(line)
            wrote = f"{self.output}, {page}, and {compressed.patch}, which undoes the change"
            present(compressed.document, self.printing, page, wrote)
        return 0

    def _wish(self) -> dict[str, Any]:
        """Return the typed size, and the number of examples used to find it."""
        names = ("to", "method", "budget", "max_kl", "group", "layers", "bias_fix", "limit")
        wishes = {name: getattr(self, name) for name in (*names, "held")}
        return wishes | {"layers": listed(self.layers)}
