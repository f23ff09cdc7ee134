"""All detectors by near and far shifts on two architectures: the best single choice."""

import time
from itertools import combinations
from statistics import fmean, median
from typing import final

import torch
from torch import Tensor

from sonde.core import size_bytes
from sonde_studies._battery import Contestant, of_patches, of_rows
from sonde_studies._digits import Architecture, Digits, digits
from sonde_studies._separation import area, fitted_on, scores_of
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

ARCHITECTURES: tuple[Architecture, ...] = ("mlp", "cnn")
PARTS = ("near", "far")
BASELINE, SINGLE = "MSP", "RelativeMahalanobis"
KINDS = ("KNN", "RelativeMahalanobis", "ViM", "NAC", "MSP")
"""One of each kind of knowledge: neighbours, classes, what is left over, influence, logits."""
PAIRS = tuple(combinations(KINDS, 2))
COMBINED = (*PAIRS, KINDS)
PAIR = PAIRS[0]
Parts = dict[str, Tensor]


@final
class OverviewStudy(Study):
    """Every detector that can score an image, with defaults, on the same nets and shifts.

    Those of patches are tried on the conv net alone. Times are the processor's over the whole call,
    the forward included. Which are combined was chosen by what they know, before any was scored.
    """

    name = "overview"
    title = "which detector tells unknown inputs best, near and far, on two architectures?"
    fidelity = (
        "defaults throughout, but k = 10 of KNN and the small net of FOD; nothing was chosen on "
        "unusual inputs"
    )
    data = "digits: six known, four near; uniform noise as far; a fully connected and a conv net"
    claims = (
        Claim(
            "single over MSP",
            f"{SINGLE} beats {BASELINE}, which reads no rows, mean of near and far and both nets.",
            "difference of AUROC",
            arms=(SINGLE, BASELINE),
        ),
        Claim(
            "single over the median",
            f"{SINGLE} beats the median of all that judge rows in the same mean.",
            "difference of AUROC",
            arms=(SINGLE, "median"),
        ),
        Claim(
            "pair over single",
            f"The smaller p-value of {PAIR[0]} and {PAIR[1]} beats {SINGLE} alone.",
            "difference of AUROC; p-values are of ranks among rows held out",
            arms=(f"least p of {' + '.join(PAIR)}", SINGLE),
        ),
    )
    null = Claim("null", "Fresh known digits against fresh known digits.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Fit and score every detector on both nets."""
        figures: dict[str, float] = {}
        costs: dict[str, list[dict[str, float]]] = {}
        nulls: list[float] = []
        for architecture in ARCHITECTURES[-1:] if tiny else ARCHITECTURES:
            tick(f"training {architecture}")
            d = digits(seed, architecture, tiny)
            figures[f"{architecture} accuracy"] = d.accuracy
            scored: dict[str, Parts] = {}
            for one in of_rows() + (of_patches(tiny) if architecture == "cnn" else []):
                tick(f"{architecture}, {one.name}")
                scored[one.name], cost = _scored(d, one)
                costs.setdefault(one.name, []).append(cost)
            scored |= {_called(names): _least_p([scored[n] for n in names]) for names in COMBINED}
            for name, parts in scored.items():
                for part in PARTS:
                    figures[f"{name} | {architecture} {part}"] = area(parts["test"], parts[part])
            nulls.append(area(scored[SINGLE]["test"], scored[SINGLE]["held"]))
            read = {
                SINGLE: len(d.fit),
                "median": len(d.fit),
                BASELINE: 0,
                _called(PAIR): len(d.fit),
            }
            for name, rows in read.items():
                note_for(name, rows=rows + len(d.held) * (name == _called(PAIR)))
        mean = _means([*(one.name for one in of_rows()), *map(_called, COMBINED)], figures)
        figures |= {f"{name} | mean": value for name, value in mean.items()}
        for name, found in costs.items():
            figures |= {f"{name} | {what}": fmean(c[what] for c in found) for what in found[0]}
        return {
            "single over MSP": mean[SINGLE] - mean[BASELINE],
            "single over the median": mean[SINGLE] - median(mean[n.name] for n in of_rows()),
            "pair over single": mean[_called(PAIR)] - mean[SINGLE],
            "null": fmean(nulls),
            **figures,
        }


def _means(names: list[str], figures: Figures) -> dict[str, float]:
    """Return the mean over shifts and nets of each detector that was evaluated on all."""
    return {
        name: fmean(value for key, value in figures.items() if key.startswith(f"{name} | "))
        for name in names
    }


def _scored(d: Digits, one: Contestant) -> tuple[Parts, dict[str, float]]:
    began = time.process_time()
    fitted = fitted_on(d.model, d.fit, one.detector, **one.reading)
    fitted.result(type(one.detector))
    middle = time.process_time()
    parts = {"test": d.test, "near": d.near, "far": d.far, "held": d.held}
    scores = {p: next(iter(scores_of(fitted, d.model, i).values())) for p, i in parts.items()}
    ended = time.process_time()
    rows = sum(map(len, parts.values()))
    cost = {
        "fit ms": 1e3 * (middle - began),
        "score us per row": 1e6 * (ended - middle) / rows,
        "state bytes": float(sum(map(size_bytes, fitted.states.values()))),
    }
    return scores, cost


def _called(names: tuple[str, ...]) -> str:
    return f"least p of {' + '.join(names)}"


def _least_p(scored: list[Parts]) -> Parts:
    """Return minus the smallest p-value over detectors, from ranks among held-out scores."""
    ranks = [
        {part: _share_below(parts["held"], score) for part, score in parts.items()}
        for parts in scored
    ]
    return {part: torch.stack([r[part] for r in ranks]).amax(0) for part in ranks[0]}


def _share_below(held: Tensor, score: Tensor) -> Tensor:
    return torch.searchsorted(held.sort().values, score).double() / len(held)
