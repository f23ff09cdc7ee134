"""``sonde compare``: two models on the same inputs, layer by layer."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli._table import filled
from sonde.cli.console import say
from sonde.cli.options import (
    DataWord,
    ModelWord,
    PageWord,
    Printing,
    Reading,
    Workers,
    listed,
    named,
)
from sonde.core.errors import InputError


@dataclass(frozen=True)
class Compare:
    """Compare two models on the same inputs: similar layers, changed states and accuracy.

    For two training runs, two checkpoints, or a model and its fine-tuned or compressed copy. Each
    model reads the inputs with its own processor and the states are joined by input, so the models
    may differ in depth and width. To compare two fits of one model on different data, use `sonde
    drift`.

    Example: sonde compare sonde:digits sonde:digits sonde:digits/test -o compare.html --limit 64

    More: sonde compare --explain CMP002, what a code means.
    """

    first: ModelWord = ""
    second: Annotated[
        tyro.conf.Positional[str],
        named("OTHER", "the second model, in any form that MODEL can have"),
    ] = ""
    data: DataWord = ""
    output: PageWord = None
    other_sites: Annotated[
        tuple[str, ...], named("PATTERN ...", "sites of OTHER; by default those of --sites")
    ] = ()
    explain: Annotated[str | None, named("CODE", "what a code such as CMP002 means")] = None
    reading: Reading = field(default_factory=Reading)
    crew: Workers = field(default_factory=Workers)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Read both models, compare them, print and write."""
        from sonde.cli._compared import compared

        if self.explain is not None:
            from sonde.run.comparing.two_models_findings import explain_code

            say(filled(explain_code(self.explain)))
            return 0
        if not self.data:
            raise InputError("compare: expected MODEL, OTHER and DATA. See sonde compare --help.")
        self._check()
        names, progress = (self.first, self.second), not self.printing.quiet
        document = compared(
            names, self.data, self.reading, self.crew, listed(self.other_sites), progress
        )
        present(document, self.printing, self.output)
        return 0

    def _check(self) -> None:
        from sonde.run.reading.read import ARRAYS

        self.reading.check(self.data)
        if ARRAYS in (self.first, self.second):
            raise InputError(
                "compare: expected two models, got feature arrays. For arrays in Python: "
                "sonde.measure.layer_cka({'a': rows, 'b': others})."
            )
        check_page(self.output, self.first, self.second, self.data)
