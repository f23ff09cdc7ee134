"""``sonde score``: fitted detectors on new inputs, as a table."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

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
from sonde.core.errors import InputError

SHOWN = 5


@dataclass(frozen=True)
class Score:
    """Score inputs with fitted detectors: higher = more unusual, p = conformal p-value.

    p-values compare with the rows that calibrated the detectors. Where the model was trained on
    these, p-values of new rows are too small: run `sonde calibrate` on rows it has not seen.

    In a table the column `row` counts the items of DATA from 0; its lines stand in another order.

    A page (-o scores.html) shows the most unusual examples first: patches of images, tokens and
    steps of texts with their scores; the inputs themselves only with --show-inputs.

    Example: sonde score probe.sonde sonde:digits sonde:digits/test -o scores.parquet

    Rows that sonde read wrote: sonde score probe.sonde acts -o scores.parquet
    """

    probe: ProbeWord
    model: SourceWord
    data: SourceDataWord = ""
    output: Annotated[
        Path | None,
        named("FILE", "table to write: .parquet, .csv or .jsonl; or a page: .html", "-o"),
    ] = None
    alpha: Annotated[float, tyro.conf.arg(help="false-alarm rate of the summary")] = 0.05
    reduction: Annotated[
        str,
        tyro.conf.arg(help="one score for each example by max, mean or topk_mean(k), or rows"),
    ] = "auto"
    explain: Annotated[
        int,
        tyro.conf.arg(
            help="name so many of the most unusual layers, units, tokens or patches in each line"
        ),
    ] = 0
    examples: Annotated[
        int, named("N", "most unusual examples of each detector on the page (.html)")
    ] = 8
    show_inputs: Annotated[bool, tyro.conf.arg(help="let the page hold inputs")] = False
    hash_ids: Annotated[bool, tyro.conf.arg(help="hash the ids of rows")] = False
    reading: Reading = field(default_factory=Reading)
    running: Workers = field(default_factory=Workers)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Score, write the table, and print how many rows raise an alarm."""
        from sonde.run.directory import check_writable
        from sonde.run.fitted import Fitted
        from sonde.run.score import check_suffix, open_for, plain_rows, score

        if not 0 < self.alpha < 1:
            raise InputError(f"--alpha: expected a rate in (0, 1), got {self.alpha}.")
        if self.output is not None:
            if not self._is_page:
                check_suffix(self.output)
            check_writable(self.output)
        self.running.crew()
        fitted = Fitted.load(self.probe)
        model, data = source_of("score", self.model, self.data, self.reading)
        stream = open_for(fitted, model, data, **options_of(self.reading))
        how: dict[str, Any] = {"reduction": self.reduction, "explain": self.explain}
        how |= self.running.worker_options()
        table = score(fitted, stream, progress=not self.printing.quiet, **how)
        table = _hashed(table) if self.hash_ids else table
        if self.output is not None:
            self._write(table, fitted, stream, self.output)
            note(f"wrote {self.output}: {table.num_rows} rows")
        if self.printing.json:
            say_json(plain_rows(table))
        elif not self.printing.quiet:
            say(self._summary(table, fitted))
            if self.explain:
                say(self._most_unusual(table))
        return 0

    @property
    def _is_page(self) -> bool:
        return self.output is not None and self.output.suffix.lower() in (".html", ".htm")

    def _write(self, table: Any, fitted: Any, stream: Any, path: Path) -> None:
        if not self._is_page:
            from sonde.run.score import write_table

            write_table(table, path)
            return
        from sonde.report.scores import save_scores
        from sonde.run.exhibit import Exhibits

        looked = Exhibits(fitted, stream, self.show_inputs, self.hash_ids)
        title = f"{self.data or self.model} scored by {self.probe.name}"
        save_scores(table, path, looked, alpha=self.alpha, title=title, examples=self.examples)

    def _most_unusual(self, table: Any) -> str:
        """Return the lines of the smallest p-values with what makes them unusual."""
        p = [1.0 if v is None else v for v in table["p"].to_pylist()]
        order = sorted(range(len(p)), key=lambda i: (p[i], -table["score"][i].as_py()))
        lines = ["", "most unusual:"]
        for row in table.take(order[:SHOWN]).to_pylist():
            who = row["id"] if row["row"] is None else f"row {row['row']} ({row['id']})"
            said = [f"{who} at {row['position']}, {row['instrument']} at {row['site']}:"]
            said += [f"score {row['score']:.4g}"]
            said += [] if row["p"] is None else [f"p {row['p']:.3g}"]
            for name in ("layers", "units", "positions"):
                if row[name]:
                    said.append(f"{name} {', '.join(map(str, row[name]))}")
            lines.append(f"{said[0]} {'; '.join(said[1:])}")
        return "\n".join(lines)

    def _summary(self, table: Any, fitted: Any) -> str:
        import pyarrow as pa
        from pyarrow import compute

        pc: Any = compute  # its functions are made when it is imported
        lines = [
            f"{'instrument':<22} {'site':<30} {'rows':>7} {'median':>9} {f'p<={self.alpha:g}':>8}"
        ]
        few: int | None = None
        groups = table.group_by(["instrument", "site"]).aggregate([("score", "count")]).to_pylist()
        for group in groups:
            mine = table.filter(
                pc.and_(
                    pc.equal(table["instrument"], group["instrument"]),
                    pc.equal(table["site"], group["site"]),
                )
            )
            median = pc.quantile(mine["score"], 0.5)[0].as_py()
            alarms = pc.mean(pc.less_equal(mine["p"], self.alpha).cast(pa.float64())).as_py()
            share = "-" if alarms is None else f"{alarms:.1%}"
            name = group["instrument"], group["site"]
            if alarms is not None and (n := self._too_few(fitted.scorers.get(name))) is not None:
                share = "too few"
                few = n if few is None else min(few, n)
            n_broken = mine.num_rows - pc.sum(pc.is_finite(mine["score"])).as_py()
            if n_broken:
                note(
                    f"note: {name[0]} at {name[1]}: {n_broken} of {mine.num_rows} scores are "
                    "infinite: of rows that are not finite, or too large for their type."
                )
            site = str(group["site"])
            site = site if len(site) <= 30 else "..." + site[-27:]
            lines.append(
                f"{group['instrument']:<22} {site:<30} {mine.num_rows:>7} {median:>9.4g} {share:>8}"
            )
        if few is not None:
            needed = math.ceil(1 / self.alpha - 1e-9) - 1
            note(f"note: p <= {self.alpha:g} needs at least {needed} calibrated rows, got {few}.")
        return "\n".join(lines)

    def _too_few(self, scorer: Any) -> int | None:
        """Return the number of calibrated rows where no p-value can be as small as alpha."""
        calibration = getattr(scorer, "calibration", None)
        if calibration is None:
            return None
        n = getattr(calibration, "whole", calibration).n
        return n if (n + 1) * self.alpha < 1 else None


def _hashed(table: Any) -> Any:
    """Return a table whose ids are hashes."""
    import pyarrow as pa

    from sonde.run.exhibit import hashed_id

    ids = pa.array([hashed_id(name) for name in table["id"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("id"), "id", ids)


def options_of(reading: Reading) -> dict[str, Any]:
    """Return the options of a reading that do not come from the bundle."""
    options = reading.data_options()
    options.pop("keep_special")
    return options | {k: v for k, v in reading.site_options().items() if v != "auto"}
