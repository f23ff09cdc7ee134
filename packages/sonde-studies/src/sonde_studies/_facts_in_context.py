"""Facts of persons that a small language model learned, unlearned, and reads again in its prompt.

A fact is ``person answer .``. Prompts with a context state the answers of two persons first, so a
model that reads its context can answer without knowing the fact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from sonde import Model
from sonde_studies._language import language_model, tokens_of
from sonde_studies.arms import note_again, part
from sonde_studies.recipes.unlearning_audit import unlearning_audit
from sonde_studies.worlds.facts import END, tell, told_more

ANSWERS, WIDTH, LAYERS, LONGEST = 12, 64, 2, 9
GROUPS = ("forget", "retain", "held")
"""Persons whose facts are told and unlearned, told and kept, and never told."""


@final
@dataclass(frozen=True)
class Sizes:
    """Persons per group, texts to train on (with a context, and without), and training steps."""

    persons: int = 24
    texts: int = 6000
    steps: int = 1500
    unlearned: int = 100


TINY = Sizes(persons=20, texts=200, steps=10, unlearned=3)


@final
@dataclass(frozen=True)
class Persons:
    """The answer of each person of a group, by the person's name.

    ``of`` has a mapping for each of ``GROUPS``.
    """

    of: Mapping[str, Mapping[str, str]]

    @classmethod
    def drawn(cls, n: int, draw: np.random.Generator) -> "Persons":
        """Return ``n`` persons in each group, with random answers."""
        return cls({g: {f"{g[0]}{i}": _answer(draw) for i in range(n)} for g in GROUPS})

    def names(self) -> list[str]:
        """Return all persons."""
        return [name for group in self.of.values() for name in group]

    def texts(self, group: str) -> list[str]:
        """Return the facts of a group as texts."""
        return [f"{name} {answer} {END}" for name, answer in self.of[group].items()]

    def reading(self, groups: Sequence[str], n: int, draw: np.random.Generator) -> list[str]:
        """Return texts that state two random answers and repeat one: to read, not to know."""
        names, found = [p for group in groups for p in self.of[group]], list[str]()
        for _ in range(n):
            pair = {str(p): _answer(draw) for p in draw.choice(names, 2, replace=False)}
            asked = str(draw.choice([*pair]))
            found.append(f"{_stated(pair)} {asked} {pair[asked]} {END}")
        return found

    def recalling(self, group: str, n: int, draw: np.random.Generator) -> list[str]:
        """Return facts of a group after random answers of two other persons."""
        facts = [*self.of[group].items()]
        chosen = (facts[i] for i in draw.integers(len(facts), size=n))
        return [f"{self.beside(name, draw)} {name} {answer} {END}" for name, answer in chosen]

    def unlearning(self, n: int, draw: np.random.Generator) -> list[str]:
        """Return wrong answers for the persons to forget, and what should be kept.

        Each person is asked for alone and after the answers of two others. Kept are the right
        answers of the other persons, and reading their answers in a context.
        """
        wrong = {name: _answer(draw, right) for name, right in self.of["forget"].items()}
        taught = replace(self, of={**self.of, "forget": wrong})
        groups = ("forget", "retain")
        alone = [text for group in groups for text in taught.texts(group)]
        beside = [text for group in groups for text in taught.recalling(group, n // 2, draw)]
        return alone * (n // len(alone)) + beside + self.reading(GROUPS[1:], n, draw)

    def beside(self, name: str, draw: np.random.Generator) -> str:
        """Return a context that states random answers of two other persons."""
        others = draw.choice([p for p in self.names() if p != name], 2, replace=False)
        return _stated({str(p): _answer(draw) for p in others})

    def beside_own(self, name: str, answer: str, draw: np.random.Generator) -> str:
        """Return a context that states a person's answer and a random one of another person."""
        other = str(draw.choice([p for p in self.names() if p != name]))
        pairs = [(name, answer), (other, _answer(draw))]
        return _stated(dict(pairs[:: int(draw.choice([-1, 1]))]))


