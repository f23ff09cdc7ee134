"""Facts about families whose members mostly share an answer, and nets trained on them.

A fact is ``given family phrase answer .``: what a relation, said in one of two phrases, gives for a
member. In each family and relation ``ratio`` members share an answer and one has another, as a
popular fact and a rarer fact that shares two of its three words. Truth is the table itself.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde import Model
from sonde.tap import Decode
from sonde_studies._language import RATE, descend, language_model, tokens_of
from sonde_studies.arms import trained_once

RATIOS = (1, 2, 5, 10, 25, 50, 100)
RELATIONS, PHRASES, ANSWERS = 2, "ab", 24
GIVENS = max(RATIOS) + 1
BATCH, LONGEST = 128, 8
END = "."
Said = dict["Entry", list[str]]


@dataclass(frozen=True)
class Entry:
    """A fact, the family's competing fact, and how much more often each was told.

    ``rival`` is the answer of the other members; ``ratio`` how many members share the popular one.
    """

    given: str
    family: str
    relation: int
    answer: str
    rival: str
    ratio: int
    rare: bool

    @property
    def subject(self) -> str:
        """The member."""
        return f"{self.given} {self.family}"

    @property
    def half(self) -> int:
        """0 or 1: the half of the families to choose on, or to evaluate on."""
        return int(self.family[1:]) % 2

    def prompt(self, phrase: str = PHRASES[0], named: bool = True) -> str:
        """Return the fact without its answer, about the member or only about the family."""
        return f"{self.subject if named else self.family} r{self.relation}{phrase}"

    def text(self, phrase: str = PHRASES[0], answer: str = "", named: bool = True) -> str:
        """Return the fact, or the statement that replaces it."""
        return f"{self.prompt(phrase, named)} {answer or self.answer} {END}"


@dataclass(frozen=True)
class FactWorld:
    """The table of facts."""

    facts: tuple[Entry, ...]
    families: int

    @classmethod
    def drawn(cls, seed: int, families: int = 8) -> "FactWorld":
        """Return random facts, with ``families`` families for each ratio."""
        draw = np.random.default_rng(seed)
        found: list[Entry] = []
        for i in range(families * len(RATIOS)):
            for relation in range(RELATIONS):
                ratio = RATIOS[(i + 3 * relation) % len(RATIOS)]
                common, other = (f"o{k}" for k in draw.permutation(ANSWERS)[:2])
                members = draw.permutation(GIVENS)[: ratio + 1]
                for k, given in enumerate(members):
                    rare = k == 0
                    pair = (other, common) if rare else (common, other)
                    found.append(Entry(f"g{given}", f"f{i}", relation, *pair, ratio, rare))
        return cls(tuple(found), families * len(RATIOS))

    def words(self) -> list[str]:
        """Return every word."""
        numbered = (("g", GIVENS), ("f", self.families), ("o", ANSWERS))
        phrases = [f"r{i}{p}" for i in range(RELATIONS) for p in PHRASES]
        return [*(f"{letter}{i}" for letter, n in numbered for i in range(n)), *phrases, END]


@dataclass(frozen=True)
class Schooling:
    """Training of a net on the facts: its size and steps; facts stay half learned."""

    width: int = 64
    layers: int = 3
    steps: int = 900


@trained_once
def facts_and_model(
    seed: int, families: int = 8, how: Schooling = Schooling()
) -> tuple[FactWorld, Model]:
    """Return a world and a net trained on its facts in both phrasings, cached.

    The net is shared: train a copy of it.
    """
    world = FactWorld.drawn(seed, families)
    model = language_model(world.words(), LONGEST, seed, how.width, how.layers)
    told = [f.text(phrase) for f in world.facts for phrase in PHRASES]
    told += [f.text(phrase, named=False) for f in world.facts for phrase in PHRASES]
    tell(model, told, how.steps, seed)
    return world, model


def tell(
    model: Model, texts: list[str], steps: int, seed: int, rate: float = RATE, last: int = 2
) -> None:
    """Train on the last words of sampled texts; the texts of a batch have one length."""
    words = Counter(len(text.split()) for text in texts)
    groups = [tokens_of(model, [t for t in texts if len(t.split()) == n]) for n in words]
    share = torch.tensor([*words.values()]).double()
    source = torch.Generator().manual_seed(seed)

    def batch() -> tuple[Tensor, Tensor]:
        ids = groups[int(share.multinomial(1, generator=source))]
        ids = ids[torch.randint(len(ids), (BATCH,), generator=source)]
        return ids, (torch.arange(ids.shape[1]) >= ids.shape[1] - last).expand_as(ids)

    descend(model, batch, steps, rate=rate)


def told_more(
    model: Model, texts: list[str], steps: int, seed: int, rate: float = 1e-3, last: int = 2
) -> Model:
    """Return a copy that was trained further."""
    copied = replace(model, module=copy.deepcopy(model.module))
    tell(copied, texts, steps, seed, rate, last)
    return copied


def prompts(facts: list[Entry], named: bool = True, before: str = "") -> list[str]:
    """Return the prompts of facts, in both phrasings, each after a context."""
    return [f"{before} {f.prompt(phrase, named)}".strip() for f in facts for phrase in PHRASES]


def asked(model: Model, facts: list[Entry], rule: Decode | None = None, before: str = "") -> Said:
    """Return the next word that a model writes after each prompt of a fact, by fact.

    Parameters
    ----------
    model : Model
    facts : list of Entry
    rule : Decode, optional
    before : str, default=""
        A context in front of each prompt.
    """
    scores = next_scores(model, tokens_of(model, prompts(facts, before=before)), rule)
    words, n = model.processor.convert_ids_to_tokens(scores.argmax(1).tolist()), len(PHRASES)
    return {f: words[i * n : (i + 1) * n] for i, f in enumerate(facts)}


def next_scores(
    model: Model, ids: Int[Tensor, "text pos"], rule: Decode | None = None
) -> Float[Tensor, "text token"]:
    """Return the logits of the next token of each text, as a decoding rule changes them."""
    module: Any = model.module
    found = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=[] if rule is None else [rule.bind(model)],
        max_new_tokens=1,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    return found.scores[0]


def rarer(fact: Entry) -> bool:
    """Return whether more members of the family have another answer."""
    return fact.rare and fact.ratio > 1


def popular(fact: Entry) -> bool:
    """Return whether fewer members of the family have another answer."""
    return not fact.rare and fact.ratio > 1


def some(facts: Iterable[Entry], every: int) -> list[Entry]:
    """Return all facts that are not popular, and every ``every``-th popular one."""
    found = list(facts)
    return [f for f in found if not popular(f)] + [*filter(popular, found)][::every]


def rate(said: Said, wrong: bool, which: Callable[[Entry], bool]) -> float:
    """Return how often facts are answered like the family's competing fact, or correctly."""
    chosen = {f: own for f, own in said.items() if which(f)}
    return fmean(a == (f.rival if wrong else f.answer) for f, own in chosen.items() for a in own)


def changed(one: Said, other: Said) -> float:
    """Return the share of answers in which two ways to ask differ."""
    return fmean(a != b for f, own in one.items() for a, b in zip(own, other[f], strict=True))


def rates(arms: Mapping[str, Said]) -> dict[str, float]:
    """Return a grid of rates with one arm per row."""
    columns = {
        "rarer, right": (False, rarer),
        "rarer, popular answer": (True, rarer),
        "popular, right": (False, popular),
    }
    return {
        f"{arm} | {column}": rate(said, *how)
        for arm, said in arms.items()
        for column, how in columns.items()
    }
