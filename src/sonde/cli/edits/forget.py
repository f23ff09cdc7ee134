"""``sonde edit forget``: as if some examples had never been in the training data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sonde.cli.edits._acting import checked_page, show_change
from sonde.cli.options import DataReading, DeviceWord, ModelWord, Printing, named


@dataclass(frozen=True)
class ForgetData:
    """What is forgotten and what is kept."""

    forget: Annotated[str, named("DATA", "examples to forget, with their labels or texts")]
    retain: Annotated[
        str | None, named("DATA", "the rest of the training data (with --of-class: of --forget)")
    ] = None
    held: Annotated[
        str | None, named("DATA", "examples that the model never saw, for the membership attack")
    ] = None
    of_class: Annotated[
        str | None, named("NAME", "forget this class of --forget, and keep the others of --retain")
    ] = None
    limit: Annotated[int | None, named("N", "read only the first N examples of each")] = None
    device: DeviceWord = "auto"
    reading: DataReading = field(default_factory=DataReading)

    def options(self) -> dict[str, Any]:
        """Return the named options of ``sonde.forget`` about data."""
        names = ("retain", "held", "of_class", "limit", "device")
        return {name: getattr(self, name) for name in names} | self.reading.data_options()


@dataclass(frozen=True)
class Forget:
    """Make a model as if it had never seen some of its training data.

    random, preference and ascent train a copy: wrong answers for these examples, answers less
    likely than before, or a higher loss, and the old answers for the rest. dampen trains nothing:
    it shrinks the weights that matter to these examples far more than to all, which may change
    nothing. The report has what became of each side and, with --held, whether an attacker can
    still tell who was in the training data.

    Differs: forgets examples; erase takes a concept out of the states, ablate a behaviour.

    Example: sonde edit forget sonde:digits --forget sonde:digits --of-class 3 -o NEW
    """

    model: ModelWord
    data: ForgetData
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="NEW", help="folder for the changed model")
    ]
    method: Annotated[
        Literal["random", "preference", "ascent", "dampen"],
        tyro.conf.arg(help="how it is made to forget"),
    ] = "random"
    alpha: Annotated[
        float | None, named("A", "dampen: how much more a weight must matter to --forget")
    ] = None
    retrain: Annotated[
        bool, tyro.conf.arg(help="train a model anew without --forget, to compare with (slow)")
    ] = False
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: NEW.html)")
    ] = None
    force: Annotated[
        bool, tyro.conf.arg(help="write the edit even if it is too large or no better than chance")
    ] = False
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Plan, judge, write, and say what became of the examples."""
        from sonde.run.changing.forget import forget

        page = checked_page(self.report, self.output)
        change = forget(
            self.model,
            self.data.forget,
            self.output,
            method=self.method,
            alpha=self.alpha,
            retrain=self.retrain,
            force=self.force,
            progress=not self.printing.quiet,
            **self.data.options(),
        )
        return show_change(change, page, self.printing)