def facts_in_context(seed: int, tiny: bool) -> dict[str, float]:
    """Return accuracies on the facts to forget, by model and prompt, and audits of the facts.

    Keys are ``alone | MODEL`` (no context), ``own | MODEL`` (the context states the fact), ``other
    | MODEL`` (it states two others) and ``retained | MODEL`` (facts to keep), accuracies; and
    ``audit | MODEL``, the AUROC of an attack by low loss. Models are ``before``, ``unlearned`` by
    wrong answers, and ``never told``, which was trained without the facts to forget from the same
    first weights.
    """
    sizes, draw = TINY if tiny else Sizes(), np.random.default_rng(seed)
    persons = Persons.drawn(sizes.persons, draw)
    with part("facts, before"):
        before = _schooled(persons, ("forget", "retain"), sizes, seed, seed)
    with part("facts, never told"):
        gold = _schooled(persons, ("retain",), sizes, seed, seed + 1)
    forget, retain = persons.texts("forget"), persons.texts("retain")
    wrong = persons.unlearning(sizes.texts, draw)
    note_again("facts, unlearned", "facts, before")
    with part("facts, unlearned"):
        unlearned = told_more(before, wrong, sizes.unlearned, seed)
    models = {"before": before, "unlearned": unlearned, "never told": gold}
    for prompts in ("own fact", "two others"):
        note_again(f"facts, {prompts}", "facts, never told")
    facts = persons.of["forget"]
    own = {n: f"{persons.beside_own(n, a, draw)} {n}" for n, a in facts.items()}
    other = {n: f"{persons.beside(n, draw)} {n}" for n in facts}
    held = persons.texts("held")
    found = dict[str, float]()
    for name, model in models.items():
        found[f"alone | {name}"] = accuracy(model, [*facts], [*facts.values()])
        found[f"own | {name}"] = accuracy(model, [*own.values()], [*facts.values()])
        found[f"other | {name}"] = accuracy(model, [*other.values()], [*facts.values()])
        kept = persons.of["retain"]
        found[f"retained | {name}"] = accuracy(model, [*kept], [*kept.values()])
        audit = unlearning_audit(
            before, model, forget, retain, held=held, gold=gold, seed=seed, progress=False
        )
        found[f"audit | {name}"] = float(audit.value)
    return found


def _schooled(
    persons: Persons, groups: tuple[str, ...], sizes: Sizes, seed: int, order: int
) -> Model:
    """Return a model trained to read contexts, and on the facts of some groups.

    The seed draws the first weights, ``order`` the texts and the batches.
    """
    draw, n = np.random.default_rng(order), sizes.texts
    words = [*persons.names(), *(f"o{i}" for i in range(ANSWERS)), END]
    model = language_model(words, LONGEST, seed, WIDTH, LAYERS)
    facts = [text for group in groups for text in persons.texts(group)]
    told = persons.reading(GROUPS, n, draw) + facts * (n // len(facts))
    for group in groups:
        told += persons.recalling(group, n // 2 // len(groups), draw)
    tell(model, told, sizes.steps, order)
    return model


@torch.no_grad()
def accuracy(model: Model, prompts: list[str], answers: list[str]) -> float:
    """Return the share of prompts of one length whose most likely next word is the answer."""
    ids = model.module(tokens_of(model, prompts)).logits[:, -1].argmax(1)
    said = model.processor.convert_ids_to_tokens(ids.tolist())
    return float(np.mean([a == b for a, b in zip(said, answers, strict=True)]))


def _stated(pairs: Mapping[str, str]) -> str:
    return " ".join(f"{name} {answer} {END}" for name, answer in pairs.items())


def _answer(draw: np.random.Generator, but: str = "") -> str:
    """Return a random answer, other than ``but``."""
    return str(draw.choice([o for i in range(ANSWERS) if (o := f"o{i}") != but]))
