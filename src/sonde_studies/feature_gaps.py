"""Do directions of contrasting prompts say which answers from a context are wrong.

The ensemble is far behind the log-probability: a transformer that was trained on these very
questions ranks its own errors well, and the ensemble adds nothing to it (arm "ensemble and
log-probability"). A probe on all units is ahead of it on the first domain, also after further
training without contradictions (column "sure"): the states know more of the error than the three
directions hold. On the second domain probe and ensemble are both near chance. What the differences
of a feature have in common says more than what they vary in most: their mean has .35 where their
principal direction has .19, and is ahead of it in every seed (arm "mean difference").
It is no better default: with seeds 100 to 102, which nothing was looked at before, it has .23 and
the principal direction .13 on the first domain (behind in one of three), and -.02 and .10 on the
second, where it is behind in all three.

Scores that are fitted on labels dealt out at random keep a ratio of .09 (arm "labels dealt"). A
third of it is that a rejection ratio is not odd in the score: minus the ensemble has -.12 where the
ensemble has .19, so a random sign averages .03. The null arm therefore deals out the answers that
are judged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sonde import Model, read
from sonde.detect import FeatureGaps, LinearProbe
from sonde.metrics import prediction_rejection
from sonde_studies._questions import (
    DOMAINS,
    FACTS_TEST,
    MODE_EXPLAIN,
    Row,
    World,
    answered,
    reading,
    taught,
)
from sonde_studies.study import Claim, Figures, Study, Tick

PROMPTS = ("use", "ignore", MODE_EXPLAIN, "tell", "honest", "lie")
FEATURES = ("context", "comprehension", "honesty")
TRAINED_CONFLICT, CONFLICT = 0.2, 0.6
LABELS, MORE = 256, 1024


@dataclass(frozen=True)
class Sizes:
    """Steps of training and of more training, and how many answers are for which use."""

    steps: int = 600
    further: int = 150
    labels: int = LABELS
    more: int = MORE
    pairs: int = 128
    test: int = 600
    shuffles: int = 8


TINY_SIZES = Sizes(60, 10, 240, 280, 20, 100, 2)


@dataclass(frozen=True)
class Answers:
    """Plain readings: rows by site, which answers are wrong, and how likely their tokens were."""

    rows: dict[str, Tensor]
    wrong: Tensor
    log_p: Tensor

    @property
    def right(self) -> float:
        """Share of right answers."""
        return float((~self.wrong).double().mean())

    def surprise(self) -> Tensor:
        """Return minus the mean token log-probability."""
        return -self.log_p

    def rejection(self, scores: Tensor) -> float:
        """Return the prediction rejection ratio of scores."""
        right = (~self.wrong).double()
        return float(prediction_rejection(scores, right, resamples=0).value)

    def site_rows(self) -> list[Tensor]:
        """Return the rows of each site."""
        return list(self.rows.values())


Contrasts = tuple[dict[str, Tensor], list[int], list[int]]
Score = Callable[[Answers], Tensor]


@final
class FeatureGapsStudy(Study):
    """Answers of a small transformer from a context that contradicts what it knows by heart."""

    name = "feature-gaps"
    title = "do three contrasts of prompts say which answers from a context are wrong?"
    paper = "bakman2025featuregaps"
    fidelity = (
        "formula of the paper's code, but one half of the labels chooses layers and the other "
        "weighs the features; the original does both on the same labels"
    )
    data = (
        "synthetic: four facts and a question about one; a transformer (3 x 64) trained here on "
        "two domains of facts, where plain contexts contradict what it has learned by heart in a "
        "fifth of the facts, and is tested where three fifths do; its likeliest answers"
    )
    claims = (
        Claim(
            "ensemble over log-probability",
            f"The ensemble with {LABELS} labels beats the mean token log-probability.",
            "difference of prediction rejection ratios",
        ),
        Claim(
            "few labels",
            f"{LABELS} labels are enough: they lose less than .05 against {MORE}.",
            "difference of prediction rejection ratios",
            above=-0.05,
        ),
        Claim(
            "transfer over a probe",
            "On a second domain of facts it beats a linear probe on all units of the same labels.",
            "difference of prediction rejection ratios",
        ),
    )
    null = Claim(
        "null",
        "The ensemble where right and wrong are dealt out at random among the judged answers.",
        "prediction rejection ratio",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, let it answer, read the answers after all prompts, fit and compare."""
        draw = np.random.default_rng(seed)
        world = World.drawn(draw)
        sizes = TINY_SIZES if tiny else Sizes()
        tick("training the transformer")
        model = taught(world, TRAINED_CONFLICT, sizes.steps, seed)
        tick("reading answers and fitting")
        asked = {d: _asked(model, world, d, sizes.test, CONFLICT, draw) for d in DOMAINS}
        asked["as trained"] = _asked(model, world, DOMAINS[0], sizes.test, TRAINED_CONFLICT, draw)
        fit = _asked(model, world, DOMAINS[0], sizes.more, CONFLICT, draw)
        contrast = _contrasts(model, world, sizes.pairs, draw)
        found = _ratios(_scores(fit, contrast, sizes), asked)
        first, second = DOMAINS
        dealt = [
            asked[first].rejection(_gaps(_dealt(fit, draw), contrast, sizes.labels)(asked[first]))
            for _ in range(sizes.shuffles)
        ]
        ensemble = _gaps(fit, contrast, sizes.labels)(asked[first])
        nulls = [_dealt(asked[first], draw).rejection(ensemble) for _ in range(sizes.shuffles)]
        tick("training it further without contradictions")
        sure, right = _sure(taught(world, 0.0, sizes.further, seed, model), world, sizes, draw)
        return {
            "ensemble over log-probability": found[f"ensemble | {first}"]
            - found[f"log-probability | {first}"],
            "few labels": found[f"ensemble | {first}"] - found[f"ensemble, more labels | {first}"],
            "transfer over a probe": found[f"ensemble | {second}"] - found[f"probe | {second}"],
            "null": float(np.mean(nulls)),
            f"labels dealt | {first}": float(np.mean(dealt)),
            f"minus the ensemble | {first}": asked[first].rejection(-ensemble),
            **{f"right answers, {k}": a.right for k, a in asked.items()},
            "right answers, sure": right,
            **found,
            **sure,
        }


