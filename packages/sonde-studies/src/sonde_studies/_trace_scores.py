"""Scores of reasoning traces: centroids, a probe, token probabilities and lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from sonde import Model
from sonde.detect import CLUE, LinearProbe, top_majority
from sonde.metrics import auroc_within
from sonde_studies._language import LAYERS
from sonde_studies._separation import area, fitted_on, scores_of
from sonde_studies._traces import (
    FEW,
    READING,
    SAMPLES,
    Traces,
    traces_of,
)

AREAS = ("all", "within prompts")


@dataclass(frozen=True)
class Arm:
    """Traces of a model, and each method's scores on the test traces; higher = wrong."""

    fit: Traces
    test: Traces
    found: dict[str, Tensor]
    areas: dict[str, float]

    @classmethod
    def of(
        cls, model: Model, prompts: dict[str, str], n_fit: int, draw: np.random.Generator
    ) -> "Arm":
        """Sample, fit and score."""
        names = list(prompts)
        fit = traces_of(model, {k: prompts[k] for k in names[:n_fit]}, draw)
        test = traces_of(model, {k: prompts[k] for k in names[n_fit:]}, draw)
        found, areas = scored(model, fit, test, names[:FEW]), dict[str, float]()
        numbers = [names.index(name) for name in test.prompts]
        for name, score in found.items():
            areas[f"{name} | {AREAS[0]}"] = area(score[~test.wrong], score[test.wrong])
            within = auroc_within(score, test.wrong, numbers, resamples=0)
            areas[f"{name} | {AREAS[1]}"] = float(within.value)
        return cls(fit, test, found, areas)

    def everywhere(self, name: str) -> float:
        """Return the AUROC of a method over all traces."""
        return self.areas[f"{name} | {AREAS[0]}"]

    def over(self, name: str, other: str) -> float:
        """Return the difference of two methods."""
        return self.everywhere(name) - self.everywhere(other)


def scored(model: Model, fit: Traces, test: Traces, few: Sequence[str]) -> dict[str, Tensor]:
    """Return each method's score of the test traces; higher = more likely wrong."""
    layers = {f"CLUE layer {i + 1}": CLUE(layers=(i,)) for i in range(LAYERS)}
    spread = {"CLUE": CLUE(), **layers, "CLUE rms": CLUE(scale="rms")}
    some = fit.where(torch.tensor([name in set(few) for name in fit.prompts]))
    return {
        **dict(zip(spread, said(model, fit, test, *spread.values()), strict=True)),
        f"CLUE {FEW} prompts": said(model, some, test, CLUE())[0],
        "probe": said(model, fit, test, LinearProbe())[-1],
        "mean chance": -test.chance,
        "least chance": -test.least,
        "length": test.length,
    }


def said(model: Model, fit: Traces, test: Traces, *detectors: CLUE | LinearProbe) -> list[Tensor]:
    """Return the scores of each detector, and of each site if it scores sites alone."""
    fitted = fitted_on(model, fit.rows, detectors, **READING)
    return list(scores_of(fitted, model, test.rows, **READING).values())


def chosen_by(test: Traces, score: Tensor, right: dict[str, str]) -> dict[str, float]:
    """Return the accuracy of the answer chosen for each prompt."""
    found = {
        f"{name} right": top_majority(score, test.answers, test.prompts, k=k)
        for name, k in (("best", 1), ("top half", SAMPLES // 2), ("majority", SAMPLES))
    }
    shares = {name: fmean(said[p] == right[str(p)] for p in said) for name, said in found.items()}
    by_prompt: dict[str, list[float]] = {}
    for prompt, wrong in zip(test.prompts, test.wrong.tolist(), strict=True):
        by_prompt.setdefault(prompt, []).append(1.0 - wrong)
    return {**shares, "random right": fmean(map(fmean, by_prompt.values()))}


def null_area(model: Model, fit: Traces, test: Traces, draw: np.random.Generator) -> float:
    """Return the AUROC on correct traces with a random half labelled as wrong."""
    fit, test = fit.where(~fit.wrong), test.where(~test.wrong)
    called = [draw.permutation(len(t.rows)) % 2 for t in (fit, test)]
    rows = [{**row, "label": int(c)} for row, c in zip(fit.rows, called[0], strict=True)]
    score = said(model, replace(fit, rows=rows), test, CLUE())[0]
    is_called = torch.from_numpy(called[1]).bool()
    return area(score[~is_called], score[is_called])
