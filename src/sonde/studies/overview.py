"""All detectors by near and far shifts by two architectures: what the best single choice is."""

import time
from statistics import fmean, median
from typing import final

import torch
from torch import Tensor

from sonde.core.instrument import Detector
from sonde.core.state import size_bytes
from sonde.detect import (
    ASH,
    COSTARR,
    DICE,
    FDBD,
    GEN,
    KNN,
    MSP,
    NAC,
    SCALE,
    SHE,
    Energy,
    Entropy,
    GradNorm,
    KLMatching,
    Mahalanobis,
    MaxLogit,
    NNGuide,
    ReAct,
    RelativeMahalanobis,
    ViM,
)
from sonde.studies._digits import Architecture, Digits, digits
from sonde.studies._separation import area, fitted_on, scores_of
from sonde.studies.study import Claim, Figures, Study, Tick

SITE = "body:out"
ARCHITECTURES: tuple[Architecture, ...] = ("mlp", "cnn")
PARTS = ("near", "far")
BASELINE, SINGLE = "MSP", "RelativeMahalanobis"
PAIR = ("KNN", "RelativeMahalanobis")


def battery() -> dict[str, Detector]:
    """Return every detector that scores a hidden layer or logits of a classifier, with defaults."""
    ready: list[Detector] = [
        *(MSP(), MaxLogit(), Energy(), Entropy(), GEN(), KLMatching(), GradNorm()),
        *(Mahalanobis(), RelativeMahalanobis(), KNN(k=10), NNGuide(), ViM()),
        *(ReAct(), ASH(), SCALE(), DICE(), SHE(), FDBD(), COSTARR(), NAC()),
    ]
    return {type(d).__name__: d for d in ready}


@final
class OverviewStudy(Study):
    """Every detector with its defaults on the same nets and shifts.

    Fit and score times are of the whole call, the forward included.
    """

    name = "overview"
    title = "which detector tells unknown inputs best, near and far, on two architectures?"
    fidelity = "defaults throughout; nothing was chosen on unusual inputs"
    data = "digits: six known, four near; uniform noise as far; a fully connected and a conv net"
    claims = (
        Claim(
            "single over MSP",
            f"{SINGLE} beats {BASELINE}, mean of near and far and both nets.",
            "difference of AUROC",
        ),
        Claim(
            "single over the median",
            f"{SINGLE} beats the median of all detectors in the same mean.",
            "difference of AUROC",
        ),
        Claim(
            "pair over single",
            f"The smaller p-value of {PAIR[0]} and {PAIR[1]} beats {SINGLE} alone.",
            "difference of AUROC",
        ),
    )
    null = Claim("null", "Fresh known digits against fresh known digits.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Fit and score every detector on both nets."""
        figures: dict[str, float] = {}
        areas: dict[str, list[float]] = {}
        costs: dict[str, list[dict[str, float]]] = {}
        nulls: list[float] = []
        for architecture in ARCHITECTURES[:1] if tiny else ARCHITECTURES:
            tick(f"training {architecture}")
            d = digits(seed, architecture, tiny)
            figures[f"{architecture} accuracy"] = d.accuracy
            scored: dict[str, dict[str, Tensor]] = {}
            for name, detector in battery().items():
                tick(f"{architecture}, {name}")
                scored[name], cost = _scored(d, detector)
                costs.setdefault(name, []).append(cost)
            scored["pair"] = _paired([scored[name] for name in PAIR])
            for name, parts in scored.items():
                for part in PARTS:
                    found = area(parts["test"], parts[part])
                    figures[f"{name} | {architecture} {part}"] = found
                    areas.setdefault(name, []).append(found)
            nulls.append(area(scored[SINGLE]["test"], scored[SINGLE]["held"]))
        mean = {name: fmean(found) for name, found in areas.items()}
        figures |= {f"{name} | mean": value for name, value in mean.items()}
        for name, found in costs.items():
            figures |= {f"{name} | {what}": fmean(c[what] for c in found) for what in found[0]}
        return {
            "single over MSP": mean[SINGLE] - mean[BASELINE],
            "single over the median": mean[SINGLE] - median(mean[name] for name in costs),
            "pair over single": mean["pair"] - mean[SINGLE],
            "null": fmean(nulls),
            **figures,
        }


def _scored(d: Digits, detector: Detector) -> tuple[dict[str, Tensor], dict[str, float]]:
    objective = "kl_uniform" if isinstance(detector, NAC) else None
    began = time.perf_counter()
    fitted = fitted_on(d.model, d.fit, detector, sites=[SITE], objective=objective)
    fitted.result(type(detector))
    middle = time.perf_counter()
    parts = {"test": d.test, "near": d.near, "far": d.far, "held": d.held}
    scores = {p: next(iter(scores_of(fitted, d.model, i).values())) for p, i in parts.items()}
    ended = time.perf_counter()
    rows = sum(map(len, parts.values()))
    cost = {
        "fit ms": 1e3 * (middle - began),
        "score us per row": 1e6 * (ended - middle) / rows,
        "state bytes": float(sum(map(size_bytes, fitted.states.values()))),
    }
    return scores, cost


def _paired(scored: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return minus the smaller of the p-values, ranks among the held-out scores of each."""
    ranks = [
        {part: _share_below(parts["held"], score) for part, score in parts.items()}
        for parts in scored
    ]
    return {part: torch.stack([r[part] for r in ranks]).amax(0) for part in ranks[0]}


def _share_below(held: Tensor, score: Tensor) -> Tensor:
    return torch.searchsorted(held.sort().values, score).double() / len(held)
