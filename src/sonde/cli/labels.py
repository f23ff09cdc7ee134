"""``sonde labels``: how many labels are wrong, and which, from features or probabilities alone."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from sonde.cli._presenting import pages_of
from sonde.cli._table import table
from sonde.cli.console import note, say, say_json
from sonde.cli.options import Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.findings.label_errors import CheckedLabels

SHOWN = 10
TITLES = ("id", "label", "looks like", "p(wrong)")


@dataclass(frozen=True)
class Labels:
    """Estimate how many labels are wrong, and list the labels to check first.

    No model is needed. FILE contains labels (`y` or `label`) and either class probabilities
    (`pred_probs` or `probs`) of a model that did not learn these labels, or one array of features
    or hidden states. From features, a linear classifier and the nearest rows give probabilities to
    rows that they were not fitted on. `group` (person, document) keeps rows of a group together;
    `id` names the rows. Without `group`, rows with one `id` form a group.

    Example: sonde labels labels.npz -o labels.csv
    """

    file: Annotated[tyro.conf.Positional[Path], named("FILE", "arrays: .npz or .safetensors")]
    output: Annotated[
        Path | None,
        named("FILE", "all rows, the most doubtful first: .csv, or .json with the estimate", "-o"),
    ] = None
    features: Annotated[
        str | None, named("NAME", "array of features, if FILE contains several arrays")
    ] = None
    seed: Annotated[int, tyro.conf.arg(help="seed of the folds")] = 0
    printing: Printing = field(default_factory=Printing)
    several_outputs: ClassVar[bool] = True

    def run(self) -> int:
        """Estimate, print the first rows, and write all of them if requested."""
        from sonde.files.durable import atomic_write
        from sonde.findings.label_errors import check_labels, read_arrays
        from sonde.store.outputs import check_file

        outputs = () if self.output is None else pages_of(self.output)
        for path in outputs:
            if path.suffix not in (".csv", ".json"):
                raise InputError(f"labels: expected -o FILE.csv or FILE.json, got {path}.")
            check_file(path, str(self.file))
        checked = check_labels(read_arrays(self.file), self.features, seed=self.seed)
        for path in outputs:
            text = _csv(checked) if path.suffix == ".csv" else _json(checked)
            atomic_write(path, text.encode())
        if self.printing.json:
            say_json(checked.json())
        elif not self.printing.quiet:
            rows = [_cells(row) for row in checked.rows()[:SHOWN]]
            say("\n".join([*checked.sentences(), "", table(TITLES, rows)]))
        wrote = f"; wrote {', '.join(map(str, outputs))}" if outputs else ""
        note(f"{self.file}: {checked.verdict()}{wrote}")
        return 0


def _cells(row: dict[str, Any]) -> list[str]:
    return [row["id"], row["label"], row["looks_like"], _chance(row["p_wrong"])]


def _chance(p: float) -> str:
    """Return a probability with two decimals; no label is certain to be wrong."""
    return ">0.99" if p > 0.99 else f"{p:.2f}"


def _json(found: "CheckedLabels") -> str:
    return json.dumps(found.json(), indent=1) + "\n"


def _csv(found: "CheckedLabels") -> str:
    text = io.StringIO()
    rows = found.rows()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
