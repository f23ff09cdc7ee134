"""Do the states of a trace tell whether its answer is right; against chances of tokens, length."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sonde import Model
from sonde.detect import CLUE, LinearProbe, top_majority
from sonde.metrics import auroc_within
from sonde_studies._language import LAYERS, language_model, reinforce, sampled, train
from sonde_studies._separation import area, fitted_on, scores_of
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.chains import CLOSE, OPEN, STOP, WORDS, Chains

STEPS, TRIED, ENOUGH, LONGEST = 1500, 150, 0.65, 64
BEGUN, REWARDED, ASKED = 0.35, 80, 32
SAMPLES, FEW = 8, 20
READING = {"span": (OPEN, CLOSE), "reducer": "step_deltas"}
AREAS = ("all", "within prompts")


@dataclass(frozen=True)
class Traces:
    """What a model wrote after prompts; those that it did not close are left out.

    Parameters
    ----------
    rows : list of dict
        What ``sonde.read`` takes: text, prompt as group, label 1 where the answer is wrong.
    chance, least : Tensor (trace,)
        Mean and least chance of the tokens.
    """

    rows: list[dict[str, Any]]
    chance: Tensor
    least: Tensor

    @property
    def wrong(self) -> Tensor:
        """Which answers are wrong."""
        return torch.tensor([row["label"] == 1 for row in self.rows])

    @property
    def right(self) -> float:
        """The share of right answers."""
        return 1 - float(self.wrong.double().mean())

    @property
    def prompts(self) -> list[str]:
        """The prompt of each trace."""
        return [row["group"] for row in self.rows]

    @property
    def answers(self) -> list[str]:
        """What stands after each trace."""
        return [row["text"].partition(CLOSE)[2] for row in self.rows]

    @property
    def length(self) -> Tensor:
        """Tokens of each text."""
        return torch.tensor([float(len(row["text"])) for row in self.rows])

    def where(self, kept: Tensor) -> "Traces":
        """Return some of them."""
        rows = [row for row, keep in zip(self.rows, kept.tolist(), strict=True) if keep]
        return Traces(rows, self.chance[kept], self.least[kept])


@final
class CLUEStudy(Study):
    """CLUE on traces of a small transformer that imitates until two of three answers are right.

    The arms show what else could tell right from wrong: the least chance of a token, a linear probe
    on the same deltas, the length; and how far each layer and fewer prompts go. A second model
    imitates until one of three is right and goes on by the reward of its own answers.
    """

    name = "clue"
    title = "do the states of a trace tell whether its answer is right?"
    paper = "liang2025clue"
    fidelity = (
        "official formula; all layers, as published, nothing chosen; toy-size: the original takes "
        "large models trained with reward, and here one is trained by imitation, and one by "
        "imitation and then by reward (REINFORCE against the mean of 8 samples of a prompt)"
    )
    data = (
        "chains of 1 to 6 operations modulo 7, worked out one by one; 8 samples of each of 300 "
        "prompts as experience and of 150 others; GPT-2 of 3 layers of 64"
    )
    claims = (
        Claim(
            "CLUE over chance",
            "Centroids of deltas tell wrong traces better than the mean chance of their tokens.",
            "difference of AUROC",
        ),
        Claim("depth", "The last layer separates better than the first.", "difference of AUROC"),
        Claim(
            "best over random",
            "Of 8 answers the one that CLUE finds best is right more often than a random one.",
            "difference of the share of right answers",
        ),
        Claim(
            "top half over majority",
            "The majority of CLUE's best 4 of 8 is right more often than the majority of all.",
            "difference of the share of right answers",
        ),
        Claim(
            "CLUE over length",
            "Centroids of deltas tell wrong traces better than their length.",
            "difference of AUROC",
        ),
        Claim(
            "within prompts",
            "They also tell right from wrong answers to the same prompt.",
            "AUROC within prompts",
            above=0.5,
        ),
        Claim(
            "few prompts",
            f"Traces of {FEW} prompts are enough: they lose less than .02.",
            "difference of AUROC",
            above=-0.02,
        ),
        Claim(
            "reward",
            "Reward makes more of a model's answers right.",
            "share of right answers after less before",
        ),
        Claim(
            "reward over imitation",
            "Centroids of deltas tell wrong traces better where the model was trained by reward.",
            "difference of AUROC",
        ),
        Claim(
            "reward: CLUE over chance",
            "There they tell wrong traces better than the mean chance of their tokens.",
            "difference of AUROC",
        ),
        Claim(
            "reward: within prompts",
            "There they tell right from wrong answers to the same prompt.",
            "AUROC within prompts",
            above=0.5,
        ),
    )
    null = Claim("null", "Right traces, a random half called wrong.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, sample, fit, score."""
        world = Chains(modulus=3, most=2, fit=30, test=25) if tiny else Chains()
        draw = np.random.default_rng(seed)
        tick("training")
        model = language_model(WORDS, LONGEST, seed)
        steps = 20 if tiny else STEPS
        begun, first = _imitating(model, world, draw, steps, BEGUN)
        model, more = _imitating(deepcopy(begun), world, draw, steps, ENOUGH)
        prompts = world.prompts(world.fit + world.test, draw)
        tick("sampling and scoring")
        arm = Arm.of(model, prompts, world.fit, draw)
        chosen = _chosen(arm.test, arm.found["CLUE"], prompts)
        null = _null(model, arm.fit, arm.test, draw)
        tick("training by reward")
        before = _traces(begun, dict([*prompts.items()][world.fit :]), draw).right
        _rewarded(begun, world, draw, 3 if tiny else REWARDED)
        rewarded = Arm.of(begun, prompts, world.fit, draw)
        return {
            "CLUE over chance": arm.over("CLUE", "mean chance"),
            "depth": arm.over(f"CLUE layer {LAYERS}", "CLUE layer 1"),
            "best over random": chosen["best right"] - chosen["random right"],
            "top half over majority": chosen["top half right"] - chosen["majority right"],
            "CLUE over length": arm.over("CLUE", "length"),
            "within prompts": arm.areas[f"CLUE | {AREAS[1]}"],
            "few prompts": arm.over(f"CLUE {FEW} prompts", "CLUE"),
            "reward": rewarded.test.right - before,
            "reward over imitation": rewarded.everywhere("CLUE") - arm.everywhere("CLUE"),
            "reward: CLUE over chance": rewarded.over("CLUE", "mean chance"),
            "reward: within prompts": rewarded.areas[f"CLUE | {AREAS[1]}"],
            "null": null,
            "right before reward": before,
            "right after reward": rewarded.test.right,
            "steps of imitation before reward": float(first),
            "steps of imitation": float(first + more),
            "traces not closed": 1 - len(arm.test.rows) / (SAMPLES * world.test),
            **chosen,
            **{f"best by {k} right": _chosen(arm.test, arm.found[k], prompts)["best right"]
               for k in ("mean chance", "least chance", "probe")},
            **arm.areas,
            **{f"reward: {name}": value for name, value in rewarded.areas.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """Traces of a model, and what each method says of those of the test; higher = wrong."""

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
        fit = _traces(model, {k: prompts[k] for k in names[:n_fit]}, draw)
        test = _traces(model, {k: prompts[k] for k in names[n_fit:]}, draw)
        found, areas = _scored(model, fit, test, names[:FEW]), dict[str, float]()
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
        """Return how far one is ahead of another."""
        return self.everywhere(name) - self.everywhere(other)


def _imitating(
    model: Model, world: Chains, draw: np.random.Generator, steps: int, share: float
) -> tuple[Model, int]:
    """Train a model until it is right often enough; return it and how many steps that took."""
    tried = world.prompts(min(TRIED, 2 * world.modulus**2), draw)

    def enough() -> bool:
        texts, _ = sampled(model, list(tried), STOP, draw)
        return fmean(map(_is_right, texts, tried.values())) >= share

    return model, train(model, lambda n: [world.text(draw) for _ in range(n)], steps, OPEN, enough)


def _is_right(text: str, answer: str) -> bool:
    return text.partition(CLOSE)[2] == answer


def _rewarded(model: Model, world: Chains, draw: np.random.Generator, steps: int) -> None:
    """Train a model on by the reward of its own answers, at prompts of one length in each step."""

    def prompts() -> dict[str, str]:
        n = int(draw.integers(world.least, world.most + 1))
        return replace(world, least=n, most=n).prompts(min(ASKED, world.modulus**2), draw)

    reinforce(model, prompts, _is_right, steps, STOP, draw)


def _traces(model: Model, prompts: dict[str, str], draw: np.random.Generator) -> Traces:
    """Return several samples for each prompt."""
    names = [name for name in prompts for _ in range(SAMPLES)]
    texts, chances = sampled(model, names, STOP, draw)
    rows = [
        {
            "id": f"trace {i}",
            "text": name + text,
            "group": name,
            "label": int(not _is_right(text, prompts[name])),
        }
        for i, (name, text) in enumerate(zip(names, texts, strict=True))
    ]
    mean, least = (torch.stack([f(c) for c in chances]) for f in (torch.mean, torch.amin))
    return Traces(rows, mean, least).where(torch.tensor([CLOSE in text for text in texts]))


def _scored(model: Model, fit: Traces, test: Traces, few: Sequence[str]) -> dict[str, Tensor]:
    """Return what each method says of the test's traces; higher = more likely wrong."""
    layers = {f"CLUE layer {i + 1}": CLUE(layers=(i,)) for i in range(LAYERS)}
    spread = {"CLUE": CLUE(), **layers, "CLUE rms": CLUE(scale="rms")}
    some = fit.where(torch.tensor([name in set(few) for name in fit.prompts]))
    return {
        **dict(zip(spread, _said(model, fit, test, *spread.values()), strict=True)),
        f"CLUE {FEW} prompts": _said(model, some, test, CLUE())[0],
        "probe": _said(model, fit, test, LinearProbe())[-1],
        "mean chance": -test.chance,
        "least chance": -test.least,
        "length": test.length,
    }


def _said(model: Model, fit: Traces, test: Traces, *detectors: CLUE | LinearProbe) -> list[Tensor]:
    """Return the scores of each detector, and of each site where it scores sites alone."""
    fitted = fitted_on(model, fit.rows, detectors, **READING)
    return list(scores_of(fitted, model, test.rows, **READING).values())


def _chosen(test: Traces, score: Tensor, right: dict[str, str]) -> dict[str, float]:
    """Return how often the answer that is chosen for a prompt is right."""
    found = {
        f"{name} right": top_majority(score, test.answers, test.prompts, k=k)
        for name, k in (("best", 1), ("top half", SAMPLES // 2), ("majority", SAMPLES))
    }
    shares = {name: fmean(said[p] == right[str(p)] for p in said) for name, said in found.items()}
    by_prompt: dict[str, list[float]] = {}
    for prompt, wrong in zip(test.prompts, test.wrong.tolist(), strict=True):
        by_prompt.setdefault(prompt, []).append(1.0 - wrong)
    return {**shares, "random right": fmean(map(fmean, by_prompt.values()))}


def _null(model: Model, fit: Traces, test: Traces, draw: np.random.Generator) -> float:
    """Return the AUROC for right traces of which a random half is called wrong."""
    fit, test = fit.where(~fit.wrong), test.where(~test.wrong)
    called = [draw.permutation(len(t.rows)) % 2 for t in (fit, test)]
    rows = [{**row, "label": int(c)} for row, c in zip(fit.rows, called[0], strict=True)]
    score = _said(model, replace(fit, rows=rows), test, CLUE())[0]
    is_called = torch.from_numpy(called[1]).bool()
    return area(score[~is_called], score[is_called])
