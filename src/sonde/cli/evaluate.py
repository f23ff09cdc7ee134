"""``sonde evaluate``: how well scores separate out-of-distribution rows from others."""

from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any, ClassVar

import tyro

from sonde.cli._presenting import pages_of, say_document
from sonde.cli._table import between, legend, share, table, text_width
from sonde.cli.console import note, say, say_json
from sonde.cli.options import Printing, Reading, Workers, named
from sonde.core.errors import InputError
from sonde.core.wording import plural
from sonde.files.places import to_path

WHO = ("method", "site")
INTERVAL = "95% interval"
ERRORS = {
    "PRR": "gain of rejecting the highest scores first: 1 = optimal, 0 = random order",
    "AUROC": "probability that a wrong answer scores higher than a correct one (0.5 = "
    "uninformative)",
    "within": "AUROC for two answers of one group; - if no group has both a wrong and a correct "
    "answer",
    "rows": "answers known to be correct or wrong",
}
STEPS = {
    "top-1": "fraction of wrong trajectories whose highest-scoring step is the first wrong one",
    "AUROC": "probability that a first wrong step scores above a correct step (- if a line is "
    "not a step)",
    "F1": "precision and recall of alarms (p <= {alpha:g}) for first wrong steps (- without "
    "p-values)",
    "joint": "fraction of trajectories with the correct verdict and the correct step",
    "rows": "trajectories known to be correct, or whose first wrong step is known",
}
PIXELS = {
    "AUROC": "probability that an anomalous pixel scores higher than a normal pixel (0.5 = "
    "uninformative)",
    "PRO": "mean fraction of each anomalous region that is detected, averaged over "
    "false-positive rates up to 30 %",
    "masked": "images with an anomalous pixel, of all scored images",
}


