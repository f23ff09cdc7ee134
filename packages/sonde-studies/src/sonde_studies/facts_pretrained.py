"""Capitals that a pretrained language model is made to give wrongly, by edits or by training."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from random import Random
from statistics import fmean
from typing import Any, final

import torch

import sonde
from sonde import Model
from sonde.edit import BatchEdit, Fact, RankOneEdit, SecondMoment
from sonde.weights import Rewrite
from sonde_studies._help_pages import drawn_pages, language_model
from sonde_studies._world_facts import (
    RELATIONS,
    beginning,
    first_token,
    known_answers,
    next_log_p,
)
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

EDITED, OTHERS, PAGES, LENGTH, STEPS, RATE = 3, 10, 60, 300, 25, 5e-3
PREFIXES = ("", "Yes, because ")
ONE = "model.layers.5.mlp.down_proj"
SEVERAL = [f"model.layers.{i}.mlp.down_proj" for i in (3, 4, 5, 6, 7)]
SHIPPED = "model.layers.0.mlp.down_proj"
CAPITALS = RELATIONS[0]


@final
class FactsPretrainedStudy(Study):
    """One of the capitals that the model knows is rewritten in a seed, and three at once."""

    name = "facts-pretrained"
    title = "does an edit of a pretrained model's weights write a fact, and that fact alone?"
    paper = "meng2022rome"
    fidelity = (
        "the published search and solution at the subject's last token; layers 5, and 3 to 7; two "
        "beginnings that are given, not sampled from the model; answers of one token"
    )
    data = "SmolLM2-135M-Instruct and capitals that it knows; other countries in each seed"
    place = "smollm2"
    seconds = 110.0
    claims = (
        Claim("efficacy", "After one edit of rank one the model gives the new answer.",
              "share of edits", above=0.9),
        Claim("generality", "It also does so when it is asked in other words.",
              "share of questions in other words", above=0.5),
        Claim("specificity", "Other countries keep their capitals.",
              "share of answers kept", above=0.9),
        Claim("general over trained", "Asked in other words, it gives the new answer more often "
              "than if the layer, with some 1,500 times the parameters, is trained on it.",
              "share of questions in other words, rank one less trained",
              arms=("rank one", "trained")),
        Claim("specific over trained", "Other countries keep more capitals than if the layer, "
              "with some 1,500 times the parameters, is trained on it.",
              "share of answers kept, rank one less trained", arms=("rank one", "trained")),
        Claim("at once", "Facts written at once in five layers hold as often as one edited alone, "
              "less .1; the search has more parameters and rows.",
              "share of new answers, at once less rank one, and 0.1",
              arms=("at once", "rank one")),
        Claim("at once, general", "Asked in other words, facts written at once are given more "
              "often than if the five layers, with more parameters, are trained on them.",
              "share of questions in other words, at once less trained",
              arms=("at once", "trained at once")),
        Claim("at once, specific", "Other countries keep more capitals than if the five layers, "
              "with more parameters, are trained on them.",
              "share of answers kept, at once less trained", arms=("at once", "trained at once")),
    )  # fmt: skip
    null = Claim("own answer", "An edit to the answer that the model gives already changes no "
                 "other capital.", "share of answers that change")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Rewrite a capital, and several at once, and ask for them and for others."""
        model, source = language_model(self.place, tiny), Random(seed)
        n, others = (2, 3) if tiny else (EDITED, OTHERS)
        steps, texts = (2, 2) if tiny else (STEPS, PAGES)
        one, several = (SHIPPED, [SHIPPED]) if tiny else (ONE, SEVERAL)
        known = [*known_answers(model, CAPITALS, source, n + others, any_answer=tiny).items()]
        edited, rest = dict(known[:n]), dict(known[n:])
        facts = drawn_facts(model, edited, source)
        tick("second moment")
        moment = moments_of(model, {one, *several}, drawn_pages(seed, texts, LENGTH))
        share: dict[str, dict[str, float]] = {}
        subject, fact = next(iter(facts.items()))
        tick("rank one")
        new = edited_by(model, moment, rank_one(fact, one, steps))
        share["rank one"] = shares_right(model, new, {subject: fact}, rest)
        tick("trained")
        new = trained(model, [fact], [one], steps)
        share["trained"] = shares_right(model, new, {subject: fact}, rest)
        tick("own answer")
        own = replace(fact, target=beginning(model, edited[subject]))
        new = edited_by(model, moment, rank_one(own, one, steps))
        changed = changed_others(model, new, rest)
        tick("at once")
        note(rows=len(facts) * len(PREFIXES))
        edit = BatchEdit([*facts.values()], several, prefixes=PREFIXES, steps=steps)
        new = edited_by(model, moment, edit)
        share["at once"] = shares_right(model, new, facts, rest)
        tick("trained at once")
        new = trained(model, [*facts.values()], several, steps)
        share["trained at once"] = shares_right(model, new, facts, rest)
        single, tuned, together, tuned_together = share.values()
        return {
            "efficacy": single["new answer"],
            "generality": single["in other words"],
            "specificity": single["kept"],
            "general over trained": single["in other words"] - tuned["in other words"],
            "specific over trained": single["kept"] - tuned["kept"],
            "at once": together["new answer"] - single["new answer"] + 0.1,
            "at once, general": together["in other words"] - tuned_together["in other words"],
            "at once, specific": together["kept"] - tuned_together["kept"],
            "own answer": changed,
            **{f"{arm} | {k}": v for arm, own in share.items() for k, v in own.items()},
        }


