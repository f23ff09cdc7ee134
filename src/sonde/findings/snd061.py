"""SND061: groups of inputs on which the model is much worse."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.findings._places import counted_as, read_command, sentence, too_few
from sonde.findings._shared import examples_at
from sonde.findings._text import percent, plural
from sonde.findings._weak import (
    WeakRows,
    extreme_units,
    members,
    told,
    weak_rows,
    weak_table,
    worst_pairs,
)
from sonde.findings.answers import class_answers
from sonde.findings.evidence import Evidence
from sonde.findings.rule import Check, Figure, Finding, Rule, Theme
from sonde.metrics.weak_groups import WeakGroup


@final
@dataclass(frozen=True)
class SND061(Rule):
    """How much less often the model is right in a group of inputs than elsewhere."""

    warning: float = 0.1
    least: int = 100

    code: ClassVar[str] = "SND061"
    title: ClassVar[str] = "A group of inputs on which the model is much worse"
    theme: ClassVar[Theme] = "labels"
    why: ClassVar[str] = (
        "An average hides inputs of one kind that the model has not learned: a rare style, one "
        "sensor, short texts."
    )
    how: ClassVar[str] = (
        "On a random half of the groups of the sampled labelled rows: values and tails of the "
        "data's own columns, of length, size and brightness, of the answer, and clusters of the "
        "states (k-means with 5, 10 and 20 centres on 16 principal components, at most 6 sites), "
        "alone or two together; at most five are taken, by how much of the errors each explains. "
        "On the other half both shares of errors have an interval, at 99 % over all groups that "
        "were tried there, exact for rows without groups. The interval of the group must lie 10 "
        "points above that of the rest."
    )
    false_positives: ClassVar[str] = "Inputs that nobody can tell, such as blurred pictures."
    plant: ClassVar[str] = "A style, a sensor, a length that the net was not trained on."
    twin: ClassVar[str] = "The same net without it; errors that fall on rows by chance."

    def check(self, evidence: Evidence) -> Check:
        """Look for groups on one half of the rows and count them on the other."""
        found = weak_rows(evidence)
        if found is None:
            reason = class_answers(evidence)
            return self.not_applicable(reason if isinstance(reason, str) else "no answers")
        n_groups = len(torch.unique(found.group))
        if n_groups < self.least:
            return too_few(self, n_groups, self.least, counted_as(evidence))
        groups = self.confirmed(found)
        if not groups:
            seen = max(found.groups, key=lambda g: g.low - g.elsewhere_high, default=None)
            return self.clear(None if seen is None else self._figure(seen))
        finding = self._finding(evidence, found, groups[0], len(groups) - 1)
        return self.raised(finding, weak_groups=weak_table(evidence, found, groups))

    def confirmed(self, found: WeakRows) -> list[WeakGroup]:
        """Return the groups that are worse by more than the threshold, the worst first."""
        return [g for g in found.groups if g.low > g.elsewhere_high + self.warning]

    def _figure(self, group: WeakGroup) -> Figure:
        return Figure(
            "weak_group_gap",
            group.loss - group.elsewhere,
            group.low - group.elsewhere_high,
            group.high - group.elsewhere_low,
            "share",
            null=0.0,
            threshold=self.warning,
            n_rows=group.n_confirming,
            n_groups=group.n_groups,
            confidence=group.confidence,
        )

    def _finding(
        self, evidence: Evidence, found: WeakRows, group: WeakGroup, n_more: int
    ) -> Finding:
        figure = self._figure(group)
        size, n = len(group.rows), len(found.where)
        text = (
            f"{told(evidence, found, group)}: right on {percent(1 - group.loss)} "
            f"({percent(1 - group.high)} to {percent(1 - group.low)}) of these inputs, elsewhere "
            f"on {percent(1 - group.elsewhere)}."
        )
        pairs = worst_pairs(evidence, found, group)
        said = f"Most often {pairs[0][0]} is called {pairs[0][1]}." if pairs else ""
        site, units = extreme_units(evidence, found, group)
        return Finding(
            self.code,
            "warning",
            sentence(
                text,
                f"{size:,} of {plural(n, 'row')} ({percent(size / n)}).",
                said,
                f"{plural(n_more, 'more group')}." if n_more else "",
            ),
            figure,
            sites=(site,) if site else (),
            units=tuple(map(str, units)),
            classes=tuple(dict.fromkeys(a for a, _, _ in pairs)),
            examples=tuple(examples_at(evidence, members(evidence, found, group))),
            effect=min(1.0, figure.value),
            next=read_command(site) if site else None,
        )
