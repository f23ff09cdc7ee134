"""SND063: groups of inputs on which a regression errs much more."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.findings._number_answers import number_rows
from sonde.findings._once import once
from sonde.findings._places import counted_as, read_command, sentence, too_few
from sonde.findings._shared import examples_at, shared_rows
from sonde.findings._text import number, percent, plural
from sonde.findings._weak import SITES, WeakRows, extreme_units, known_columns, members, told
from sonde.findings.evidence import Evidence
from sonde.findings.rows import spread_sites
from sonde.findings.rule import Check, Figure, Finding, Rule, Theme
from sonde.metrics.weak_groups import WeakGroup, weak_groups


@final
@dataclass(frozen=True)
class SND063(Rule):
    """How much larger the absolute error is in a group of inputs than elsewhere."""

    warning: float = 0.1
    least: int = 100

    code: ClassVar[str] = "SND063"
    title: ClassVar[str] = "A group of inputs on which a regression errs much more"
    theme: ClassVar[Theme] = "labels"
    why: ClassVar[str] = (
        "A mean error hides inputs of one kind that the model has not learned: one sensor, one "
        "season, small objects."
    )
    how: ClassVar[str] = (
        "Absolute errors in standard deviations of the targets. Groups are looked for on one half "
        "of the sampled rows as in SND061, by the data's own columns, size and brightness and "
        "clusters of the states. On the other half both means have a Student interval over groups, "
        "at 99 % over all groups that were tried there. That of the group must lie 0.1 standard "
        "deviations above that of the rest."
    )
    false_positives: ClassVar[str] = "Inputs whose targets are noisier than the others'."
    plant: ClassVar[str] = "A sensor whose readings are scaled."
    twin: ClassVar[str] = "The same readings without the scale."

    def check(self, evidence: Evidence) -> Check:
        """Look for groups on one half of the rows and measure them on the other."""
        found = _weak_numbers(evidence)
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
            "weak_group_error",
            group.loss - group.elsewhere,
            group.low - group.elsewhere_high,
            group.high - group.elsewhere_low,
            "standard deviations",
            null=0.0,
            threshold=self.warning,
            n_rows=group.n_confirming,
            n_groups=group.n_groups,
            confidence=group.confidence,
        )

    def _finding(self, evidence: Evidence, found: WeakRows, groups: list[WeakGroup]) -> Finding:
        group, more = groups[0], len(groups) - 1
        size, n = len(group.rows), len(found.where)
        text = (
            f"{told(evidence, found, group)}: off by {number(group.loss)} "
            f"({number(group.low)} to {number(group.high)}) standard deviations of the target, "
            f"elsewhere by {number(group.elsewhere)}."
        )
        site, units = extreme_units(evidence, found, group)
        return Finding(
            self.code,
            "warning",
            sentence(
                text,
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


@once
def _weak_numbers(evidence: Evidence) -> WeakRows | str:
    """Return the groups on which a regression may err more, or the reason why there are none."""
    numbers = number_rows(evidence)
    if isinstance(numbers, str):
        return numbers
    where, said, truth = numbers
    shared = shared_rows(evidence)
    loss, group = (said - truth).abs() / truth.std(), shared.group[where]
    columns = known_columns(evidence, where)
    chosen = spread_sites(len(evidence.sites), SITES)
    states = {evidence.sites[i].schema.key: shared.x(i)[where] for i in chosen}
    groups = weak_groups(loss, group, columns, states, gap=-math.inf)
    none = torch.full_like(where, -1)
    return WeakRows(where, loss, none, none, group, columns, groups)
