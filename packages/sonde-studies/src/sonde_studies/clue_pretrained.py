"""Answers of a pretrained language model to real questions, and what their states tell of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde import Model
from sonde.detect import CLUE, LinearProbe
from sonde.metrics import auroc
from sonde_studies._help_pages import language_model
from sonde_studies._world_facts import RELATIONS, country_lot, first_token
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

QUESTIONS, ANSWERS, LOTS, AT_ONCE = 60, 2, 10, 20
AREA = "difference of AUROC"


@final
class CLUEPretrainedStudy(Study):
    """Two answers are drawn to each of 120 questions on countries, half of them to learn from."""

    name = "clue-pretrained"
    title = "do the states of a pretrained model's answers tell which of them are wrong?"
    paper = "liang2025clue"
    fidelity = (
        "official formula, all layers, nothing chosen; an answer of one token in place of a trace "
        "of reasoning, which this model does not write"
    )
    data = "SmolLM2-135M-Instruct; capitals, languages and continents, other countries in a seed"
    place = "smollm2"
    claims = (
        Claim("over lot", "Centroids of states' changes tell wrong answers from right ones.",
              "AUROC", above=0.5),
        Claim("over probability", "They tell them better than the answer's probability, which "
              "needs no labelled rows.", AREA, arms=("CLUE", "probability")),
        Claim("over probe", "They tell them better than a linear probe of the same rows at the "
              "last block.", AREA, arms=("CLUE", "probe")),
        Claim("best", "Of two answers the one nearer to right ones is right more often than the "
              "likelier one, whose choice needs no labelled rows.", "difference of accuracy",
              arms=("CLUE", "probability")),
    )  # fmt: skip
    null = Claim("by lot", "Right and wrong by lot, one for each country: centroids of these "
                 "labels against such labels of other answers.", "AUROC", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Ask, draw answers, read the states after them, and score them."""
        model, source = language_model(self.place, tiny), Random(seed)
        n = 12 if tiny else QUESTIONS
        countries = sorted({name for relation in RELATIONS for name in relation.answers})
        countries = source.sample(countries, len(countries))
        tick("answers")
        fit, judged = (
            drawn_answers(model, half, n, source) for half in (countries[::2], countries[1::2])
        )
        if tiny:  # the model of bytes knows no answer
            fit.wrong[::2] = judged.wrong[::2] = False
        scores: dict[str, Tensor] = {}
        for name, score in SCORES.items():
            tick(name)
            note(rows=0 if name == "probability" else len(fit.wrong))
            scores[name] = score(fit, judged)
        area = {name: _area(one, judged.wrong) for name, one in scores.items()}
        right = {name: judged.best_right(one) for name, one in scores.items()}
        return {
            "over lot": area["CLUE"],
            "over probability": area["CLUE"] - area["probability"],
            "over probe": area["CLUE"] - area["probe"],
            "best": right["CLUE"] - right["probability"],
            "by lot": by_lot(fit, judged, source, 2 if tiny else LOTS),
            "right answers": 1 - float(judged.wrong.double().mean()),
            **{f"{name} | AUROC": x for name, x in area.items()},
            **{f"{name} | best right": x for name, x in right.items()},
        }


@dataclass(frozen=True)
class DrawnAnswers:
    """Answers with the changes of states that they bring, ``ANSWERS`` for each question in turn.

    Parameters
    ----------
    changes : dict of str to Tensor
        By block, the state after the answer less the state before it.
    wrong : Bool[Tensor, "answer"]
    log_p : Float[Tensor, "answer"]
    countries : list of str
    """

    changes: dict[str, Tensor]
    wrong: Bool[Tensor, "answer"]
    log_p: Float[Tensor, "answer"]
    countries: list[str]

    def best_right(self, scores: Float[Tensor, "answer"]) -> float:
        """Return how often the answer of the lowest score to a question is right."""
        best = scores.reshape(-1, ANSWERS).argmin(1, keepdim=True)
        return 1 - float(self.wrong.reshape(-1, ANSWERS).gather(1, best).double().mean())


