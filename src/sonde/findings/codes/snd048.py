"""SND048: an identifier column that predicts the labels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch

from sonde.findings.evidence.inputs.row_order import Ordered, of_neighbours
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import one_per_group, shared_rows
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, sentence, too_few
from sonde.findings.words.text import percent, plural, shortened

_NUMBER = re.compile(r"\d+")


@final
@dataclass(frozen=True)
class SND048(Rule):
    """Fraction of neighbours by identifier with equal labels, compared with random orders.

    Parameters
    ----------
    unique : float, default=0.95
        Least share of distinct values at which a column counts as a key.
    dense : float, default=4.0
        Largest range of whole numbers, over the number of rows, at which they number the rows.
    above : float, default=0.1
        Least share of equal neighbours above that of random orders.
    level : float, default=0.0001
    rows : int, default=100
        Least labelled rows, one of each group.
    """

    unique: float = 0.95
    dense: float = 4.0
    above: float = 0.1
    level: float = 0.0001
    rows: int = 100

    title: ClassVar[str] = "An identifier predicts the labels"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("shortcut", "redundant columns")
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "A model that reads this column, or a file name with it, memorises identities instead "
        "of content. A split that ignores the column does not test unseen cases."
    )
    fix: ClassVar[str] = "Drop this column from the inputs, and split by it."
    how: ClassVar[str] = (
        "Columns that number the rows: 95 % of their values are distinct whole numbers (or "
        "texts without spaces that contain a number), with a range of at most four times the "
        "number of rows. The sampled labelled rows are sorted by such a column: the fraction of "
        "neighbours with equal labels must be 10 percentage points larger than in 200 random "
        "orders, with p below 1 in 10,000, corrected for the number of columns. A warning if "
        "the column is an input of the model, else a note."
    )
    false_positives: ClassVar[str] = (
        "A time stamp in whole days that legitimately predicts the label."
    )
    plant: ClassVar[str] = "A column that numbers the rows in order of their labels."
    twin: ClassVar[str] = "The same column in random order."

    def check(self, evidence: Evidence) -> Check:
        """Sort the rows by every column that looks like an identifier and compare their labels."""
        shared = shared_rows(evidence)
        label, order = shared.column("label"), shared.order
        if label is None or order is None or not evidence.data.has_labels:
            return self.not_applicable("the data have no labels")
        first = one_per_group(shared.group)
        where = first[label[first] >= 0]
        if len(where) < self.rows:
            return too_few(self, len(where), self.rows)
        columns = _columns(evidence, order[where].tolist())
        keys = {
            n: k for n, v in columns.items() if (k := self._key(v, evidence.data.n)) is not None
        }
        if not keys:
            return self.not_applicable("no column of the data numbers its rows")
        truth = label[where]
        orders = {n: of_neighbours(truth[torch.from_numpy(k)]) for n, k in keys.items()}
        worst = max(orders, key=lambda n: orders[n].value - orders[n].null)
        seen = orders[worst]
        p = min(1.0, seen.p * len(orders))
        figure = Figure(
            "equal_neighbours", seen.value, unit="share", null=seen.null,
            threshold=seen.null + self.above, p=p, n_rows=len(where), n_groups=len(where),
        )  # fmt: skip
        if seen.value - seen.null <= self.above or p >= self.level:
            return self.clear(figure)
        return self._raised(evidence, worst, seen, figure)

    def _key(self, values: Sequence[Any], n: int) -> np.ndarray | None:
        """Return the row order by an identifier column, or None if it is not an identifier."""
        numbers = [_number(v) for v in values]
        if any(number is None for number in numbers):
            return None
        array = np.array(numbers, dtype=np.float64)
        distinct = len(np.unique(array)) >= self.unique * len(array)
        if not distinct or float(array.max() - array.min()) > self.dense * max(n, len(array)):
            return None
        return np.argsort(array, kind="stable")

    def _raised(self, evidence: Evidence, name: str, seen: Ordered, figure: Figure) -> Check:
        is_input = name in evidence.data.inputs
        use = (
            "The model reads this column: remove it from the inputs."
            if is_input
            else "Keep it out of the inputs."
        )
        text = (
            f"Column {shortened(name)} numbers the rows and predicts their labels: sorted by "
            f"this column, {percent(seen.value)} of neighbouring rows have equal labels; in "
            f"random orders {percent(seen.null)}. {plural(figure.n_rows, 'row')}."
        )
        key = evidence.sites[-1].schema.key
        return self.raised_with(
            "warning" if is_input else "note",
            sentence(text, use),
            figure,
            sites=(),
            effect=min(1.0, seen.value - seen.null),
            next=read_command(key),
        )


def _columns(evidence: Evidence, examples: Sequence[int]) -> Mapping[str, Sequence[Any]]:
    columns = evidence.data.key_columns
    return {} if columns is None else columns(examples)


def _number(value: Any) -> int | None:
    """Return a value as a whole number, or the last number in a text without spaces."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if not isinstance(value, str) or len(value.split()) != 1:
        return None
    digits = _NUMBER.findall(value)
    return int(digits[-1]) if digits else None
