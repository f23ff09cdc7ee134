"""``sonde edit ablate``: remove one direction from everything that writes to the states."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli.edits._acting import Acting
from sonde.cli.edits.steer import Contrasted, NegativeWord, PositiveWord
from sonde.cli.options import ModelWord, Printing, named
from sonde.core.renaming import renamed


@renamed(max_kl="kl_limit")
@dataclass(frozen=True)
class AblateDirection:
    """Remove the direction behind the behaviour that POSITIVE evokes in a model.

    Candidates are fitted at the last token of every block on the split train. On the split test
    each candidate is removed and added. The candidate that removes the behaviour most, also induces
    it, and hardly changes the answers to NEGATIVE is projected out of all layers that write to the
    states.

    Differs: removes a behaviour of the model; erase removes information from its states, steer
    makes a behaviour stronger or weaker.

    Example: sonde edit ablate sonde:stdlib --positive sonde:upper --negative sonde:lower -o NEW
    """

    model: ModelWord
    positive: PositiveWord
    negative: NegativeWord
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder for the new model")]
    site: Annotated[str, named("SITE", "sites of the candidate directions; auto: all blocks")] = (
        "auto"
    )
    strength: Annotated[float, tyro.conf.arg(help="1 removes, 0.5 halves")] = 1.0
    max_kl: Annotated[
        float, tyro.conf.arg(help="largest divergence, in nats, of the answers to NEGATIVE")
    ] = 0.1
    reading: Contrasted = field(default_factory=lambda: Contrasted(reducer="last"))
    acting: Acting = field(default_factory=Acting)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Fit the candidates, choose one, evaluate it, write the model and report."""
        from sonde.run.changing.ablate import ablate

        page = self.acting.page(self.output)
        change = ablate(
            self.model,
            self.positive,
            self.negative,
            self.output,
            site=self.site,
            strength=self.strength,
            max_kl=self.max_kl,
            **self.reading.options(),
            **self.acting.options(),
            device=self.reading.device,
            progress=not self.printing.quiet,
        )
        return self.acting.show(change, page, self.printing)