def _sure(
    model: Model, world: World, sizes: Sizes, draw: np.random.Generator
) -> tuple[dict[str, float], float]:
    """Return the ratios for a model that has unlearned contradictions, and its right answers."""
    asked = _asked(model, world, DOMAINS[0], sizes.test, CONFLICT, draw)
    fit = _asked(model, world, DOMAINS[0], sizes.labels, CONFLICT, draw)
    contrast = _contrasts(model, world, sizes.pairs, draw)
    scores = {
        "ensemble": _gaps(fit, contrast, sizes.labels),
        "probe": _probe(fit, sizes.labels),
        "log-probability": Answers.surprise,
        "ensemble and log-probability": _joined(fit, contrast, sizes.labels),
    }
    return _ratios(scores, {"sure": asked}), asked.right


def _scores(fit: Answers, contrast: Contrasts, sizes: Sizes) -> dict[str, Score]:
    """Return every arm."""
    few, labels = sizes.labels // 4, sizes.labels
    alone = {
        f"only {name}": _gaps(fit, contrast, labels, only=i) for i, name in enumerate(FEATURES)
    }
    return {
        "ensemble": _gaps(fit, contrast, labels),
        "ensemble, more labels": _gaps(fit, contrast, sizes.more),
        "ensemble, a quarter of the labels": _gaps(fit, contrast, few),
        "ensemble, mean difference": _gaps(fit, contrast, labels, direction="mean"),
        **alone,
        "ensemble and log-probability": _joined(fit, contrast, labels),
        "probe": _probe(fit, labels),
        "probe, a quarter of the labels": _probe(fit, few),
        "log-probability": Answers.surprise,
    }


