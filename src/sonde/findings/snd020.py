"""SND020: weights whose size stands out from those at the same place of other blocks."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, final

from sonde.findings._places import places, read_command, sentence
from sonde.findings._text import number, plural
from sonde.findings.evidence import Evidence
from sonde.findings.fresh_weights import FreshLayers
from sonde.findings.rule import Check, Figure, Rule, Theme


@dataclass(frozen=True)
class _Outlier:
    path: str
    ratio: float
    n_siblings: int


@final
@dataclass(frozen=True)
class SND020(Rule):
    """Root mean square of each layer's weights beside the median of its siblings.

    Parameters
    ----------
    siblings : int, default=4
        Least number of layers that share a shape and, apart from numbers, a name.
    ratio : float, default=4
        How many times larger or smaller than the median of the others.
    deviations : float, default=6
        Least distance from the siblings' median, in robust standard deviations of the logarithms.
    """

    siblings: int = 4
    ratio: float = 4.0
    deviations: float = 6.0

    title: ClassVar[str] = "Weights whose size stands out from their siblings"
    theme: ClassVar[Theme] = "run"
    why: ClassVar[str] = (
        "A layer that was scaled twice, merged or converted wrongly, or that training blew up, "
        "drowns what others add, or adds nothing."
    )
    fix: ClassVar[str] = (
        "Load this weight again from the checkpoint it came from, or divide it by the factor named."
    )
    how: ClassVar[str] = (
        "Linear layers and convolutions of at least 512 weights that ran, grouped by shape and by "
        "name with numbers left out, so that the same place of all blocks is one group. The root "
        "mean square of a layer's weights over the median of the others in its group is at least "
        "4 or at most 1/4, and the logarithm 6 robust standard deviations (1.48 times the median "
        "deviation, at least log 1.2) away."
    )
    false_positives: ClassVar[str] = (
        "Models that scale blocks by their depth on purpose, where the first differs much."
    )
    plant: ClassVar[str] = "A trained net of six blocks, one weight of which is ten times as large."
    twin: ClassVar[str] = "The trained net."

    def check(self, evidence: Evidence) -> Check:
        """Compare every layer with the same place of other blocks."""
        found = evidence.fresh
        if not isinstance(found, FreshLayers):
            return self.not_applicable("no model was run")
        groups: dict[tuple[str, tuple[int, ...]], list[tuple[str, float]]] = {}
        for path, size in found.sizes.items():
            name = re.sub(r"\d+", "*", path)
            groups.setdefault((name, size.shape), []).append((path, size.rms))
        large = [g for g in groups.values() if len(g) >= self.siblings]
        if not large:
            return self.not_applicable(f"no {self.siblings} blocks have a layer of one name")
        outliers = [o for group in large for o in self._outliers(group)]
        every = [r for group in large for r in _ratios(group)]
        worst = max(every, key=lambda r: abs(math.log(r)), default=1.0)
        figure = Figure("size_over_siblings", worst, null=1.0, threshold=self.ratio)
        if not outliers:
            return self.clear(figure)
        first = max(outliers, key=lambda o: abs(math.log(o.ratio)))
        is_larger = first.ratio > 1
        times = f"{number(max(first.ratio, 1 / first.ratio))} times " + (
            "as large as" if is_larger else "smaller than"
        )
        more = [o.path for o in outliers if o is not first]
        text = (
            f"The weights of {first.path} are {times} those at the same place of "
            f"{plural(first.n_siblings, 'other block')} (root mean square, median of the others)."
        )
        return self.raised_with(
            "warning",
            sentence(text, f"So do {places(more)} stand out." if more else ""),
            figure,
            sites=tuple(o.path for o in outliers),
            effect=min(1.0, abs(math.log(first.ratio)) / math.log(100)),
            next=read_command(first.path),
        )

    def _outliers(self, group: Sequence[tuple[str, float]]) -> list[_Outlier]:
        logs = [math.log(max(r, 1e-12)) for r in _ratios(group)]
        middle = median(logs)
        spread = max(1.48 * median(abs(x - middle) for x in logs), math.log(1.2))
        return [
            _Outlier(path, math.exp(x), len(group) - 1)
            for (path, _), x in zip(group, logs, strict=True)
            if abs(x) >= math.log(self.ratio) and abs(x - middle) >= self.deviations * spread
        ]


def _ratios(group: Sequence[tuple[str, float]]) -> list[float]:
    """Return the size of each layer over the median size of the others."""
    sizes = [rms for _, rms in group]
    others = [median(sizes[:i] + sizes[i + 1 :]) for i in range(len(sizes))]
    return [max(a, 1e-12) / max(b, 1e-12) for a, b in zip(sizes, others, strict=True)]
