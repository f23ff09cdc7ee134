"""Do the states of a trace tell whether its answer is right; against chances of tokens, length."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sonde import Model
from sonde.detect import CLUE, LinearProbe, top_majority
from sonde.metrics import auroc_within
from sonde_studies._language import LAYERS, language_model, sampled, train
from sonde_studies._separation import area, fitted_on, scores_of
from sonde_studies.study import Claim, Figures, Study, Tick

SIGNS, EQUAL, AND, OPEN, CLOSE, STOP = "+-*", "=", ",", "<", ">", "."
WORDS = [*"0123456789", *SIGNS, EQUAL, AND, OPEN, CLOSE, STOP]
STEPS, TRIED, ENOUGH, LONGEST = 1500, 150, 0.65, 64
SAMPLES, FEW = 8, 20
READING = {"span": (OPEN, CLOSE), "reducer": "step_deltas"}
AREAS = ("all", "within prompts")


@dataclass(frozen=True)
class Chains:
    """Chains of operations modulo a number, worked out from left to right one by one.

    Parameters
    ----------
    modulus : int
    most : int
        Operations of a chain; at least one.
    fit, test : int
        Prompts whose traces are the experience, and others.
    """

    modulus: int = 7
    most: int = 6
    fit: int = 300
    test: int = 150

    def text(self, draw: np.random.Generator) -> str:
        """Return a prompt with the right trace and answer."""
        n = int(draw.integers(1, self.most + 1))
        values, signs = draw.integers(self.modulus, size=n + 1), draw.choice(list(SIGNS), n)
        value, lines = int(values[0]), list[str]()
        for sign, other in zip(signs, values[1:], strict=True):
            new = {"+": value + other, "-": value - other, "*": value * other}[sign]
            lines.append(f"{value}{sign}{other}{EQUAL}{new % self.modulus}")
            value = int(new % self.modulus)
        prompt = "".join(f"{s}{v}" for s, v in zip(["", *signs], values, strict=True))
        return f"{prompt}{EQUAL}{OPEN}{AND.join(lines)}{CLOSE}{value}{STOP}"

    def prompts(self, n: int, draw: np.random.Generator) -> dict[str, str]:
        """Return different prompts with their right answers."""
        found: dict[str, str] = {}
        while len(found) < n:
            prompt, _, rest = self.text(draw).partition(OPEN)
            found[prompt + OPEN] = rest.partition(CLOSE)[2]
        return found


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
    """CLUE on traces of a small transformer that is trained until two of three answers are right.

    The arms show what else could tell right from wrong: the least chance of a token, a linear probe
    on the same deltas, the length; and how far each layer and fewer prompts go.
    """

    name = "clue"
    title = "do the states of a trace tell whether its answer is right?"
    paper = "liang2025clue"
    fidelity = (
        "official formula; all layers, as published, nothing chosen; the model is trained here by "
        "imitation, where the original takes large ones trained with reward"
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
    )
    null = Claim("null", "Right traces, a random half called wrong.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, sample, fit, score."""
        world = Chains(modulus=3, most=2, fit=30, test=25) if tiny else Chains()
        draw = np.random.default_rng(seed)
        tick("training")
        model, steps = _trained(world, draw, seed, 40 if tiny else STEPS)
        tick("sampling")
        prompts = world.prompts(world.fit + world.test, draw)
        names = list(prompts)
        fit = _traces(model, {k: prompts[k] for k in names[: world.fit]}, draw)
        test = _traces(model, {k: prompts[k] for k in names[world.fit :]}, draw)
        tick("scoring")
        found = _scored(model, fit, test, names[:FEW])
        figures: dict[str, float] = {}
        numbers = [names.index(name) for name in test.prompts]
        for name, score in found.items():
            figures[f"{name} | {AREAS[0]}"] = area(score[~test.wrong], score[test.wrong])
            within = auroc_within(score, test.wrong, numbers, resamples=0)
            figures[f"{name} | {AREAS[1]}"] = float(within.value)
        everywhere = {name: figures[f"{name} | {AREAS[0]}"] for name in found}
        chosen = _chosen(test, found["CLUE"], prompts)
        return {
            "CLUE over chance": everywhere["CLUE"] - everywhere["mean chance"],
            "depth": everywhere[f"CLUE layer {LAYERS}"] - everywhere["CLUE layer 1"],
            "best over random": chosen["best right"] - chosen["random right"],
            "top half over majority": chosen["top half right"] - chosen["majority right"],
            "CLUE over length": everywhere["CLUE"] - everywhere["length"],
            "within prompts": figures[f"CLUE | {AREAS[1]}"],
            "few prompts": everywhere[f"CLUE {FEW} prompts"] - everywhere["CLUE"],
            "null": _null(model, fit, test, draw),
            "steps of training": float(steps),
            "traces not closed": 1 - len(test.rows) / (SAMPLES * world.test),
            **chosen,
            **{f"best by {k} right": _chosen(test, found[k], prompts)["best right"]
               for k in ("mean chance", "least chance", "probe")},
            **figures,
        }  # fmt: skip


def _trained(world: Chains, draw: np.random.Generator, seed: int, steps: int) -> tuple[Model, int]:
    """Return a model that is right often enough, and how long that took."""
    model = language_model(WORDS, LONGEST, seed)
    tried = world.prompts(min(TRIED, 2 * world.modulus**2), draw)

    def enough() -> bool:
        texts, _ = sampled(model, list(tried), STOP, draw)
        right = [t.partition(CLOSE)[2] == a for t, a in zip(texts, tried.values(), strict=True)]
        return fmean(right) >= ENOUGH

    taken = train(model, lambda n: [world.text(draw) for _ in range(n)], steps, OPEN, enough)
    return model, taken


def _traces(model: Model, prompts: dict[str, str], draw: np.random.Generator) -> Traces:
    """Return several samples for each prompt."""
    names = [name for name in prompts for _ in range(SAMPLES)]
    texts, chances = sampled(model, names, STOP, draw)
    rows = [
        {
            "id": f"trace {i}",
            "text": name + text,
            "group": name,
            "label": int(text.partition(CLOSE)[2] != prompts[name]),
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
