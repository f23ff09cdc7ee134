"""``sonde edit erase``: remove a concept that a probe can decode from a layer's states."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sonde.cli.edits._acting import Acting
from sonde.cli.edits.steer import Contrasted
from sonde.cli.options import ModelWord, Printing, named
from sonde.core.errors import InputError

ClassesWord = Annotated[
    tyro.conf.Positional[str],
    named("DATA", "data with labels: the classes to erase; none with --positive and --negative"),
]


@dataclass(frozen=True)
class EraseLabel:
    """Change a layer so that no linear probe of its states separates POSITIVE from NEGATIVE.

    Given DATA instead, no linear probe separates its classes: its labels, or those of
    --label-column. The change is fitted on the split train and written into the weights of the
    linear layer that --site names: its output, or with :in its input. The report shows what a
    linear and a two-layer probe find on the split test, at this site and at every later block,
    since later layers may compute the erased information again.

    Differs: removes information from states; ablate removes a behaviour of the model.

    Example: sonde edit erase sonde:stdlib --positive sonde:docstrings --negative sonde:code
    --site layers.3.mlp.down_proj --limit 24 -o NEW
    """

    model: ModelWord
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder for the new model")]
    data: ClassesWord = ""
    site: Annotated[
        str,
        named(
            "SITE", "a linear layer: its output, or with :in its input; if missing, they are listed"
        ),
    ] = ""
    positive: Annotated[str | None, named("DATA", "data of the first class, instead of DATA")] = (
        None
    )
    negative: Annotated[str | None, named("DATA", "data of the second class")] = None
    method: Annotated[
        Literal["leace", "sal", "inlp"],
        tyro.conf.arg(help="least change, spectral, or iterative erasure"),
    ] = "leace"
    strength: Annotated[float, tyro.conf.arg(help="1 erases, 0.5 halves")] = 1.0
    reading: Contrasted = field(default_factory=Contrasted)
    acting: Acting = field(default_factory=Acting)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Fit, evaluate, write and report."""
        from sonde.run.changing.erase import Concept, erase

        concept = {
            "data": self.data or None,
            "positive": self.positive,
            "negative": self.negative,
        }
        Concept(**concept).check()
        if self.reading.label_column is not None and not self.data:
            raise InputError("sonde edit erase: --label-column is about DATA. Name them.")
        page = self.acting.page(self.output)
        change = erase(
            self.model,
            self.output,
            site=self.site,
            **concept,
            method=self.method,
            strength=self.strength,
            **self.reading.options(),
            **self.acting.options(),
            device=self.reading.device,
            progress=not self.printing.quiet,
        )
        return self.acting.show(change, page, self.printing)
