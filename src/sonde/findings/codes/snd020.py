"""SND020: weights whose size differs from the same layer in other blocks."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.modules.fresh_weights import FreshLayers, find_fresh_layers
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.anomaly_trials import Resized, loses
from sonde.findings.evidence.trials.weight_sizes import (
    DEVIATIONS,
    RATIO,
    SIBLINGS,
    all_groups,
    ratios,
    resized,
    size_outliers,
)
from sonde.findings.rule import Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.trial import gained
from sonde.findings.words.places import places, read_command, sentence
from sonde.findings.words.text import number, plural


@final
@dataclass(frozen=True)
class SND020(Rule):
    """Root mean square of each layer's weights over the median of its siblings in other blocks.

    Parameters
    ----------
    siblings : int, default=4
        Least number of layers that share a shape and, apart from numbers, a name.
    ratio, noted : float
        How many times larger or smaller than the median of the others: for a warning, and a note.
    deviations : float, default=6
        Least distance from the siblings' median, in robust standard deviations of the logarithms.
    """

    siblings: int = SIBLINGS
    ratio: float = RATIO
    noted: float = 3.0
    deviations: float = DEVIATIONS

    title: ClassVar[str] = "Weights whose size stands out from their siblings"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("explosion",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND037", "SND039", "SND046")),)
    why: ClassVar[str] = (
        "A layer that was scaled twice, merged or converted wrongly, or that diverged in training, "
        "dominates the other layers, or contributes nothing."
    )
    fix: ClassVar[str] = (
        "Load this weight again from the checkpoint it came from, or divide it by the factor named."
    )
    how: ClassVar[str] = (
        "Tested are linear layers and convolutions of at least 512 weights that ran, grouped by "
        "shape and by name without numbers, so that layers at the same position in all blocks "
        "form one group; and the weights of norms inside numbered blocks, grouped by name. A "
        "layer is reported if the root mean square of its weights is at least 4 times or at "
        "most 1/4 of the median of the others in its group (3 times or 1/3: a note), and if the "
        "logarithm of this ratio is 6 robust standard deviations away (1.48 times the median "
        "deviation, at least log 1.2). A note, too, if the weights were tried at the size of the "
        "others and the answers got worse by a tenth: then the model was trained so. Of several "
        "such layers, the three largest are tried one by one, and those that make the answers "
        "worse are left out."
    )
    false_positives: ClassVar[str] = (
        "Models that deliberately scale blocks by depth, so that the first block differs "
        "greatly from the others."
    )
    plant: ClassVar[str] = "A trained net of six blocks, one weight of which is ten times as large."
    twin: ClassVar[str] = "The trained net."

    def check(self, evidence: Evidence) -> Check:
        """Compare every layer with the same layer of other blocks."""
        layers = evidence.get(find_fresh_layers)
        if not isinstance(layers, FreshLayers):
            return self.not_applicable("no model was run")
        large = all_groups(layers, self.siblings)
        if not large:
            return self.not_applicable(
                f"fewer than {self.siblings} blocks have a layer of the same name"
            )
        outliers = size_outliers(large, min(self.noted, self.ratio), self.deviations)
        every = [r for group in large for r in ratios(group)]
        worst = max(every, key=lambda r: abs(math.log(r)), default=1.0)
        figure = Figure("size_over_siblings", worst, null=1.0, threshold=self.noted)
        if not outliers:
            return self.clear(figure)
        tried: Resized | None = evidence.get(resized)
        trial = None if tried is None else tried.trial
        if tried is not None:  # weights of the others were trained to their size
            outliers = [o for o in outliers if o.path in tried.paths] or outliers
        first = max(outliers, key=lambda o: abs(math.log(o.ratio)))
        is_larger = first.ratio > 1
        times = f"{number(max(first.ratio, 1 / first.ratio))} times " + (
            "as large as" if is_larger else "smaller than"
        )
        more = [o.path for o in outliers if o is not first]
        fix = "" if trial is None or not trial.holds else f"With {trial.change}: {gained(trial)}."
        text = (
            f"The weights of {first.path} are {times} those of the same layer in "
            f"{plural(first.n_siblings, 'other block')} (root mean square, median of the "
            "others)."
        )
        is_far = abs(math.log(first.ratio)) >= math.log(self.ratio)
        is_worse = trial is not None and loses(trial)
        return self.raised_with(
            "warning" if is_far and not is_worse else "note",
            sentence(text, f"The weights of {places(more)} differ as well." if more else ""),
            figure,
            sites=tuple(o.path for o in outliers),
            effect=min(1.0, abs(math.log(first.ratio)) / math.log(100)),
            next=read_command(first.path),
            fix=fix,
            trial=trial,
        )