@dataclass(frozen=True)
class KnownRows:
    """Known truth about the rows of SCORES: which answers, steps or pixels are wrong."""

    errors: Annotated[
        str | None, named("COLUMN", "a column of DATA: 1 if an answer is wrong, else 0")
    ] = None
    by: Annotated[
        str | None,
        named("COLUMN", "with --errors: also report results for each value of this column"),
    ] = None
    steps: Annotated[
        bool, tyro.conf.arg(help="DATA are trajectories: find the first wrong step")
    ] = False
    masks: Annotated[
        str | None,
        named("COLUMN|DIR", "a column of DATA, or a folder: masks of the anomalous pixels"),
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
        """Number of kinds of ground truth given; 0 if two tables are compared."""
        return sum((self.errors is not None, self.steps, self.masks is not None))

    def check(self) -> None:
        """Raise for --grid and --sigma without ground truth, and for --by without --errors."""
        if not self.n_kinds and (self.grid is not None or self.sigma):
            raise InputError("--grid, --sigma: expected --masks with them.")
        if self.by is not None and self.errors is None:
            raise InputError("--by: expected --errors COLUMN with it.")

    def judged(
        self, scored: Any, data: str, reading: Reading, *, alpha: float, resamples: int
    ) -> tuple[dict[str, Any], str]:
        """Return the requested metrics as JSON values, and their table."""
        options: dict[str, Any] = {"resamples": resamples, "seed": reading.seed}
        if self.errors is not None:
            from sonde.report.evaluate import trust_text
            from sonde.run.scoring.known_errors import (
                evaluate_errors,
                evaluate_errors_by,
                trust_errors,
            )

            options["group_column"] = reading.group_column
            rows = evaluate_errors(scored, data, self.errors, **options)
            trusted = trust_errors(scored, data, self.errors, **options)
            pairs = (("PRR", "prr"), ("AUROC", "auroc"), ("within", "within"))
            drawn = _figures_table(rows, *pairs, ERRORS)
            if trusted is not None:
                words = trust_text(trusted, ("right", "wrong answers"))
                drawn += f"\n{fill(words, text_width(), break_on_hyphens=False)}"
            results: dict[str, Any] = {"rows": rows, "trust": trusted}
            if self.by is not None:
                results["by"] = evaluate_errors_by(scored, data, self.errors, self.by, **options)
                drawn += f"\n\n{_text_by(results['by'], self.by)}"
            return results, drawn
        if self.steps:
            from sonde.run.scoring.known_steps import evaluate_steps

            options |= {"label_column": reading.label_column, "alpha": alpha}
            rows = evaluate_steps(scored, data, **options)
            meanings = {word: text.format(alpha=alpha) for word, text in STEPS.items()}
            pairs = (("top-1", "localised"), ("AUROC", "auroc"), ("F1", "f1"), ("joint", "joint"))
            return {"rows": rows}, _figures_table(rows, *pairs, meanings)
        from sonde.run.scoring.known_pixels import evaluate_pixels

        assert self.masks is not None  # one of the three was asked for
        options |= {"image_column": reading.image_column, "grid": self.grid, "sigma": self.sigma}
        rows = evaluate_pixels(scored, data, self.masks, **options)
        return {"rows": rows}, _figures_table(
            rows, ("PRO", "aupro"), ("AUROC", "pixel_auroc"), PIXELS
        )


def _text_by(rows: list[dict[str, Any]], column: str) -> str:
    """Return a table of the metrics for each value of a column."""
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
    """Return a table: the first metric with its interval, the other metrics, the counts."""
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
    note = f"\n{left:,} left out, because the correct verdict is not known." if left else ""
    return f"{table(titles, cells)}{note}\n\n{legend(meanings)}"


PAGES = (".html", ".htm", ".svg", ".png")


@dataclass(frozen=True)
class Evaluate:
    """Report how well detectors separate USUAL from UNUSUAL rows, with intervals over groups.

    INPUTS are two tables of `sonde score`, USUAL UNUSUAL; or PROBE MODEL USUAL UNUSUAL; or PROBE
    USUAL UNUSUAL with two folders of rows that `sonde read` wrote.

    With -o, histograms with the threshold, the ROC curve and AUROC by site too.

    With --errors, --steps or --masks, INPUTS are SCORES DATA: one table, and the data that were
    scored. The data contain the truth: which rows are wrong, or where.

    Example: sonde evaluate usual.parquet unusual.parquet -o evaluate.html
    """

    inputs: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        named(
            "INPUTS",
            "USUAL UNUSUAL, PROBE MODEL USUAL UNUSUAL, or PROBE USUAL UNUSUAL; or SCORES DATA",
        ),
    ]
    output: Annotated[
        Path | None, named("FILE", "picture to write: .html (one page), .svg or .png", "-o")
    ] = None
    alpha: Annotated[float, tyro.conf.arg(help="false-alarm rate at which alarms are counted")] = (
        0.05
    )
    resamples: Annotated[
        int, tyro.conf.arg(help="number of bootstrap resamples for the intervals")
    ] = 1000
    known: KnownRows = field(default_factory=KnownRows)
    reading: Reading = field(default_factory=Reading)
    running: Workers = field(default_factory=Workers)
    printing: Printing = field(default_factory=Printing)
    several_outputs: ClassVar[bool] = True

    def run(self) -> int:
        """Read or compute the scores, and print the metrics."""
        from sonde.run.scoring.evaluate import evaluate
        from sonde.run.scoring.trust import trust

        if not 0 < self.alpha < 1:
            raise InputError(f"--alpha: expected a rate in (0, 1), got {self.alpha}.")
        self.running.crew()
        self.running.memory_bytes()
        self.known.check()
        if self.known.n_kinds:
            return self._held_against()
        if self.output is not None:
            for path in pages_of(self.output):
                check_picture(path, *self.inputs)
        usual, unusual = self._tables()
        for name, scored in (("usual", usual), ("unusual", unusual)):
            _say_infinite(scored, f"{name} rows")
        options: dict[str, Any] = {"resamples": self.resamples, "seed": self.reading.seed}
        rows = evaluate(usual, unusual, alpha=self.alpha, **options)
        conditions = {"alpha": self.alpha, "resamples": self.resamples, **self._names()}
        conditions["trust"] = trust(usual, unusual, **options)
        if self.output is not None:
            self._draw(self.output, rows, usual, unusual, conditions)
        if self.printing.json:
            say_json({"rows": rows, **conditions})
        elif not self.printing.quiet:
            from sonde.report.evaluate import evaluation

            say_document(evaluation(rows, [], **conditions), self.printing)
        return 0

    def _held_against(self) -> int:
        """Compare a table of scores with the ground truth of its rows."""
        from sonde.run.scoring.tables import read_table

        if self.known.n_kinds > 1 or len(self.inputs) != 2 or self.output is not None:
            raise InputError(
                "evaluate: expected one of --errors, --steps and --masks with SCORES DATA, without "
                "-o, which draws usual against unusual rows."
            )
        scored, data = read_table(self.inputs[0]), self.inputs[1]
        _say_infinite(scored, self.inputs[0])
        options = {"alpha": self.alpha, "resamples": self.resamples}
        results, text = self.known.judged(scored, data, self.reading, **options)
        if self.printing.json:
            say_json({"resamples": self.resamples, **results})
        elif not self.printing.quiet:
            say(text)
        return 0

    def _draw(self, path: Path, rows: Any, usual: Any, unusual: Any, told: dict[str, Any]) -> None:
        from sonde.report.evaluate import evaluation, save_evaluation
        from sonde.run.scoring.curves import curves

        options: dict[str, Any] = {"alpha": self.alpha, "resamples": self.resamples}
        drawn = curves(usual, unusual, seed=self.reading.seed, **options)
        for each in pages_of(path):
            save_evaluation(evaluation(rows, drawn, **told), each)
            note(f"wrote {each}")

    def _names(self) -> dict[str, str]:
        """Return the names of the two tables: as typed, with the probe that scores them."""
        by = f", scored by {self.inputs[0]}" if len(self.inputs) > 2 else ""
        usual, unusual = [*self.inputs][-2:]
        return {"usual": f"{usual}{by}", "unusual": f"{unusual}{by}"}

    def _tables(self) -> list[Any]:
        if len(self.inputs) == 2:
            from sonde.run.scoring.tables import read_table

            return [read_table(path) for path in self.inputs]
        if len(self.inputs) not in (3, 4):
            raise InputError(
                "evaluate: expected USUAL UNUSUAL (two tables of scores), PROBE MODEL USUAL "
                "UNUSUAL, or PROBE and two folders of rows, got "
                f"{plural(len(self.inputs), 'word')}."
            )
        from sonde.cli.options import source_of
        from sonde.cli.score import options_of
        from sonde.run.fitting.fitted import Fitted
        from sonde.run.scoring.score import score
        from sonde.store import is_store

        fitted = Fitted.load(to_path(self.inputs[0]))
        options = options_of(self.reading) | self.running.worker_options()
        options["progress"] = not self.printing.quiet
        options["memory"] = self.running.memory_bytes()
        if len(self.inputs) == 3:
            for place in self.inputs[1:]:
                if not is_store(to_path(place)):
                    raise InputError(f"evaluate: expected a folder of rows, got {place}.")
                source_of("evaluate", place, "", self.reading)
            return [score(fitted, place, **options) for place in self.inputs[1:]]
        name, *both = self.inputs[1:]
        self.reading.check(*both)
        model, _ = source_of("evaluate", name, both[0], self.reading)
        return [score(fitted, model, data, **options) for data in both]


def _say_infinite(scored: Any, where: str) -> None:
    """Print how many scores are missing or infinite because their rows are not finite."""
    import numpy as np

    from sonde.run.scoring.tables import scores_of

    n = int(np.isposinf(scores_of(scored)).sum())
    if n:
        note(
            f"note: {n:,} of {scored.num_rows:,} scores of {where} are missing or infinite, "
            "because their rows are not finite; they count as the most anomalous."
        )


def check_picture(path: Path, *inputs: str) -> None:
    """Raise if the ending is unknown or the file cannot be written, before any work."""
    from sonde.store.outputs import check_file

    if path.suffix.lower() not in PAGES:
        raise InputError(f"-o: expected a name that ends in {', '.join(PAGES)}, got {path}.")
    check_file(path, *inputs)
