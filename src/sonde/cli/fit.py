"""``sonde fit``: fit methods on a model's states and save them in one file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli._notes import say_left_out, say_notes
from sonde.cli.console import note, say, say_json
from sonde.cli.options import (
    EstimateFlag,
    Printing,
    Reading,
    RunFlags,
    SourceDataWord,
    SourceWord,
    named,
    say_estimate,
    source_of,
)
from sonde.core.wording import gib

if TYPE_CHECKING:
    from sonde.core.instrument import Instrument
    from sonde.core.stream import Stream


@dataclass(frozen=True)
class Fit:
    """Fit methods on the hidden states of a model over data, in one pass.

    METHODS are names from `sonde methods`, separated by commas, with parameters in brackets:
    knn(k=10),energy. If DATA has splits, `train` is read, unless DATA names a split (NAME/SPLIT or
    NAME:SPLIT). Commands that train, compress or fit an edit read `train` too, all others `test`.

    Detectors are calibrated on rows held out of DATA. If the model was trained on DATA, these rows
    score lower than new rows and p-values are too small: run `sonde calibrate` on rows that the
    model was not trained on.

    Example: sonde fit mahalanobis,knn sonde:digits sonde:digits/train -o probe.sonde

    On rows that sonde read wrote: sonde fit mahalanobis,knn acts -o probe.sonde
    """

    methods: Annotated[
        tyro.conf.Positional[str],
        named("METHODS", "e.g. mahalanobis,knn(k=10); see sonde methods"),
    ]
    model: SourceWord
    data: SourceDataWord = ""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="file to write")] = Path(
        "probe.sonde"
    )
    calibrate: Annotated[
        float,
        tyro.conf.arg(help="fraction of the groups held out to calibrate detectors; 0 = none"),
    ] = 0.2
    reduction: Annotated[
        str,
        tyro.conf.arg(
            help=(
                "how the rows of an example become its p-value: max, mean or topk_mean(k); rows: "
                "a p-value for each row"
            )
        ),
    ] = "auto"
    objective: Annotated[
        str | None,
        named("NAME", "kl_uniform, max_logit or nll, for methods that need a gradient"),
    ] = None
    estimate: EstimateFlag = False
    reading: Reading = field(default_factory=Reading)
    running: RunFlags = field(default_factory=RunFlags)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Fit, save, and print the results."""
        from sonde.cli._dictionaries import dictionary_healths, health_texts
        from sonde.cli._fitted import fitted_text, in_place_of, remarks
        from sonde.cli._flags import flag_entries, flag_texts
        from sonde.run.fitting.fit import fit
        from sonde.run.fitting.fitted_rows import fitted_rows
        from sonde.run.instruments.words import parse_methods
        from sonde.run.passes.directory import dropped_on_error, remove_run, run_directory
        from sonde.run.reading.notes import split_of
        from sonde.store.outputs import check_file

        instruments = parse_methods(self.methods)
        check_file(self.output, self.model, self.data)
        directory = run_directory(self.output)
        self.running.check(directory)
        model, data = source_of("fit", self.model, self.data, self.reading)
        stream = self._stream(instruments, model, data)
        if self.estimate:
            how = {"calibrate": self.calibrate, "reduction": self.reduction}
            how |= {"unit_size": self.running.unit_size, "threads": self.running.threads}
            return say_estimate(self.printing, "fit", stream, methods=instruments, **how)
        with dropped_on_error(directory):
            fitted = fit(
                instruments,
                stream,
                calibrate=self.calibrate,
                reduction=self.reduction,
                unit_size=self.running.unit_size,
                **self.running.worker_options(),
                directory=directory,
                fresh=self.running.fresh,
                memory=self.running.memory_bytes(),
                progress=not self.printing.quiet,
            )
            results = dict(fitted)
        replaced = in_place_of(self.output)
        identity = fitted.save(self.output)
        remove_run(directory)
        rows, flags = fitted_rows(results), flag_entries(results)
        healths = dictionary_healths(results, stream, model, data)
        if self.printing.json:
            left_out = [entry.json() for entry in stream.left_out]
            summary = {"file": str(self.output), "id": identity, "split": split_of(stream)}
            summary |= {"flags": flags, "results": rows, "left_out": left_out}
            say_json(summary | ({"dictionaries": healths} if healths else {}))
        elif not self.printing.quiet:
            say(fitted_text(rows))
            say_notes(stream, self.printing.quiet)
            say_left_out(stream, self.printing.quiet)
            named_as = (self.model, data) if data is not None else ("MODEL", self.model)
            texts = remarks(rows, self.output, *named_as, self.reading.typed())
            health = health_texts(healths, self.output, named_as[0])
            for remark in [*health, *flag_texts(flags), *texts]:
                note(f"note: {remark}.")
        note(f"wrote {self.output} ({gib(self.output.stat().st_size)}){replaced}")
        return 0

    def _stream(self, instruments: "list[Instrument]", model: Any, data: str | None) -> "Stream":
        """Return the rows to fit the methods on."""
        from sonde.run.instruments.asked import need
        from sonde.run.reading.read import ARRAYS, read

        split: dict[str, Any] = {} if self.model == ARRAYS or data is None else {"split": "train"}
        wants_logits = self.model != ARRAYS and data is not None and need(instruments, "logits")
        options = reading_of(
            instruments if self.model != ARRAYS else [],
            self.reading.site_options(),
            stored=data is None,
        )
        objective = options.pop("objective", "kl_uniform" if need(instruments, "grad") else None)
        return read(
            model,
            data,
            objective=self.objective or objective,
            **options,
            **({"logits": True} if wants_logits else {}) | self.reading.data_options(),
            **split,
        )


def reading_of(
    instruments: "list[Instrument]", chosen: dict[str, Any], stored: bool = False
) -> dict[str, Any]:
    """Return the reading options: the user's flags, else those that the methods need.

    ``stored`` rows keep their sites, and their reducers if a method needs positions.
    """
    from sonde.core.site import POSITIONS
    from sonde.run.instruments.asked import asked

    typed = {name: value for name, value in chosen.items() if value != "auto"}
    wanted = asked(instruments)
    if stored:
        wanted = {n: v for n, v in wanted.items() if n != "sites" and v != POSITIONS}
    return {**chosen, **wanted, **typed}