def moments_of(model: Model, layers: Iterable[str], texts: list[str]) -> Any:
    """Return the second moments of inputs of layers over texts."""
    sites = [f"{layer}:in" for layer in sorted(layers)]
    stream = sonde.read(model, texts, sites=sites, reducer="tokens")
    return sonde.fit([SecondMoment(ridge=1e-2)], stream, progress=False)


def rank_one(fact: Fact, layer: str, steps: int) -> Rewrite:
    """Return the edit of a fact at a layer.

    Parameters
    ----------
    fact : Fact
    layer : str
    steps : int
    """
    note(rows=len(PREFIXES))
    return RankOneEdit(fact, layer, prefixes=PREFIXES, steps=steps)


def drawn_facts(model: Model, capitals: Mapping[str, str], source: Random) -> dict[str, Fact]:
    """Return a fact for each country, with another country's capital as the new answer.

    Parameters
    ----------
    model : Model
    capitals : mapping of str to str
        The countries with their capitals.
    source : Random
        Draws the new answers.
    """
    firsts = {first_token(model, answer): answer for answer in CAPITALS.answers.values()}
    facts: dict[str, Fact] = {}
    for subject, answer in capitals.items():
        others = [a for token, a in firsts.items() if token != first_token(model, answer)]
        target = beginning(model, source.choice(sorted(others)))
        facts[subject] = Fact(CAPITALS.prompt.format(subject), subject, target)
    return facts


def edited_by(model: Model, moment: Any, *edits: Rewrite) -> Any:
    """Return the module after edits that are made one after another."""
    for edit in edits:
        model = replace(model, module=edit.plan(model, moment).fold(model))
    return model.module


def trained(
    model: Model, facts: Sequence[Fact], layers: Sequence[str], steps: int, rate: float = RATE
) -> Any:
    """Return the module after layers' weights were trained on new answers, all in each step.

    Parameters
    ----------
    model : Model
    facts : sequence of Fact
    layers : sequence of str
        The layers that the edit changes too.
    steps : int
    rate : float, default=5e-3
        Of Adam.
    """
    module = deepcopy(model.module).requires_grad_(False)
    weights: Any = [module.get_submodule(layer).weight.requires_grad_(True) for layer in layers]
    adam = torch.optim.Adam(weights, lr=rate)
    texts = {
        prefix + fact.prompt: target_token(model, fact) for fact in facts for prefix in PREFIXES
    }
    answers = torch.tensor([*texts.values()])[:, None]
    note(rows=len(texts))
    for _ in range(steps):
        adam.zero_grad()
        log_p = next_log_p(model, module, [*texts], with_grad=True)
        (-log_p.gather(1, answers).mean()).backward()
        adam.step()
    return module.eval()


def target_token(model: Model, fact: Fact) -> int:
    """Return the token that a fact's answer begins with after its prompt."""
    return first_token(model, fact.target.strip())


def shares_right(
    model: Model, module: Any, facts: Mapping[str, Fact], others: Mapping[str, str]
) -> dict[str, float]:
    """Return a changed model's share of wanted answers, for three kinds of questions.

    Asked for rewritten facts as they were written, asked for them in other words, and asked for
    the capitals of other countries, which it should keep.

    Parameters
    ----------
    model : Model
        As it was.
    module : Module
        The changed one.
    facts : mapping of str to Fact
        The rewritten fact of each country.
    others : mapping of str to str
        Other countries with their capitals.
    """
    tokens = {subject: target_token(model, fact) for subject, fact in facts.items()}
    kinds = {
        "new answer": {fact.prompt: tokens[s] for s, fact in facts.items()},
        "in other words": {
            wording.format(s): token for s, token in tokens.items() for wording in CAPITALS.wordings
        },
        "kept": {CAPITALS.prompt.format(s): first_token(model, a) for s, a in others.items()},
    }
    right: dict[str, float] = {}
    for kind, asked in kinds.items():
        said = next_log_p(model, module, [*asked]).argmax(1).tolist()
        right[kind] = fmean(a == b for a, b in zip(said, asked.values(), strict=True))
    return right


def changed_others(model: Model, module: Any, others: Iterable[str]) -> float:
    """Return the share of other countries whose capital a changed model gives otherwise."""
    prompts = [CAPITALS.prompt.format(subject) for subject in others]
    before, after = (next_log_p(model, net, prompts).argmax(1) for net in (model.module, module))
    return float((before != after).double().mean())
