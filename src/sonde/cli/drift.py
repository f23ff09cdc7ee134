"""``sonde drift``: changes between two fitted bundles, from their states alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.console import say, say_json
from sonde.cli.options import PageWord, Printing, named
from sonde.core.errors import InputError


@dataclass(frozen=True)
class Drift:
    """Report which sites, units and directions moved between two fits, with sizes and p-values.

    For two weeks of traffic, two versions of a model on the same data, or a model before and after
    fine-tuning. The files of sonde fit are enough; rows are not needed again. If both sides have
    the same rows, these are compared in pairs. Most methods store enough for this; covariance
    stores everything.

    Example: sonde drift a.sonde b.sonde -o drift.html
    """

    first: Annotated[
        tyro.conf.Positional[Path], named("FIRST", "the reference, a file that sonde fit wrote")
    ]
    second: Annotated[
        tyro.conf.Positional[Path], named("SECOND", "the file to compare with the reference")
    ]
    output: PageWord = None
    level: Annotated[
        float, tyro.conf.arg(help="probability of a false alarm over all comparisons")
    ] = 0.05
    correction: Annotated[
        Literal["holm", "bh"],
        tyro.conf.arg(
            help="what --level bounds: the probability of any false alarm (holm), or the "
            "fraction of false alarms among the alarms (bh)"
        ),
    ] = "holm"
    methods: Annotated[
        str | None,
        named(
            "METHODS", "drift measures, separated by commas, e.g. hotelling,unit_shift(test='js')"
        ),
    ] = None
    fail_on: Annotated[
        Literal["moved", "never"], tyro.conf.arg(help="moved: exit with code 1 if anything moved")
    ] = "never"
    sizes: Annotated[bool, tyro.conf.arg(help="print only the size of each state")] = False
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Compare, print and write."""
        from sonde.run.comparing.drift import drift
        from sonde.run.comparing.drift_document import drift_document
        from sonde.run.fitting.fitted import Fitted

        self._check()
        first, second = Fitted.load(self.first), Fitted.load(self.second)
        if self.sizes:
            return self._print_sizes(first, second)
        comparison = drift(
            first, second, self._shifts(), level=self.level, progress=not self.printing.quiet
        )
        document = drift_document(
            comparison,
            first,
            second,
            names=(str(self.first), str(self.second)),
            level=self.level,
            correction=self.correction,
        )
        present(document, self.printing, self.output)
        return 1 if self.fail_on == "moved" and document["moved"] is not False else 0

    def _check(self) -> None:
        if not 0 < self.level < 1:
            raise InputError(f"--level: expected a rate in (0, 1), got {self.level}.")
        check_page(self.output, self.first, self.second)

    def _shifts(self) -> list[Any] | None:
        from sonde.core.shift import Shift
        from sonde.run.instruments.words import parse_methods

        if self.methods is None:
            return None
        chosen = parse_methods(self.methods)
        wrong = [type(i).__name__ for i in chosen if not isinstance(i, Shift)]
        if wrong:
            raise InputError(
                f"--methods: expected methods that compare two data sets, got {', '.join(wrong)}. "
                "Take hotelling, unit_shift, subspace_shift, frechet, mmd, classifier_two_sample "
                "or reconstruction_shift."
            )
        return chosen

    def _print_sizes(self, first: Any, second: Any) -> int:
        from sonde.report.document import Document
        from sonde.report.document_text import document_text
        from sonde.report.drift import sizes
        from sonde.run.fitting.state_sizes import state_sizes

        sides = (("first", first), ("second", second))
        states = [{"side": name, **e} for name, bundle in sides for e in state_sizes(bundle)]
        if self.printing.json:
            say_json({"states": states})
        else:
            document = Document("drift", "", "Sizes of the states", [], [sizes(states)])
            say(document_text(document, verbose=True))
        return 0
