"""Test whether attention maps have the wrong sign more often than gradient products."""

from dataclasses import replace
from statistics import fmean
from typing import final

import torch

from sonde.explain import Attribution, Baseline, FaithfulnessViolation, Objective
from sonde_studies._attribution_methods import OF_ATTENTIONS, OF_INPUTS
from sonde_studies._planted import planted
from sonde_studies.arms import note_mean, passes_of
from sonde_studies.study import Claim, Figures, Study, Tick

SLOPES = ("GradTimesInput", "IntegratedGradients", "Relevance")
METHODS = OF_ATTENTIONS | {name: OF_INPUTS[name] for name in SLOPES}
MAPS = 10
PLAIN, TIMES, PROPAGATED = "RawAttention", "AttentionTimesGradient", "AttentionRelevance"
BASELINES = {"mean": Baseline("mean"), "zero": Baseline("zero")}
OBJECTIVES = {"probability": Objective("prob"), "logit": Objective()}


@final
class FaithfulnessViolationStudy(Study):
    """The top token of a method is deleted: does the answer change as its sign predicts.

    Two ways of masking, and two numbers that may move. Rates count ties as no violation, as the
    original; ``ties`` says how many there are. The claims judge by the logit, which always moves: a
    probability near one stays as it is where a token goes, in a quarter to most of the trials.
    """

    name = "faithfulness-violation"
    title = "how often is the sign of the most important token wrong?"
    paper = "liu2022fvt"
    fidelity = (
        "official test at rank 1; two layers of attention on planted tokens stand for the "
        "original's language and vision models"
    )
    data = "texts of 16 tokens, three of which speak for or against the class"
    claims = (
        Claim(
            "attention over product",
            "RawAttention violates more often than AttentionTimesGradient, the mean as baseline.",
            "difference of rates, by the logit",
            arms=("RawAttention", "AttentionTimesGradient"),
        ),
        Claim(
            "product is least",
            "AttentionTimesGradient violates less than the mean of the methods of gradients, "
            "which take more passes.",
            "difference of rates, by the logit",
            arms=("AttentionTimesGradient", "methods of gradients"),
        ),
        Claim(
            "relevance",
            "Relevance propagated through attention violates less often than RawAttention.",
            "difference of rates, by the logit",
            arms=("AttentionRelevance", "RawAttention"),
        ),
        Claim(
            "product over relevance",
            "It violates more often than AttentionTimesGradient.",
            "difference of rates, by the logit",
            arms=("AttentionRelevance", "AttentionTimesGradient"),
        ),
        Claim(
            "masking decides",
            "With zero in place of the mean, rates change by more than .02 on average.",
            "mean size of the difference of rates, by the logit",
            above=0.02,
            arms=("zero, logit", "mean, logit"),
        ),
        Claim(
            "logit or probability",
            "Judged by the probability in place of the logit they change by more than .02.",
            "mean size of the difference of rates",
            above=0.02,
            arms=("mean, probability", "mean, logit"),
        ),
    )
    null = Claim(
        "null",
        "Random signed maps' violations, ties left out.",
        f"mean rate of {MAPS} maps",
        above=0.5,
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the net and test every method."""
        tick("training")
        world = planted("tokens", "attention", seed, 30 if tiny else 300, tiny)
        figures: dict[str, float] = {"accuracy": world.accuracy}
        rates: dict[tuple[str, str, str], float] = {}
        first: Attribution | None = None
        for name, method in METHODS.items():
            tick(name)
            with passes_of(name, world.model):
                found = method.explain(world.model, world.x)
            first = found if first is None else first
            for by, baseline in BASELINES.items():
                for of, objective in OBJECTIVES.items():
                    test = FaithfulnessViolation(baseline=baseline)
                    with passes_of(f"{by}, {of}", world.model):
                        judged = test.judge(world.model, world.x, found, objective=objective)
                    rates[name, by, of] = float(judged)
                    figures[f"{name} | {by}, {of}"] = float(judged)
                    share = float(judged.ties.sum() / judged.trials.sum())
                    figures[f"{name}, ties | {by}, {of}"] = share
        assert first is not None  # there are methods
        draw = torch.Generator().manual_seed(seed)
        shape, test = torch.as_tensor(first.value).shape, FaithfulnessViolation()
        maps = (replace(first, value=torch.randn(shape, generator=draw)) for _ in range(MAPS))
        random = [test.judge(world.model, world.x, drawn).without_ties for drawn in maps]
        note_mean("methods of gradients", SLOPES)
        main = {name: rates[name, "mean", "logit"] for name in METHODS}
        return {
            "attention over product": main[PLAIN] - main[TIMES],
            "product is least": fmean(main[name] for name in SLOPES) - main[TIMES],
            "relevance": main[PLAIN] - main[PROPAGATED],
            "product over relevance": main[PROPAGATED] - main[TIMES],
            "masking decides": fmean(abs(rates[n, "zero", "logit"] - v) for n, v in main.items()),
            "logit or probability": fmean(
                abs(rates[n, "mean", "probability"] - v) for n, v in main.items()
            ),
            "null": fmean(random),
            **figures,
        }
