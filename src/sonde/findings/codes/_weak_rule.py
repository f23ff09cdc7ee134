"""The base of rules on groups of inputs with a larger mean loss."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from sonde.findings.evidence.inputs.weak_groups import WeakRows, extreme_units, members, told
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import examples_at
from sonde.findings.rule import Check, Figure, Finding, Rule
from sonde.findings.words.places import class_command, counted_as, read_command, sentence, too_few
from sonde.findings.words.text import percent, plural
from sonde.metrics.weak_groups import WeakGroup


@dataclass(frozen=True)
class WeakGroupRule(Rule):
    """A rule on groups of inputs whose mean loss is larger than elsewhere."""

    warning: float
    least: int = 100

    figure_name: ClassVar[str]
    unit: ClassVar[str]

    def found(self, evidence: Evidence) -> WeakRows | str:
        """Return the groups that may be worse, or the reason why the rule did not search."""
        raise NotImplementedError

    def said(self, group: WeakGroup) -> str:
        """Describe the loss of a group and of the other rows."""
        raise NotImplementedError

    def confused(
        self, evidence: Evidence, found: WeakRows, group: WeakGroup
    ) -> list[tuple[str, str, int]]:
        """Return label and answer of the most frequent errors; empty without classes."""
        return []

    def is_expected(self, evidence: Evidence, found: WeakRows, group: WeakGroup) -> bool:
        """Return whether the model's confidence predicts the larger loss; then it is a note."""
        return False

    def advice(self, evidence: Evidence, group: WeakGroup) -> str:
        """Return a tested change that helps the group; if empty, the rule's advice is used."""
        return ""

    def tables(
        self, evidence: Evidence, found: WeakRows, groups: list[WeakGroup]
    ) -> dict[str, Any]:
        """Return the tables that a report shows beside the figure."""
        return {}

    def confirmed(self, found: WeakRows) -> list[WeakGroup]:
        """Return the groups that are worse by more than the threshold, worst first."""
        return [g for g in found.groups if g.low > g.elsewhere_high + self.warning]

    def check(self, evidence: Evidence) -> Check:
        """Search for groups on one half of the rows and measure their loss on the other half."""
        weak = self.found(evidence)
        if isinstance(weak, str):
            return self.not_applicable(weak)
        n_groups = len(torch.unique(weak.group))
        if n_groups < self.least:
            return too_few(self, n_groups, self.least, counted_as(evidence))
        groups = sorted(
            self.confirmed(weak), key=lambda group: self.is_expected(evidence, weak, group)
        )
        if not groups:
            seen = max(weak.groups, key=lambda g: g.low - g.elsewhere_high, default=None)
            return self.clear(None if seen is None else self._figure(seen))
        tables = self.tables(evidence, weak, groups)
        return self.raised(self._finding(evidence, weak, groups), **tables)

    def _figure(self, group: WeakGroup) -> Figure:
        return Figure(
            self.figure_name,
            group.loss - group.elsewhere,
            group.low - group.elsewhere_high,
            group.high - group.elsewhere_low,
            self.unit,
            null=0.0,
            threshold=self.warning,
            n_rows=group.n_confirming,
            n_groups=group.n_groups,
            confidence=group.confidence,
        )

    def _finding(self, evidence: Evidence, found: WeakRows, groups: list[WeakGroup]) -> Finding:
        group, more = groups[0], len(groups) - 1
        size, n = len(group.rows), len(found.where)
        site, units = extreme_units(evidence, found, group)
        pairs = self.confused(evidence, found, group)
        after = read_command(site) if site else None
        if pairs:
            after = class_command(*pairs[0][:2])
        return Finding(
            self.code,
            "note" if self.is_expected(evidence, found, group) else "warning",
            sentence(
                f"{told(evidence, found, group)}: {self.said(group)}",
                f"{size:,} of {plural(n, 'row')} ({percent(size / n)}).",
                f"Most often {pairs[0][0]} is called {pairs[0][1]}." if pairs else "",
                f"{plural(more, 'more group')}." if more else "",
            ),
            self._figure(group),
            sites=(site,) if site else (),
            units=tuple(map(str, units)),
            classes=tuple(dict.fromkeys(label for label, _, _ in pairs)),
            examples=tuple(examples_at(evidence, members(evidence, found, group))),
            effect=min(1.0, group.loss - group.elsewhere),
            next=after,
            fix=self.advice(evidence, group),
        )
