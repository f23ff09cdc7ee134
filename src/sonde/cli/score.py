"""``sonde score``: fitted detectors on new inputs, as a table."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sonde.cli.console import note, say, say_json
from sonde.cli.options import DataWord, ModelWord, Printing, ProbeWord, Reading, named

SHOWN = 5


@dataclass(frozen=True)
class Score:
    """Score inputs with fitted detectors: higher = more unusual, p = conformal p-value.

    p-values compare with the rows that calibrated the detectors. Where the model was trained on
    these, p-values of new rows are too small: run `sonde calibrate` on rows it has not seen.

    Example: sonde score probe.sonde sonde:digits sonde:digits/test -o scores.parquet
    """

    probe: ProbeWord
    model: ModelWord
    data: DataWord
    output: Annotated[
        Path | None, named("FILE", "table to write: .parquet, .csv or .jsonl", "-o")
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
    reading: Reading = field(default_factory=Reading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Score, write the table, and print how many rows raise an alarm."""
        from sonde.run.directory import check_writable
        from sonde.run.fitted import Fitted
        from sonde.run.score import check_suffix, plain_rows, score, write_table

        if self.output is not None:
            check_suffix(self.output)
            check_writable(self.output)
        fitted = Fitted.load(self.probe)
        self.reading.check(self.data)
        model, options = model_and_options(self.model, self.reading)
        options |= {"reduction": self.reduction, "explain": self.explain}
        table = score(fitted, model, self.data, progress=not self.printing.quiet, **options)
        if self.output is not None:
            write_table(table, self.output)
            note(f"wrote {self.output}: {table.num_rows} rows")
        if self.printing.json:
            say_json(plain_rows(table))
        elif not self.printing.quiet:
            say(self._summary(table))
            if self.explain:
                say(self._most_unusual(table))
        return 0

    def _most_unusual(self, table: Any) -> str:
        """Return the lines of the smallest p-values with what makes them unusual."""
        p = [1.0 if v is None else v for v in table["p"].to_pylist()]
        order = sorted(range(len(p)), key=lambda i: (p[i], -table["score"][i].as_py()))
        lines = ["", "most unusual:"]
        for row in table.take(order[:SHOWN]).to_pylist():
            said = [f"{row['id']} at {row['position']}, {row['instrument']} at {row['site']}:"]
            said += [f"score {row['score']:.4g}"]
            said += [] if row["p"] is None else [f"p {row['p']:.3g}"]
            for name in ("layers", "units", "positions"):
                if row[name]:
                    said.append(f"{name} {', '.join(map(str, row[name]))}")
            lines.append(f"{said[0]} {'; '.join(said[1:])}")
        return "\n".join(lines)

    def _summary(self, table: Any) -> str:
        import pyarrow as pa
        from pyarrow import compute

        pc: Any = compute  # its functions are made when it is imported
        lines = [
            f"{'instrument':<22} {'site':<30} {'rows':>7} {'median':>9} {f'p<={self.alpha:g}':>8}"
        ]
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
            site = str(group["site"])
            site = site if len(site) <= 30 else "..." + site[-27:]
            lines.append(
                f"{group['instrument']:<22} {site:<30} {mine.num_rows:>7} {median:>9.4g} {share:>8}"
            )
        return "\n".join(lines)


def model_and_options(name: str, reading: Reading) -> tuple[Any, dict[str, Any]]:
    """Return the model that scores rows, and the options that do not come from the bundle."""
    from sonde.data import load
    from sonde.run.read import ARRAYS

    model = name if name == ARRAYS else load(name, **reading.model_options())
    options = reading.data_options()
    options.pop("keep_special")
    return model, options | {k: v for k, v in reading.site_options().items() if v != "auto"}
