"""Comparison of attribution methods on nets whose relevant inputs are known."""

import time
from dataclasses import dataclass
from statistics import fmean
from typing import Any, final

import torch

from sonde.explain import (
    Attribution,
    Attributor,
    Baseline,
    Deletion,
    FaithfulnessViolation,
    Insertion,
    SanityChecks,
)
from sonde_studies._attribution_methods import OF_ATTENTIONS, OF_INPUTS
from sonde_studies._planted import ARCHITECTURES, DATA, Planted, planted
from sonde_studies.arms import note_mean, passes_of
from sonde_studies.study import Claim, Figures, Study, Tick

TOP = 0.1
"""Share of the places that count as pointed at."""


@dataclass(frozen=True)
class _Found:
    hits: float
    gain: float
    violation: float
    sanity: float
    seconds: float


@final
class AttributionsStudy(Study):
    """Methods by gradients, perturbation, relevance and attention, with default settings.

    Truth is judged by the tenth of the places with the largest sizes: which share of them lies
    where the answer does, beyond chance. Places in the right block that say nothing count as right.
    Occlusion has the advantage of doing what the faithfulness curves do.
    """

    name = "attributions"
    title = "which attribution finds what decides, on two architectures and two kinds of data?"
    fidelity = "defaults, but 20 steps of integrated gradients and 10 copies of SmoothGrad"
    data = "BlockDigits (a digit beside a constant pattern); texts with three planted tokens of 16"
    claims = (
        Claim(
            "path over point",
            "IntegratedGradients, in 30 times the passes, points at the truth more often than "
            "Saliency.",
            "difference of hit rates, mean of four nets",
            arms=("IntegratedGradients", "Saliency"),
        ),
        Claim(
            "gradient times attention over attention",
            "AttentionTimesGradient points at the truth more often than RawAttention.",
            "difference of hit rates, mean of two nets",
            arms=("AttentionTimesGradient", "RawAttention"),
        ),
        Claim(
            "faithful is right",
            "The method with the largest faithfulness, whatever passes it takes, hits the truth "
            "more than the median one.",
            "difference of hit rates, mean of four nets",
            arms=("most faithful method", "median method"),
        ),
        Claim(
            "signs of attention times gradient",
            "AttentionTimesGradient gives fewer wrong signs than RawAttention.",
            "difference of violation rates, mean of two nets",
            arms=("AttentionTimesGradient", "RawAttention"),
        ),
    )
    null = Claim("null", "A random map's hits beyond chance, mean of four nets.", "hit rate")

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train four nets and evaluate every method on them."""
        figures: dict[str, float] = {}
        found: dict[tuple[str, str], dict[str, _Found]] = {}
        nulls: list[float] = []
        for data in DATA:
            for architecture in ARCHITECTURES[-1:] if tiny else ARCHITECTURES:
                tick(f"training {architecture} on {data}")
                world = planted(data, architecture, seed, 6 if tiny else 48, tiny)
                column = f"{architecture} {data}"
                figures[f"{column} accuracy"] = world.accuracy
                extra = OF_ATTENTIONS if architecture == "attention" else {}
                one: dict[str, _Found] = {}
                for name, method in (OF_INPUTS | extra).items():
                    tick(f"{column}, {name}")
                    one[name] = _judged(name, world, method, tiny)
                    for what in ("hits", "gain", "violation", "sanity", "seconds"):
                        figures[f"{name} | {column} {what}"] = getattr(one[name], what)
                found[architecture, data] = one
                draw = torch.Generator().manual_seed(seed)
                drawn = torch.rand(world.truth.shape, generator=draw)
                nulls.append(_hits(drawn, world))
        return {**_claims(found), "null": fmean(nulls), **figures}


def _claims(found: dict[tuple[str, str], dict[str, _Found]]) -> dict[str, float]:
    nets = list(found.values())
    attentions = [one for (kind, _), one in found.items() if kind == "attention"]
    best, chosen, median = list[float](), list[str](), list[str]()
    for one in nets:
        ranked = sorted(one, key=lambda name: one[name].hits)
        median.append(ranked[len(ranked) // 2])
        chosen.append(max(one, key=lambda name: one[name].gain))
        best.append(one[chosen[-1]].hits - one[median[-1]].hits)
    note_mean("most faithful method", chosen)
    note_mean("median method", median)

    def over(own: str, other: str, what: str, of: list[dict[str, _Found]]) -> float:
        return fmean(getattr(one[own], what) - getattr(one[other], what) for one in of)

    return {
        "path over point": over("IntegratedGradients", "Saliency", "hits", nets),
        "gradient times attention over attention": over(
            "AttentionTimesGradient", "RawAttention", "hits", attentions
        ),
        "faithful is right": fmean(best),
        "signs of attention times gradient": over(
            "RawAttention", "AttentionTimesGradient", "violation", attentions
        ),
    }


def _judged(name: str, world: Planted, method: Attributor, tiny: bool) -> _Found:
    began = time.process_time()
    with passes_of(name, world.model):
        found = method.explain(world.model, world.x)
    seconds = time.process_time() - began
    curve: dict[str, Any] = {"baseline": Baseline(), "n_random": 2, "steps": 4 if tiny else 10}
    areas = []
    for kind in (Insertion, Deletion):
        judged = kind(**curve).judge(world.model, world.x, found)
        areas.append(float(judged) - float(torch.as_tensor(judged.null)))
    signs = FaithfulnessViolation(k=3).judge(world.model, world.x, found)
    redrawn = SanityChecks(stages=1).judge(world.model, world.x, method)
    size = _hits(_map(found), world)
    return _Found(size, areas[0] - areas[1], float(signs), float(redrawn), seconds)


def _map(found: Attribution) -> torch.Tensor:
    return found.by_place.detach().abs()


def _hits(sizes: torch.Tensor, world: Planted) -> float:
    """Return the fraction of the largest attributions at relevant positions, above chance."""
    flat, truth = sizes.flatten(1), world.truth.flatten(1)
    top = flat.topk(max(1, round(TOP * flat.shape[1])), dim=1).indices
    return float((truth.gather(1, top).double().mean(1) - truth.double().mean(1)).mean())
