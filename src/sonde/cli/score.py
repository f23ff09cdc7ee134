"""``sonde score``: the verdict of fitted detectors on new inputs, one line each."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from sonde.cli._presenting import pages_of
from sonde.cli.console import note, say, say_json
from sonde.cli.options import (
    EstimateFlag,
    Printing,
    ProbeWord,
    Reading,
    SourceDataWord,
    SourceWord,
    Workers,
    named,
    say_estimate,
    source_of,
)
from sonde.core.errors import InputError
from sonde.core.wording import plural

PAGES = (".html", ".htm")


@dataclass(frozen=True)
class Score:
    """Report whether each input is anomalous: a p-value, the verdict and the most extreme detector.

    The p-value combines all detectors and sites, and is valid for any dependence between them. It
    compares an input with the calibration rows. If the model was trained on these rows, p-values of
    new inputs are too small: run `sonde calibrate` on rows that the model was not trained on.

    --each writes a line for each input, detector and site instead, as `sonde evaluate` reads them.

    A page (-o scores.html) shows the most anomalous examples first: patches of images, tokens and
    steps of texts with their scores; the inputs themselves only with --show-inputs.

    Example: sonde score probe.sonde sonde:digits sonde:digits/test -o scores.parquet

    Rows that sonde read wrote: sonde score probe.sonde acts -o scores.parquet
    """

    probe: ProbeWord
    model: SourceWord
    data: SourceDataWord = ""
    output: Annotated[
        Path | None,
        named("FILE", "table to write: .parquet, .csv, .json or .jsonl; or a page: .html", "-o"),
    ] = None
    alarm: Annotated[
        float, tyro.conf.arg(aliases=["--alpha"], help="false-alarm rate of the verdict")
    ] = 0.05
    each: Annotated[
        bool,
        tyro.conf.arg(help="write a line for each input (or each of its rows), detector and site"),
    ] = False
    reduction: Annotated[
        str,
        tyro.conf.arg(
            help="how the rows of an input become its score: max, mean or topk_mean(k); rows: a "
            "score for each row, for --each"
        ),
    ] = "auto"
    explain: Annotated[
        int,
        tyro.conf.arg(
            help="name the N most anomalous layers, units, tokens or patches in each line"
        ),
    ] = 0
    fuse: Annotated[
        Literal["sum", "max", "learned", "bonferroni", "simes", "twice_mean"] | None,
        named(
            "sum|max|learned|bonferroni|simes|twice_mean",
            "how p-values of several detectors and sites are combined; with --each, lines with "
            "the combined p-values are added",
        ),
    ] = None
    unusual: Annotated[
        Path | None,
        named("TABLE", "scores of known out-of-distribution rows (--each), for --fuse learned"),
    ] = None
    group: Annotated[
        Path | None,
        named(
            "FILE",
            "weak groups that `sonde scan --groups FILE` wrote: reports "
            "which inputs belong to them",
        ),
    ] = None
    examples: Annotated[
        int, named("N", "number of most anomalous examples of each detector on the page (.html)")
    ] = 8
    batch_invariant: Annotated[
        bool,
        tyro.conf.arg(
            help="give each score the same bits in any batch, as sonde serve --batch-invariant "
            "does; slower"
        ),
    ] = False
    show_inputs: Annotated[bool, tyro.conf.arg(help="include inputs in the page")] = False
    hash_ids: Annotated[bool, tyro.conf.arg(help="hash the ids of rows")] = False
    estimate: EstimateFlag = False
    reading: Reading = field(default_factory=Reading)
    running: Workers = field(default_factory=Workers)
    printing: Printing = field(default_factory=Printing)
    several_outputs: ClassVar[bool] = True

    def run(self) -> int:
        """Score, write the table, and print how many rows raise an alarm."""
        from sonde.cli._flags import flag_entries, flag_texts
        from sonde.cli._notes import say_notes
        from sonde.run.fitting.fitted import Fitted
        from sonde.run.reading.row_places import places_of_rows
        from sonde.run.scoring.fuse import with_fused
        from sonde.run.scoring.opening import open_for
        from sonde.run.scoring.score import score
        from sonde.run.scoring.tables import read_table
        from sonde.run.scoring.weak_file import WeakGroups, with_groups

        self._check()
        memory = self.running.memory_bytes()
        other_scores = None if self.unusual is None else read_table(self.unusual)
        fitted = Fitted.load(self.probe)
        weak = None if self.group is None else WeakGroups.load(self.group)
        model, data = source_of("score", self.model, self.data, self.reading)
        stream = open_for(fitted, model, data, **options_of(self.reading))
        how: dict[str, Any] = {"reduction": self.reduction, "explain": self.explain}
        if self.estimate:
            return say_estimate(self.printing, "score", stream, fitted=fitted, **how)
        how |= self.running.worker_options() | {"memory": memory}
        how["batch_invariant"] = self.batch_invariant
        table = score(fitted, stream, progress=not self.printing.quiet, **how)
        say_notes(stream, self.printing.quiet)
        for text in () if self.printing.quiet else flag_texts(flag_entries(fitted.scorers)):
            note(f"note: {text}.")
        place = places_of_rows(stream, self.hash_ids)
        answers = None if self.each else self._by_input(table, fitted, other_scores, place)
        if weak is not None:
            seen = weak.open(model, data, **options_of(self.reading))
            answers = with_groups(answers, weak, seen)
        if self.fuse is not None and (self.each or self._has_page):
            table = with_fused(table, fitted, self.fuse, unusual=other_scores)
        if self.hash_ids:
            table, answers = _hashed(table), answers and _hashed(answers)
        shown = table if answers is None else answers
        if self.output is not None:
            for path in pages_of(self.output):
                written = table if _is_page(path) else shown
                self._write(written, fitted, stream, path)
                note(f"wrote {path}: {plural(written.num_rows, 'row')}")
        if self.printing.json:
            say_json(_flagged(shown, fitted))
        elif not self.printing.quiet:
            self._say(table, answers, fitted, place, weak)
        return 0

    def _check(self) -> None:
        """Raise for wrong flags and outputs before anything is read."""
        from sonde.run.scoring.tables import check_suffix
        from sonde.store.outputs import check_file

        if not 0 < self.alarm < 1:
            raise InputError(f"--alarm: expected a rate in (0, 1), got {self.alarm}.")
        if self.output is not None:
            for path in pages_of(self.output):
                check_suffix(path, PAGES)
                check_file(path, self.model, self.data, *filter(None, [self.unusual]))
        self.running.crew()
        if (self.fuse == "learned") != (self.unusual is not None):
            raise InputError(
                "--unusual: expected a table with --fuse learned, and no table without it."
            )
        if self.group is not None and self.each:
            raise InputError(
                "--group: expected no --each with it, since --group reports one line for each "
                "input."
            )

    def _by_input(self, table: Any, fitted: Any, known: Any, place: Any) -> Any:
        """Return a line for each input, and print why p-values or verdicts are missing."""
        from sonde.run.scoring.by_input import by_input

        options = {"alpha": self.alarm, "rule": self.fuse, "unusual": known, "place": place}
        answers = by_input(table, fitted, **options)
        for text in () if self.printing.quiet else answers.notes:
            note(f"note: {text}")
        return answers.table

    def _say(self, table: Any, answers: Any, fitted: Any, place: Any, weak: Any) -> None:
        from sonde.cli._scored import (
            answers_text,
            groups_text,
            oddest_text,
            say_infinite,
            scored_text,
            without_units,
        )

        say_infinite(table)
        if answers is None:
            say(scored_text(table, fitted, self.alarm))
        else:
            say(answers_text(answers, self.alarm, listed=self.output is None))
        if weak is not None:
            say(f"\n{groups_text(answers, weak)}")
        if self.explain:
            say(oddest_text(table, fitted, place))
            for text in without_units(table):
                note(f"note: {text}")

    @property
    def _has_page(self) -> bool:
        return self.output is not None and any(map(_is_page, pages_of(self.output)))

    def _write(self, table: Any, fitted: Any, stream: Any, path: Path) -> None:
        if not _is_page(path):
            from sonde.run.scoring.tables import write_table

            write_table(table, path)
            return
        from sonde.report.scores import save_scores
        from sonde.run.scoring.exhibit import Exhibits

        looked = Exhibits(fitted, stream, self.show_inputs, self.hash_ids)
        title = f"{self.data or self.model} scored by {self.probe.name}"
        save_scores(table, path, looked, alpha=self.alarm, title=title, examples=self.examples)


def _is_page(path: Path) -> bool:
    return path.suffix.lower() in PAGES


def _flagged(table: Any, fitted: Any) -> list[dict[str, Any]]:
    """Return lines as JSON values, each with the flags of its detectors."""
    from sonde.run.scoring.tables import plain_rows

    flags = {name: list(scorer.flags) for name, scorer in fitted.scorers.items()}
    every = list(dict.fromkeys(flag for names in flags.values() for flag in names))
    return [
        {**line, "flags": flags.get((line["instrument"], line["site"]), every)}
        for line in plain_rows(table)
    ]


def _hashed(table: Any) -> Any:
    """Return a table with hashed ids."""
    import pyarrow as pa

    from sonde.run.scoring.exhibit import hashed_id

    ids = pa.array([hashed_id(name) for name in table["id"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("id"), "id", ids)


def options_of(reading: Reading) -> dict[str, Any]:
    """Return the reading options that do not come from the bundle."""
    from sonde.run.reading.recipe import OPTIONS

    typed = reading.typed()
    options = reading.data_options()
    held = [name for name in OPTIONS if name not in typed]
    for name in ("keep_special", *held):
        options.pop(name)
    return options | {k: v for k, v in reading.site_options().items() if v != "auto"}
