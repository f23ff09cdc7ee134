"""``sonde edit forget``: remove the effect of some examples of the training data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sonde.cli.edits._acting import checked_page, show_change
from sonde.cli.options import DataReading, DeviceWord, ModelWord, Printing, named


@dataclass(frozen=True)
class ForgetData:
    """Data to forget and data to keep."""

    forget: Annotated[str, named("DATA", "examples to forget, with their labels or texts")]
    retain: Annotated[
        str | None,
        named("DATA", "the rest of the training data (default with --of-class: data of --forget)"),
    ] = None
    held: Annotated[
        str | None, named("DATA", "examples that the model never saw, for the membership attack")
    ] = None
    of_class: Annotated[
        str | None, named("NAME", "forget this class of --forget, and keep the others of --retain")
    ] = None
    limit: Annotated[int | None, named("N", "read only the first N examples of each data set")] = (
        None
    )
    device: DeviceWord = "auto"
    reading: DataReading = field(default_factory=DataReading)

    def options(self) -> dict[str, Any]:
        """Return the named options of ``sonde.forget`` about data."""
        names = ("retain", "held", "of_class", "limit", "device")
        return {name: getattr(self, name) for name in names} | self.reading.data_options()


@dataclass(frozen=True)
class Forget:
    """Make a model as if it had never seen some of its training data.

    random, preference and ascent train a copy: with wrong answers for these examples, with answers
    less likely than before, or with a higher loss, and with the old answers for the rest. dampen
    needs no training: it shrinks the weights that matter far more to these examples than to all,
    which may change nothing. The report shows the accuracy on both sides and, with --held, whether
    an attacker can still detect membership in the training data.

    Differs: forgets examples; erase removes a concept from the states, ablate a behaviour.

    Example: sonde edit forget sonde:digits --forget sonde:digits --of-class 3 -o NEW
    """

    model: ModelWord
    data: ForgetData
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="NEW", help="folder for the changed model")
    ]
    method: Annotated[
        Literal["random", "preference", "ascent", "dampen"],
        tyro.conf.arg(help="method of forgetting"),
    ] = "random"
    alpha: Annotated[
        float | None,
        named(
            "A",
            (
                "for dampen: a weight changes if it matters this many times more to --forget than "
                "to all examples"
            ),
        ),
    ] = None
    retrain: Annotated[
        bool, tyro.conf.arg(help="train a new model without --forget, for comparison (slow)")
    ] = False
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: NEW.html)")
    ] = None
    force: Annotated[
        bool,
        tyro.conf.arg(
            help="write the edit even if it is too large or no better than random changes"
        ),
    ] = False
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Plan, evaluate, write, and report the effect on the examples."""
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
