"""``sonde edit steer``: move states along the direction between two data sets."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sonde.cli.console import note
from sonde.cli.edits._acting import Acting
from sonde.cli.options import DataReading, DeviceWord, ModelWord, Printing, named
from sonde.core.errors import InputError
from sonde.core.wording import plural

FITTED, CONTROL = ".sonde", ".gguf"
PositiveWord = Annotated[str, named("DATA", "data that show the behaviour")]
NegativeWord = Annotated[str, named("DATA", "data that do not show the behaviour")]


@dataclass(frozen=True)
class Contrasted(DataReading):
    """Options for reading two data sets."""

    reducer: Annotated[
        str,
        tyro.conf.arg(
            help="how an input becomes rows: positions (each token or patch without sinks, or the "
            "whole input), mean, last, tokens, cls, auto"
        ),
    ] = "positions"
    limit: Annotated[int | None, named("N", "read only the first N examples of each data set")] = (
        None
    )
    device: DeviceWord = "auto"

    def options(self) -> dict[str, Any]:
        """Return the data options of a change, by name."""
        return {"reducer": self.reducer, "limit": self.limit, **self.data_options()}


@dataclass(frozen=True)
class Steer:
    """Move every state of a block along the direction from NEGATIVE to POSITIVE.

    The direction between the two is fitted on their split train and added as a bias, at the largest
    strength that neither moves the states too far nor costs too much. Its effect is judged on the
    split test. An OUTPUT that ends in .sonde keeps the directions of all blocks for sonde generate;
    one that ends in .gguf holds them as a control vector for llama.cpp.

    Differs: makes a behaviour stronger or weaker; ablate removes a behaviour, erase removes
    information from the states.

    Example: sonde edit steer sonde:stdlib --positive sonde:docstrings --negative sonde:code -o NEW
    --limit 24
    """

    model: ModelWord
    positive: PositiveWord
    negative: NegativeWord
    output: Annotated[
        Path,
        tyro.conf.arg(
            aliases=["-o"],
            help="folder for the new model; or FILE.sonde or FILE.gguf for the directions alone",
        ),
    ]
    site: Annotated[
        str, named("SITE", "site at which the direction is added; auto: the middle block")
    ] = "auto"
    strength: Annotated[
        float | None,
        named(
            "S",
            "length of the edit in standard deviations of the states; below 0: away from "
            "POSITIVE; auto: the largest allowed",
        ),
    ] = None
    method: Annotated[
        Literal["mean_difference", "pca_difference", "probe"],
        tyro.conf.arg(help="method of finding the direction"),
    ] = "mean_difference"
    reading: Contrasted = field(default_factory=Contrasted)
    acting: Acting = field(default_factory=Acting)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Fit, evaluate, write and report; or write only the directions."""
        if self.strength is not None and not math.isfinite(self.strength):
            raise InputError(f"--strength: expected a finite number, got {self.strength}.")
        kind = self.output.suffix.lower()
        if kind in (FITTED, CONTROL):
            return self._write_directions(kind)
        from sonde.run.changing.steer import steer

        page = self.acting.page(self.output)
        change = steer(
            self.model,
            self.positive,
            self.negative,
            self.output,
            strength=self.strength,
            **self._fitting(),
            **self.acting.options(),
            device=self.reading.device,
        )
        return self.acting.show(change, page, self.printing)

    def _fitting(self) -> dict[str, Any]:
        """Return the method by which the direction is fitted."""
        return {
            "site": self.site,
            "method": self.method,
            "progress": not self.printing.quiet,
            **self.reading.options(),
        }

    def _write_directions(self, kind: str) -> int:
        """Write the directions of all blocks, for sonde generate or llama.cpp."""
        from sonde.run.changing.steer import save_control_vector, steering_directions
        from sonde.run.reading.load import load
        from sonde.store.outputs import check_file

        check_file(self.output)
        model = load(self.model, device=self.reading.device)
        how: dict[str, Any] = self._fitting() | {"site": "auto"}
        fitted = steering_directions(model, self.positive, self.negative, **how)
        if kind == FITTED:
            fitted.save(self.output)
            note(f"wrote {self.output}: the directions of {plural(len(fitted), 'site')}")
        else:
            n_blocks = save_control_vector(model, fitted, self.output, self.strength)
            note(f"wrote {self.output}: a control vector of {plural(n_blocks, 'block')}")
        return 0
