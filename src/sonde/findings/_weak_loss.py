"""What the rules on groups with a larger loss share: a regression's error, a text's nats."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from sonde.findings._places import counted_as, read_command, sentence, too_few
from sonde.findings._shared import examples_at
from sonde.findings._text import percent, plural
from sonde.findings._weak import WeakRows, extreme_units, members, told
from sonde.findings.evidence import Evidence
from sonde.findings.rule import Check, Figure, Finding, Rule
from sonde.metrics.weak_groups import WeakGroup


@dataclass(frozen=True)
class WeakLossRule(Rule):
    """A rule on groups of inputs whose mean loss is larger than elsewhere."""

    warning: float
    least: int = 100

    measured: ClassVar[str]
    unit: ClassVar[str]

    def found(self, evidence: Evidence) -> WeakRows | str:
        """Return the groups that may be worse, or the reason why none were looked for."""
        raise NotImplementedError

    def said(self, group: WeakGroup) -> str:
        """Return the loss of a group and of the rest in words."""
        raise NotImplementedError

    def check(self, evidence: Evidence) -> Check:
        """Look for groups on one half of the rows and measure them on the other."""
        found = self.found(evidence)
        if isinstance(found, str):
            return self.not_applicable(found)
        n_groups = len(torch.unique(found.group))
        if n_groups < self.least:
            return too_few(self, n_groups, self.least, counted_as(evidence))
        groups = [g for g in found.groups if g.low > g.elsewhere_high + self.warning]
        if not groups:
            seen = max(found.groups, key=lambda g: g.low - g.elsewhere_high, default=None)
            return self.clear(None if seen is None else self._figure(seen))
        return self.raised(self._finding(evidence, found, groups))

    def _figure(self, group: WeakGroup) -> Figure:
        return Figure(
            self.measured,
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
        return Finding(
            self.code,
            "warning",
            sentence(
                f"{told(evidence, found, group)}: {self.said(group)}",
                f"{size:,} of {plural(n, 'row')} ({percent(size / n)}).",
                f"{plural(more, 'more group')}." if more else "",
            ),
            self._figure(group),
            sites=(site,) if site else (),
            units=tuple(map(str, units)),
            examples=tuple(examples_at(evidence, members(evidence, found, group))),
            effect=min(1.0, group.loss - group.elsewhere),
            next=read_command(site) if site else None,
        )