def drawn_answers(model: Model, countries: Sequence[str], n: int, source: Random) -> DrawnAnswers:
    """Return different random answers to each question, likelier ones more often.

    Parameters
    ----------
    model : Model
    countries : sequence of str
        Whom the questions are about.
    n : int
        Number of questions.
    source : Random
    """
    every = [
        (wording.format(name), name, relation.answers[name])
        for relation in RELATIONS
        for name in countries
        if name in relation.answers
        for wording in (relation.prompt, *relation.wordings)
    ]
    asked = source.sample(every, n)
    tokenizer: Any = model.processor
    prompts = [list(tokenizer(text)["input_ids"]) for text, _, _ in asked]
    log_p = torch.cat([_read(model, part)[1] for part in _parts(prompts)])
    draw = torch.Generator().manual_seed(source.randrange(2**31))
    noise = -torch.empty_like(log_p).exponential_(generator=draw).log()
    chosen = (log_p + noise).topk(ANSWERS, dim=1).indices
    rows = [
        [*ids, token] for ids, own in zip(prompts, chosen.tolist(), strict=True) for token in own
    ]
    states = torch.cat([_read(model, part)[0] for part in _parts(rows)])
    right = torch.tensor([first_token(model, answer) for _, _, answer in asked])
    return DrawnAnswers(
        {f"block {i + 1}": states[:, i] for i in range(states.shape[1])},
        (chosen != right[:, None]).flatten(),
        log_p.gather(1, chosen).flatten(),
        [name for _, name, _ in asked for _ in range(ANSWERS)],
    )


def by_lot(fit: DrawnAnswers, judged: DrawnAnswers, source: Random, n: int) -> float:
    """Return the mean AUROC of centroids of labels by lot, against labels by the same lot.

    A country has one label. If countries that judge were among those that were fitted, the
    centroids could know them.

    Parameters
    ----------
    fit, judged : DrawnAnswers
    source : Random
    n : int
        Number of lots.
    """
    areas: list[float] = []
    for _ in range(n):
        lot = country_lot(fit.countries, judged.countries, source)
        own, other = (
            DrawnAnswers(
                x.changes, torch.tensor([lot[c] for c in x.countries]), x.log_p, x.countries
            )
            for x in (fit, judged)
        )
        areas.append(_area(_by_centroids(own, other), other.wrong))
    return fmean(areas)


def _by_centroids(fit: DrawnAnswers, judged: DrawnAnswers) -> Tensor:
    scorer = CLUE().fit(fit.changes, fit.wrong.long())
    return scorer.score([*judged.changes.values()])


def _by_probe(fit: DrawnAnswers, judged: DrawnAnswers) -> Tensor:
    last = [*fit.changes][-1]
    scorer = LinearProbe().fit(fit.changes[last], fit.wrong.long())
    return scorer.score(judged.changes[last])


def _by_probability(fit: DrawnAnswers, judged: DrawnAnswers) -> Tensor:
    return -judged.log_p


SCORES: dict[str, Callable[[DrawnAnswers, DrawnAnswers], Tensor]] = {
    "CLUE": _by_centroids, "probe": _by_probe, "probability": _by_probability,
}  # fmt: skip


def _area(scores: Tensor, wrong: Tensor) -> float:
    return float(auroc(scores, wrong, resamples=0).value)


def _parts(rows: list[list[int]]) -> list[list[list[int]]]:
    return [rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)]


@torch.no_grad()
def _read(model: Model, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return what the last token changes in each block's state, and what comes next."""
    size = [len(ids) for ids in rows]
    ids = torch.tensor([[*one, *[0] * (max(size) - len(one))] for one in rows])
    mask = torch.arange(max(size)) < torch.tensor(size)[:, None]
    out = model.module(
        input_ids=ids, attention_mask=mask.long(), use_cache=False, output_hidden_states=True
    )
    row, last = torch.arange(len(rows)), torch.tensor(size) - 1
    changes = [(x[row, last] - x[row, last - 1]).float() for x in out.hidden_states[1:]]
    return torch.stack(changes, 1), out.logits[row, last].float().log_softmax(1)
