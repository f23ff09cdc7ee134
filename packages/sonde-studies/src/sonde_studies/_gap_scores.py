"""Scores of answers by feature gaps, by a probe, and by token probabilities."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sonde.detect import FeatureGaps, LinearProbe
from sonde_studies._plain_readings import (
    Answers,
    Contrasts,
)

FEATURES = ("context", "comprehension", "honesty")


LABELS, MORE = 256, 1024


@dataclass(frozen=True)
class Sizes:
    """Training steps, and the number of answers for each use."""

    steps: int = 600
    further: int = 150
    labels: int = LABELS
    more: int = MORE
    pairs: int = 128
    test: int = 600
    shuffles: int = 8


Score = Callable[[Answers], Tensor]


def scores_of(fit: Answers, contrast: Contrasts, sizes: Sizes) -> dict[str, Score]:
    """Return the scores of every arm."""
    few, labels = sizes.labels // 4, sizes.labels
    alone = {
        f"only {name}": gaps_of(fit, contrast, labels, only=i) for i, name in enumerate(FEATURES)
    }
    return {
        "ensemble": gaps_of(fit, contrast, labels),
        "ensemble, more labels": gaps_of(fit, contrast, sizes.more),
        "ensemble, a quarter of the labels": gaps_of(fit, contrast, few),
        "ensemble, mean difference": gaps_of(fit, contrast, labels, direction="mean"),
        **alone,
        "ensemble and log-probability": joined_with_surprise(fit, contrast, labels),
        "probe": probe_of(fit, labels),
        "probe, a quarter of the labels": probe_of(fit, few),
        "log-probability": Answers.surprise,
    }


def ratios_of(scores: dict[str, Score], asked: dict[str, Answers]) -> dict[str, float]:
    return {
        f"{name} | {part}": answers.rejection(score(answers))
        for name, score in scores.items()
        for part, answers in asked.items()
    }


def gaps_of(
    fit: Answers, contrast: Contrasts, labels: int, only: int | None = None, **options: Any
) -> Score:
    """Return the score fitted on the first labels, from all features or one."""
    rows, pair, side = contrast
    n = len(side)
    label = [-1] * n + fit.wrong[:labels].long().tolist()
    sides = torch.tensor([*side, *[-1] * labels])
    keep = torch.ones(len(sides), dtype=torch.bool)
    if only is not None:
        keep = (sides < 0) | (sides // 2 == only)
        sides = torch.where(sides < 0, sides, sides % 2)
    x = {site: torch.cat([r, fit.rows[site][:labels]])[keep] for site, r in rows.items()}
    pairs = torch.tensor([*pair, *range(n, n + labels)])[keep]
    method = FeatureGaps(features=len(FEATURES) if only is None else 1, m=MORE, **options)
    scorer = method.fit(x, torch.tensor(label)[keep], pair=pairs.tolist(), side=sides[keep])
    return lambda answers: scorer.score(answers.site_rows())


def joined_with_surprise(fit: Answers, contrast: Contrasts, labels: int) -> Score:
    """Return a logistic regression on the ensemble's log odds and the log-probability."""
    ensemble = gaps_of(fit, contrast, labels)

    def columns(answers: Answers) -> Tensor:
        odds = torch.logit(ensemble(answers), eps=1e-6)
        return torch.stack([odds, answers.surprise()], dim=1)

    joined = LogisticRegression(C=1 / FeatureGaps().l2, solver="newton-cholesky", tol=1e-10)
    joined.fit(columns(fit)[:labels].numpy(), fit.wrong[:labels].numpy())
    return lambda answers: torch.from_numpy(joined.decision_function(columns(answers).numpy()))


def probe_of(fit: Answers, labels: int) -> Score:
    """Return a linear probe on the units of the site that half of the labels choose."""
    half, label = labels // 2, fit.wrong.long()
    second = Answers({}, fit.wrong[half:labels], fit.log_p[half:labels])

    def ratio(site: str) -> float:
        scorer = LinearProbe().fit(fit.rows[site][:half], label[:half])
        return second.rejection(scorer.score(fit.rows[site][half:labels]))

    best = max(fit.rows, key=ratio)
    scorer = LinearProbe().fit(fit.rows[best][:labels], label[:labels])
    return lambda answers: scorer.score(answers.rows[best])
