"""SND047: labels or states that change along the file."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sonde.findings.evidence.inputs.row_order import Ordered, of_tenths
from sonde.findings.evidence.inputs.unusual_rows import spread_sites
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import one_per_group, shared_rows
from sonde.findings.rule import Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, sentence, too_few
from sonde.findings.words.text import percent, plural

SITES, WIDTH, CLASSES = 3, 16, 256
LABELS = "labels"


@final
@dataclass(frozen=True)
class SND047(Rule):
    """Fraction of variance between tenths of the file, of a class or a direction of states.

    Parameters
    ----------
    share : float, default=0.05
        Least share above that of random orders.
    level : float, default=0.0001
    rows : int, default=100
        Least rows, one of each group.
    """

    share: float = 0.05
    level: float = 0.0001
    rows: int = 100

    title: ClassVar[str] = "The order of the rows is not random"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("sorted rows", "change in file")
    breaks: ClassVar[Breaks] = "nothing"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND044",)),)
    why: ClassVar[str] = (
        "A split by position trains on one kind of rows and tests on another, and the first "
        "rows, which --limit reads, differ from the later ones."
    )
    fix: ClassVar[str] = "Shuffle the rows before you split them or train on them."
    how: ClassVar[str] = (
        "The sampled rows, one of each group, are split into ten parts in the order of the "
        "file. The statistic is the fraction of variance between the parts, for each class and "
        "for 16 principal components of the states (at three sites; with labels, of the "
        "residuals after the class means). The largest fraction must be 5 percentage points "
        "above its mean over 200 random orders of the same rows, and the sum must have p below "
        "1 in 10,000, corrected for the number of tests. Labels are not tested if files are "
        "read in the order of their names, because folders of classes follow one another."
    )
    false_positives: ClassVar[str] = (
        "A table that was sorted on purpose and is never split by position."
    )
    plant: ClassVar[str] = "Rows sorted by label; images that get brighter along the file."
    twin: ClassVar[str] = "The same rows in random order."

    def check(self, evidence: Evidence) -> Check:
        """Compare the order of the file with random permutations."""
        shared = shared_rows(evidence)
        if shared.order is None or not evidence.sites:
            return self.not_applicable("the order of the rows is not known")
        first = one_per_group(shared.group)
        if len(first) < self.rows:
            return too_few(self, len(first), self.rows)
        where = first[torch.argsort(shared.order[first], stable=True)]
        order = _tried(evidence, where)
        raised = {
            name: seen
            for name, seen in order.items()
            if seen.value - seen.null > self.share and seen.p * len(order) < self.level
        }
        at = (
            LABELS if LABELS in raised else max(order, key=lambda k: order[k].value - order[k].null)
        )
        seen = order[at]
        figure = Figure(
            "share_between_tenths",
            seen.value,
            unit="share",
            null=seen.null,
            threshold=seen.null + self.share,
            p=min(1.0, seen.p * len(order)),
            n_rows=len(where),
            n_groups=len(where),
        )
        if not raised:
            return self.clear(figure)
        sites = tuple(name for name in raised if name != LABELS)
        return self.raised_with(
            "note",
            self._sentence(evidence, at, seen, where),
            figure,
            sites=sites,
            effect=min(1.0, seen.value),
            next=read_command(sites[0] if sites else evidence.sites[-1].schema.key),
            common=True,
        )

    def _sentence(self, evidence: Evidence, at: str, seen: Ordered, where: Tensor) -> str:
        what = "Labels come" if at == LABELS else f"States at {at.removesuffix(':out')} drift"
        text = (
            f"{what} in the order of the file: the ten tenths of the file explain "
            f"{percent(seen.value)} of {'one class' if at == LABELS else 'one direction'} "
            f"({percent(seen.null)} in random orders). {plural(len(where), 'row')}."
        )
        return sentence(text, "Shuffle before a split by position.", self._split(evidence, where))

    @staticmethod
    def _split(evidence: Evidence, where: Tensor) -> str:
        """Return how many classes a split before the last fifth would leave on one side only."""
        label = shared_rows(evidence).column("label")
        if label is None:
            return ""
        ordered = label[where]
        cut = len(ordered) * 4 // 5
        before, after = ordered[:cut].unique(), ordered[cut:].unique()
        total = int((ordered.unique() >= 0).sum())
        alone = total - int((torch.isin(before, after) & (before >= 0)).sum())
        return (
            f"Of {plural(total, 'class', 'classes')} {alone} would be on one side of such a split."
            if alone
            else ""
        )


def _tried(evidence: Evidence, where: Tensor) -> dict[str, Ordered]:
    """Return the variance between tenths of the file, of labels and of states at a few sites."""
    shared = shared_rows(evidence)
    label = shared.column("label")
    orders: dict[str, Ordered] = {}
    classes = torch.zeros(len(where), dtype=torch.int64)
    if label is not None and bool((label[where] >= 0).any()):
        classes = torch.unique(label[where], return_inverse=True)[1]
        if 1 < int(classes.max()) + 1 <= CLASSES and not evidence.data.by_name:
            orders[LABELS] = of_tenths(one_hot(classes).double())
    for i in spread_sites(len(evidence.sites), SITES):
        rows = _centred(shared.x(i)[where], classes)
        width = min(WIDTH, *rows.shape)
        left, size, _ = torch.linalg.svd(rows, full_matrices=False)
        kept = size[:width] > 1e-9 * size[0].clamp(min=1e-300)
        orders[evidence.sites[i].schema.key] = of_tenths(left[:, :width][:, kept])
    return orders


def _centred(rows: Tensor, classes: Tensor) -> Tensor:
    """Return rows minus their class mean, each unit divided by its standard deviation."""
    member = one_hot(classes).double()
    rows = rows - member @ ((member.T @ rows) / member.sum(0).clamp(min=1)[:, None])
    return rows / rows.std(0).clamp(min=1e-12)
