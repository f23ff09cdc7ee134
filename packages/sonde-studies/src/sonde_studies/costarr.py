"""Test whether features before and after the head's weights complement each other.

What came out, on digits (ten seeds) and on Fashion-MNIST (three): before and after the head,
inputs are ordered alike (arm "rank correlation of pre and post", .93), so both together gain .005
over the features before and nothing over those after. Against the largest logit the likeness to
the class is ahead by .016 on near digits, within the spread of nets, and on garments by .08 near
and .5 far, where unknown inputs get large logits. The factor "minmax" makes the score a copy of the
winning logit (arm "rank correlation of minmax and max_logit", .99): it helps where that is the
better score and loses the rest; "zscore" loses .07.
"""

from statistics import fmean
from typing import Literal, final

from torch import Tensor

from sonde.core import Detector
from sonde.detect import COSTARR, MSP, MaxLogit
from sonde_studies._digits import Architecture, Digits, digits, open_set
from sonde_studies._garments import garments
from sonde_studies._separation import area, fitted_on, rank_correlation, scores_of
from sonde_studies.study import Claim, Figures, Study, Tick

SITE = "body:out"
ARCHITECTURES: tuple[Architecture, ...] = ("mlp", "cnn")
USES: tuple[Literal["both", "pre", "post"], ...] = ("both", "pre", "post")
FACTORS: tuple[Literal["none", "minmax", "zscore"], ...] = ("none", "minmax", "zscore")
Scored = dict[str, dict[str, Tensor]]


def arms() -> dict[str, Detector]:
    """Return COSTARR with every setting, and two logit scores."""
    made = {f"{use}, {logit}": COSTARR(use, logit) for use in USES for logit in FACTORS}
    return {**made, "max_logit": MaxLogit(), "MSP": MSP()}


@final
class COSTARRStudy(Study):
    """Features before and after attenuation, alone and together, with unknown classes."""

    name = "costarr"
    title = "do features before and after the head's weights tell unknown classes best together?"
    paper = "costarr2025"
    fidelity = (
        "reconstructed formula, from the ingredients that the abstract names; what the original "
        "chose on unusual data is not known, here nothing was"
    )
    data = (
        "six of ten of scikit-learn's digits known, the other four near, uniform noise as far; a "
        "fully connected and a conv net; claims are means over both nets, near kinds; further "
        "figures of Fashion-MNIST where Debian's package is installed"
    )
    place = "fashion"
    claims = (
        Claim("both over pre", "Both beat the features before the head alone.", "dAUROC"),
        Claim("both over post", "Both beat the attenuated features alone.", "dAUROC"),
        Claim("both over max_logit", "Both beat the largest logit.", "dAUROC"),
        Claim("minmax over none", "The factor of the winning logit's range helps.", "dAUROC"),
        Claim("zscore over none", "The factor of the logits' z-scores helps.", "dAUROC"),
    )
    null = Claim("null", "Fresh known images against fresh known images.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Score every setting on both nets."""
        figures: dict[str, float] = {} if tiny else _on_garments(seed, tick)
        near: dict[str, list[float]] = {name: [] for name in arms()}
        nulls: list[float] = []
        alike: dict[str, list[float]] = {"post": [], "max_logit": []}
        for architecture in ARCHITECTURES[:1] if tiny else ARCHITECTURES:
            tick(f"training {architecture}")
            d = digits(seed, architecture, tiny)
            tick(f"scoring {architecture}")
            scored = scored_arms(d)
            figures[f"{architecture} accuracy"] = d.accuracy
            for name, parts in scored.items():
                for part in ("near", "far"):
                    found = area(parts["test"], parts[part])
                    figures[f"{name} | {architecture} {part}"] = found
                near[name].append(figures[f"{name} | {architecture} near"])
            nulls.append(area(scored["both, none"]["test"], scored["both, none"]["held"]))
            alike["post"].append(likeness(scored, "pre, none", "post, none"))
            alike["max_logit"].append(likeness(scored, "both, minmax", "max_logit"))
        mean = {name: fmean(found) for name, found in near.items()}
        ours = mean["both, none"]
        return {
            "both over pre": ours - mean["pre, none"],
            "both over post": ours - mean["post, none"],
            "both over max_logit": ours - mean["max_logit"],
            "minmax over none": mean["both, minmax"] - ours,
            "zscore over none": mean["both, zscore"] - ours,
            "null": fmean(nulls),
            "rank correlation of pre and post": fmean(alike["post"]),
            "rank correlation of minmax and max_logit": fmean(alike["max_logit"]),
            **figures,
        }


def _on_garments(seed: int, tick: Tick) -> dict[str, float]:
    """Return the results on Fashion-MNIST if it is installed."""
    found: dict[str, float] = {}
    source = garments()
    if source is None:
        return found
    for architecture in ARCHITECTURES:
        tick(f"garments, {architecture}")
        scored = scored_arms(open_set(source, seed, architecture))
        for name, parts in scored.items():
            for part in ("near", "far"):
                key = f"{name} | garments, {architecture} {part}"
                found[key] = area(parts["test"], parts[part])
    return found


def scored_arms(d: Digits) -> Scored:
    """Return the scores of each arm on each part of the data."""
    made = arms()
    fitted = fitted_on(d.model, d.fit, list(made.values()), sites=[SITE])
    parts = {"test": d.test, "near": d.near, "far": d.far, "held": d.held}
    columns = {part: list(scores_of(fitted, d.model, i).values()) for part, i in parts.items()}
    return {name: {p: columns[p][i] for p in parts} for i, name in enumerate(made)}


def likeness(scored: Scored, a: str, b: str) -> float:
    """Return Spearman's correlation of two scores on near inputs."""
    return rank_correlation(scored[a]["near"], scored[b]["near"])