def _ratios(scores: dict[str, Score], asked: dict[str, Answers]) -> dict[str, float]:
    return {
        f"{name} | {part}": answers.rejection(score(answers))
        for name, score in scores.items()
        for part, answers in asked.items()
    }


def _asked(
    model: Model, world: World, domain: str, n: int, conflict: float, draw: np.random.Generator
) -> Answers:
    """Return the plain readings of a model's answers."""
    questions = [world.question(domain, FACTS_TEST, conflict, draw) for _ in range(n)]
    said, log_p = answered(model, questions)
    wrong = torch.tensor([a != q.right for a, q in zip(said, questions, strict=True)])
    items = [reading(q, "tell", a) for q, a in zip(questions, said, strict=True)]
    return Answers(_rows(model, items), wrong, log_p)


def _contrasts(model: Model, world: World, n: int, draw: np.random.Generator) -> Contrasts:
    """Return rows of answers after all six prompts, with the answer and the prompt of each."""
    questions = [world.question(DOMAINS[0], FACTS_TEST, CONFLICT, draw) for _ in range(n)]
    said, _ = answered(model, questions)
    items = [reading(q, mode, a) for q, a in zip(questions, said, strict=True) for mode in PROMPTS]
    pair = [i for i in range(n) for _ in PROMPTS]
    return _rows(model, items), pair, list(range(len(PROMPTS))) * n


def _rows(model: Model, items: list[Row]) -> dict[str, Tensor]:
    """Return the row of each item at each site, in the order of the items."""
    stream = read(
        model, [{**item, "id": str(i)} for i, item in enumerate(items)],
        span=("start", "end"), **FeatureGaps().reading(),
    )  # fmt: skip
    found: dict[str, list[Tensor]] = {}
    place: dict[str, list[int]] = {}
    for batch in stream:
        for site, rows in batch.rows.items():
            found.setdefault(site, []).append(rows)
            names = (int(batch.ids[int(i)]) for i in batch.example[site].tolist())
            place.setdefault(site, []).extend(names)
    order = {site: torch.tensor(names).argsort() for site, names in place.items()}
    return {site: torch.cat(rows)[order[site]] for site, rows in found.items()}


def _gaps(
    fit: Answers, contrast: Contrasts, labels: int, only: int | None = None, **options: Any
) -> Score:
    """Return the score that is fitted on the first labels, of all features or one."""
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


def _joined(fit: Answers, contrast: Contrasts, labels: int) -> Score:
    """Return a logistic regression on the ensemble's log odds and the log-probability."""
    ensemble = _gaps(fit, contrast, labels)

    def columns(answers: Answers) -> Tensor:
        odds = torch.logit(ensemble(answers), eps=1e-6)
        return torch.stack([odds, answers.surprise()], dim=1)

    joined = LogisticRegression(C=1 / FeatureGaps().l2, solver="newton-cholesky", tol=1e-10)
    joined.fit(columns(fit)[:labels].numpy(), fit.wrong[:labels].numpy())
    return lambda answers: torch.from_numpy(joined.decision_function(columns(answers).numpy()))


def _probe(fit: Answers, labels: int) -> Score:
    """Return a linear probe on the units of the site that half of the labels choose."""
    half, label = labels // 2, fit.wrong.long()
    second = Answers({}, fit.wrong[half:labels], fit.log_p[half:labels])

    def ratio(site: str) -> float:
        scorer = LinearProbe().fit(fit.rows[site][:half], label[:half])
        return second.rejection(scorer.score(fit.rows[site][half:labels]))

    best = max(fit.rows, key=ratio)
    scorer = LinearProbe().fit(fit.rows[best][:labels], label[:labels])
    return lambda answers: scorer.score(answers.rows[best])


def _dealt(fit: Answers, draw: np.random.Generator) -> Answers:
    """Return the same answers with their labels shuffled."""
    order = torch.from_numpy(draw.permutation(len(fit.wrong)))
    return Answers(fit.rows, fit.wrong[order], fit.log_p)
