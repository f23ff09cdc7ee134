"""``sonde calibrate``: calibrate fitted detectors on other rows."""

import math
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sonde.cli._table import legend, table
from sonde.cli.console import note, say, say_json
from sonde.cli.options import (
    Printing,
    ProbeWord,
    Reading,
    SourceDataWord,
    SourceWord,
    Workers,
    named,
    source_of,
)
from sonde.core.errors import CalibrationError
from sonde.core.wording import gib, plural

CLASS = "number of calibration rows of the class; all: of all classes"
MOST_LACKING = 5
ROWS = "number of calibration rows"
TRUE_RATE = "90 % interval of the false-alarm rate with these rows"


@dataclass(frozen=True)
class Calibrate:
    """Calibrate fitted detectors on rows that were not used to fit them.

    Earlier held-out rows are replaced; the file contains only the detectors.

    Example: sonde calibrate probe.sonde sonde:digits sonde:digits/test -o calibrated.sonde

    On rows that sonde read wrote: sonde calibrate probe.sonde acts -o calibrated.sonde
    """

    probe: ProbeWord
    model: SourceWord
    data: SourceDataWord = ""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="file to write")] = Path(
        "calibrated.sonde"
    )
    alpha: Annotated[float, tyro.conf.arg(help="false-alarm rate of the printed thresholds")] = 0.05
    rows: Annotated[int, tyro.conf.arg(help="largest number of scores kept per class")] = 10_000
    by: Annotated[
        str | None,
        named(
            "label|predicted|COLUMN",
            "control the false-alarm rate separately in each class, or for each value of a column",
        ),
    ] = None
    pooled_below: Annotated[
        int, named("N", "with --by: classes with fewer rows are calibrated on all rows")
    ] = 0
    guarantee: Annotated[
        Literal["marginal", "pac"],
        tyro.conf.arg(
            help="marginal: the rate holds on average; pac: it holds for this "
            "calibration with probability 1 - delta"
        ),
    ] = "marginal"
    delta: Annotated[float, tyro.conf.arg(help="probability that the pac guarantee fails")] = 0.05
    reduction: Annotated[
        str,
        tyro.conf.arg(
            help=(
                "how the rows of an example become its p-value: max, mean or topk_mean(k); rows: "
                "a p-value for each row"
            )
        ),
    ] = "auto"
    reading: Reading = field(default_factory=Reading)
    running: Workers = field(default_factory=Workers)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Calibrate, save, and print the thresholds."""
        from sonde.cli._fitted import in_place_of
        from sonde.cli.score import options_of
        from sonde.run.fitting.fitted import Fitted
        from sonde.run.scoring.calibrate import calibrate
        from sonde.store.outputs import check_file

        self.running.crew()
        memory = self.running.memory_bytes()
        check_file(self.output, self.model, self.data)
        fitted = Fitted.load(self.probe)
        model, data = source_of("calibrate", self.model, self.data, self.reading)
        options = options_of(self.reading)
        quiet = self.printing.quiet
        options |= {"reduction": self.reduction, "by": self.by, "pooled_below": self.pooled_below}
        options |= {"guarantee": self.guarantee, "delta": self.delta, "memory": memory}
        options |= self.running.worker_options()
        calibrated = calibrate(fitted, model, data, m=self.rows, progress=not quiet, **options)
        names = dict(enumerate(calibrated.label_names))
        rows = [
            {**row, "class": names.get(row["class"], row["class"])}
            for name, scorer in calibrated.scorers.items()
            for row in self._rows_of(name, scorer)
        ]
        replaced = in_place_of(self.output)
        identity = calibrated.save(self.output)
        if self.printing.json:
            plain = [{**row, "threshold": _finite(row["threshold"])} for row in rows]
            say_json({"file": str(self.output), "id": identity, "alpha": self.alpha, "rows": plain})
        elif not quiet:
            say(_thresholds_text(rows, self.alpha))
        for text in () if quiet else _lacking(rows, self.alpha):
            note(f"note: {text}")
        note(f"wrote {self.output} ({gib(self.output.stat().st_size)}){replaced}")
        return 0

    def _rows_of(self, name: tuple[str, str], scorer: Any) -> list[dict[str, Any]]:
        """Return a line for all scores, and a line for each class if there are classes."""
        calibration = scorer.calibration
        if scorer.by is None:
            return [self._row(name, None, calibration)]
        each = zip(calibration.labels.tolist(), calibration.each, strict=True)
        return [
            self._row(name, None, calibration.whole),
            *(self._row(name, label, one) for label, one in each),
        ]

    def _row(self, name: tuple[str, str], label: int | None, calibration: Any) -> dict[str, Any]:
        try:
            threshold: float | None = calibration.threshold(self.alpha)
            low, high = calibration.rate_interval(self.alpha)
        except CalibrationError:
            threshold, low, high = None, 0.0, 0.0
        return {
            "method": name[0],
            "site": name[1],
            "class": label,
            "n": calibration.n,
            "needed": calibration.needed(self.alpha),
            "threshold": threshold,
            "rate_low": low,
            "rate_high": high,
        }


def _thresholds_text(rows: list[dict[str, Any]], alpha: float) -> str:
    from sonde.cli._fitted import alarm

    title, meaning = alarm(alpha)
    has_classes = any(r["class"] is not None for r in rows)
    titles = ("detector", "site", *(("class",) if has_classes else ()), "rows", title, "true rate")
    meanings = {"class": CLASS} if has_classes else {}
    meanings |= {"rows": ROWS, title: meaning, "true rate": TRUE_RATE}
    kept = [_cells(row, has_classes) for row in _joined(rows)]
    return f"{table(titles, kept)}\n\n{legend(meanings)}"


def _joined(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines; many classes that lack rows at a site are joined into one line."""
    joined: list[dict[str, Any]] = []
    for _, group in groupby(rows, key=lambda row: (row["method"], row["site"])):
        rows_of_group = list(group)
        few = [
            row for row in rows_of_group if row["class"] is not None and row["threshold"] is None
        ]
        if len(few) > MOST_LACKING:
            rows_of_group = [row for row in rows_of_group if row not in few]
            n = sum(row["n"] for row in few)
            rows_of_group.append({**few[0], "class": f"{len(few):,} others", "n": n})
        joined += rows_of_group
    return joined


