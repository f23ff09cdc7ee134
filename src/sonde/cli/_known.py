"""``sonde evaluate`` on one table: compare scores with the known truth about the rows."""

from dataclasses import dataclass
from textwrap import fill
from typing import Annotated, Any

import tyro

from sonde.cli._table import between, legend, share, table, text_width
from sonde.cli.options import Reading, named
from sonde.core.errors import InputError

WHO = ("method", "site")
INTERVAL = "95% interval"
ERRORS = {
    "PRR": "gain of leaving out the highest scores first: 1 = as good as knowing, 0 = chance",
    "AUROC": "chance that a wrong answer scores higher than a right one (0.5 = blind)",
    "within": "the same for two answers of one group; - where no group holds both kinds",
    "rows": "answers known to be right or wrong",
}
STEPS = {
    "top-1": "share of wrong trajectories whose highest step is the first wrong one",
    "AUROC": "chance that a first wrong step scores above a right one (- where a line is no step)",
    "F1": "of alarms (p <= {alpha:g}) as marks of first wrong steps (- without p-values)",
    "joint": "share of trajectories with the right verdict and the right step",
    "rows": "trajectories known to be right, or whose first wrong step is known",
}
PIXELS = {
    "AUROC": "chance that an unusual pixel scores higher than a usual one (0.5 = blind)",
    "PRO": "mean share found of each unusual region, up to 30 % of usual pixels, over 0.3",
    "masked": "images with an unusual pixel, of all scored",
}


@dataclass(frozen=True)
class KnownRows:
    """The truth in DATA about the rows of SCORES: which are wrong, or where."""

    errors: Annotated[
        str | None, named("COLUMN", "a column of DATA: 1 where an answer is wrong, else 0")
    ] = None
    by: Annotated[
        str | None, named("COLUMN", "with --errors: figures for each value of this column too")
    ] = None
    steps: Annotated[
        bool, tyro.conf.arg(help="DATA are trajectories: find the first wrong step")
    ] = False
    masks: Annotated[
        str | None,
        named("COLUMN|DIR", "a column of DATA, or a folder: masks of the unusual pixels"),
    ] = None
    grid: Annotated[
        tuple[int, int] | None,
        named("LINES COLUMNS", "the grid of patches in an image, for --masks"),
    ] = None
    sigma: Annotated[
        float, tyro.conf.arg(help="width in pixels by which --masks smooths its maps")
    ] = 0.0

    @property
    def n_kinds(self) -> int:
        """Number of kinds of figures that are asked for; 0 if two tables are compared."""
        return sum((self.errors is not None, self.steps, self.masks is not None))

    def check(self) -> None:
        """Refuse --grid and --sigma if no figures are asked for, and --by without --errors."""
        if not self.n_kinds and (self.grid is not None or self.sigma):
            raise InputError("--grid, --sigma: expected --masks with them.")
        if self.by is not None and self.errors is None:
            raise InputError("--by: expected --errors COLUMN with it.")

    def judged(
        self, scored: Any, data: str, reading: Reading, *, alpha: float, resamples: int
    ) -> tuple[dict[str, Any], str]:
        """Return the figures that are asked for as JSON values, and their table."""
        options: dict[str, Any] = {"resamples": resamples, "seed": reading.seed}
        if self.errors is not None:
            from sonde.report.evaluate import trust_text
            from sonde.run.evaluating.known_errors import (
                evaluate_errors,
                evaluate_errors_by,
                trust_errors,
            )

            options["group_column"] = reading.group_column
            rows = evaluate_errors(scored, data, self.errors, **options)
            trusted = trust_errors(scored, data, self.errors, **options)
            pairs = (("PRR", "prr"), ("AUROC", "auroc"), ("within", "within"))
            told = _figures_table(rows, *pairs, ERRORS)
            if trusted is not None:
                said = trust_text(trusted, ("right", "wrong answers"))
                told += f"\n{fill(said, text_width(), break_on_hyphens=False)}"
            found: dict[str, Any] = {"rows": rows, "trust": trusted}
            if self.by is not None:
                found["by"] = evaluate_errors_by(scored, data, self.errors, self.by, **options)
                told += f"\n\n{_text_by(found['by'], self.by)}"
            return found, told
        if self.steps:
            from sonde.run.evaluating.known_steps import evaluate_steps

            options |= {"label_column": reading.label_column, "alpha": alpha}
            rows = evaluate_steps(scored, data, **options)
            meanings = {word: text.format(alpha=alpha) for word, text in STEPS.items()}
            pairs = (("top-1", "localised"), ("AUROC", "auroc"), ("F1", "f1"), ("joint", "joint"))
            return {"rows": rows}, _figures_table(rows, *pairs, meanings)
        from sonde.run.evaluating.known_pixels import evaluate_pixels

        assert self.masks is not None  # one of the three was asked for
        options |= {"image_column": reading.image_column, "grid": self.grid, "sigma": self.sigma}
        rows = evaluate_pixels(scored, data, self.masks, **options)
        return {"rows": rows}, _figures_table(
            rows, ("PRO", "aupro"), ("AUROC", "pixel_auroc"), PIXELS
        )


def _text_by(rows: list[dict[str, Any]], column: str) -> str:
    """Return a table of the figures within each value of a column."""
    from sonde.run.instruments.entries import place_of

    titles = (column, "method", "site", "rows", "wrong", "AUROC", INTERVAL)
    cells = [
        (
            row["value"],
            row["instrument"],
            place_of(row["instrument"], row["site"]).removesuffix(":out"),
            f"{row['n']:,}",
            share(row["wrong"]),
            share(row["auroc"]),
            between(row["auroc_low"], row["auroc_high"], " to "),
        )
        for row in rows
    ]
    return table(titles, cells, shrinks=0)


def _figures_table(rows: list[dict[str, Any]], *columns: Any) -> str:
    """Return a table: the first figure with its interval, the others alone, then the counts."""
    from sonde.run.instruments.entries import place_of

    *figures, meanings = columns
    (first, key), *others = figures
    count = next(word for word in ("masked", "rows") if word in meanings)
    titles = (*WHO, first, INTERVAL, *(word for word, _ in others), count)
    cells = [
        (
            str(row["instrument"]),
            place_of(str(row["instrument"]), str(row["site"])).removesuffix(":out"),
            share(row[key]),
            between(row[f"{key}_low"], row[f"{key}_high"], " to "),
            *(share(row[name]) for _, name in others),
            f"{row['n_masked']:,}/{row['n']:,}" if count == "masked" else f"{row['n']:,}",
        )
        for row in rows
    ]
    left = max(row.get("left_out", 0) for row in rows)
    note = f"\n{left:,} left out: nothing is known about them." if left else ""
    return f"{table(titles, cells)}{note}\n\n{legend(meanings)}"