def _finite(threshold: float | None) -> float | None:
    return None if threshold == math.inf else threshold


def _lacking(rows: list[dict[str, Any]], alpha: float) -> list[str]:
    """Return why some scores cannot raise alarms, and what to do."""
    texts = []
    few = [row for row in rows if row["n"] < row["needed"]]
    if few:
        least = min(few, key=lambda row: row["n"])
        of = "" if least["class"] is None else f" of class {least['class']}"
        others = len({row["class"] for row in few}) - 1
        of += f", and too few of {plural(others, 'other class', 'other classes')}" if others else ""
        texts.append(
            f"alarms at {alpha:g} need at least {least['needed']} calibration rows, got "
            f"{least['n']}{of}: no score raises an alarm. Calibrate on more rows, or take a "
            "larger --alpha."
        )
    endless = [row for row in rows if row["threshold"] == math.inf]
    if endless:
        row = endless[0]
        texts.append(
            f"{row['method']} at {row['site']}: more than {alpha:g} of the calibration rows are "
            "not finite, or too large for their type: no score raises an alarm."
        )
    return texts


def _cells(row: dict[str, Any], has_classes: bool) -> tuple[str, ...]:
    from sonde.run.instruments.entries import place_of

    label = ("all" if row["class"] is None else str(row["class"]),) if has_classes else ()
    few = row["threshold"] is None
    limit = "too few" if few else f"> {row['threshold']:.4g}"
    rate = "no alarms" if few else f"{row['rate_low']:.1%}-{row['rate_high']:.1%}"
    place = place_of(row["method"], row["site"])
    return row["method"], place, *label, f"{row['n']:,}", limit, rate
